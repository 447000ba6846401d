"""What an optimizer gets of a frozen model.

An optimizer with weight decay that was given all parameters leaves the frozen ones alone only while their
gradient is None; with a gradient left over from before freezing, or after ``zero_grad(set_to_none=False)``,
it decays them. Give it the trainable ones; :func:`check_optimizer` says where that was forgotten.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from thawkit.errors import ThawkitError, ThawkitWarning


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, each once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the parameters that train: matrices and filters, decayed, and vectors, which are not.

    Vectors are biases and the scales of normalizations. One of the groups may be empty.
    """
    trainable = trainable_parameters(model)
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


def update_optimizer(optimizer: torch.optim.Optimizer, groups: Iterable[Mapping[str, Any]]) -> None:
    """Give an optimizer other parameters, as after :func:`thawkit.frozen.set_epoch`.

    What was in it and still is keeps its state, what is new starts without, what is gone is forgotten. The
    groups keep their learning rates, also those that a scheduler has set.

    Args:
        optimizer: any of torch's.
        groups: as many as the optimizer has, in its order, each with ``params``; other settings in them are
            ignored.

    Raises:
        ThawkitError: another number of groups.
    """
    parameters = [list(group["params"]) for group in groups]
    if len(parameters) != len(optimizer.param_groups):
        raise ThawkitError(
            f"groups: expected {len(optimizer.param_groups)}, as the optimizer has, got {len(parameters)}"
        )
    for group, now in zip(optimizer.param_groups, parameters, strict=True):
        group["params"] = now
    kept = {id(parameter) for now in parameters for parameter in now}
    for parameter in [p for p in optimizer.state if id(p) not in kept]:
        del optimizer.state[parameter]


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Warn where an optimizer moves what a frozen model holds fixed, or does not move what trains.

    Frozen tensors move if a gradient is left over from before and the optimizer decays them or steps on it:
    with ``channels:0.5`` that is the whole weight, also the entries that do not train. What trains is not
    moved by an optimizer made before :func:`thawkit.freeze`, which has never seen adapters and channels.

    Args:
        model: frozen.
        optimizer: made for it.
    """
    decays = {
        id(p): group.get("weight_decay", 0) for group in optimizer.param_groups for p in group["params"]
    }
    named = dict(model.named_parameters())
    moved = [n for n, p in named.items() if not p.requires_grad and p.grad is not None and id(p) in decays]
    if moved:
        decayed = sum(decays[id(named[name])] != 0 for name in moved)
        _warn(
            f"optimizer: {len(moved)} tensors that do not train have a gradient left over and would move"
            f"{f', {decayed} of them by weight decay as well' if decayed else ''}, as {moved[0]!r}"
        )
    missed = [name for name, p in named.items() if p.requires_grad and id(p) not in decays]
    if missed:
        _warn(f"optimizer: {len(missed)} tensors that train are not in it, as {missed[0]!r}")


def _warn(problem: str) -> None:
    warnings.warn(
        f"{problem}; give it thawkit.frozen.parameter_groups(model, weight_decay)",
        ThawkitWarning,
        stacklevel=3,
    )
