"""Training part of a model, at the cost of that part.

:func:`freeze` says what trains and rewrites the rest in place so that it saves no more than needed for the
backward pass; :func:`unfreeze` undoes it. Exact: values and gradients are the stock model's.
"""

from __future__ import annotations

from thawkit.frozen.cache import CachedDataset, FeatureCache
from thawkit.frozen.channels import Channels
from thawkit.frozen.lora import Lora
from thawkit.frozen.optimizer import parameter_groups, trainable_parameters, update_optimizer
from thawkit.frozen.report import FreezeReport, Row
from thawkit.frozen.rewrite import freeze, set_epoch, unfreeze
from thawkit.frozen.structure import find_blocks, find_head

__all__ = [
    "CachedDataset",
    "Channels",
    "FeatureCache",
    "FreezeReport",
    "Lora",
    "Row",
    "find_blocks",
    "find_head",
    "freeze",
    "parameter_groups",
    "set_epoch",
    "trainable_parameters",
    "unfreeze",
    "update_optimizer",
]
