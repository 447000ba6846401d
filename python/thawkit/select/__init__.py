"""Pretrained and small models by name, with a head for your classes and the preprocessing they expect."""

from thawkit.select.create import Model, create_model
from thawkit.select.head import capture_features, head, replace_head
from thawkit.select.lenet import LeNet

__all__ = ["LeNet", "Model", "capture_features", "create_model", "head", "replace_head"]
