"""Training part of a model, at the cost of that part.

:func:`freeze` says what trains and rewrites the rest in place so that it saves no more than needed for the
backward pass; :func:`unfreeze` undoes it. Exact: values and gradients are the stock model's, unless
``act_bits`` asks for lossy saving. :func:`waste` measures a model as it is.
"""

from __future__ import annotations

from thawkit.frozen.cache import CachedDataset, FeatureCache
from thawkit.frozen.channels import Channels
from thawkit.frozen.forecast import Forecast
from thawkit.frozen.lora import Lora
from thawkit.frozen.optimizer import (
    check_optimizer,
    parameter_groups,
    trainable_parameters,
    update_optimizer,
)
from thawkit.frozen.packs import packed_bytes
from thawkit.frozen.report import FreezeReport, Row
from thawkit.frozen.rewrite import freeze, set_epoch, unfreeze
from thawkit.frozen.structure import find_blocks, find_head
from thawkit.frozen.waste import Holders, WasteReport, WasteRow, waste

__all__ = [
    "CachedDataset",
    "Channels",
    "FeatureCache",
    "Forecast",
    "FreezeReport",
    "Holders",
    "Lora",
    "Row",
    "WasteReport",
    "WasteRow",
    "check_optimizer",
    "find_blocks",
    "find_head",
    "freeze",
    "packed_bytes",
    "parameter_groups",
    "set_epoch",
    "trainable_parameters",
    "unfreeze",
    "update_optimizer",
    "waste",
]
