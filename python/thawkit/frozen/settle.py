"""What only running the example tells: who must not wait, and what is saved for nobody else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thawkit.frozen.deferred import WrittenInput, joining
from thawkit.frozen.layers import FrozenBatchNorm, FrozenConv2d, Rewritten
from thawkit.frozen.measure import (
    Example,
    call_eagerly,
    saved_alone,
    saved_by_module,
    train_except,
    undisturbed,
)


def settle_waiting(model: nn.Module, batch: Example, fixed: set[nn.Module]) -> None:
    """Tell the layers that wait in vain, or must not, so."""
    waiting, kept = waiting_layers(model), []
    for _ in waiting:
        try:
            outputs: list[Any] = []  # which whoever calls the model keeps
            with joining() as seen:
                saved_by_module(model, batch, fixed, outputs)
            kept = seen.kept()
            evaluate(model, batch)
            break
        except WrittenInput as written:
            written.module.folds = False
        except Exception:  # whatever a model raises that takes its activations' strides for granted
            for module in waiting:
                module.folds = False
            break
    for module in waiting:
        in_vain = isinstance(module, FrozenBatchNorm) and module not in seen.joined
        if in_vain or module in kept or module in seen.touched:
            module.folds = False


def save_bits(model: nn.Module, batch: Example, fixed: set[nn.Module]) -> set[str]:
    """Let activations that save a result for themselves alone save bits from now on; return their names.

    Of a ReLU that a block calls twice, say, a layer that trains takes the first result and none the second.
    """
    rewritten = {name: module for name, module in model.named_modules() if isinstance(module, Rewritten)}
    keep: dict[nn.Module, str] = {
        module: name for name, module in rewritten.items() if getattr(module, "kept", None) is True
    }
    if not keep:
        return set()
    alone = saved_alone(model, batch, fixed, keep.keys())
    for module in alone:
        setattr(module, "kept", False)  # noqa: B010  # as an attribute, mypy takes it for a submodule
    return {keep[module] for module in alone}


def evaluate(model: nn.Module, batch: Example) -> None:
    """Run the example in evaluation mode, too, in which the model may write to what a layer waits for."""
    with undisturbed(model), torch.no_grad():
        train_except(model, set(model.modules()))  # not eval(), which thawing would take for the user's
        try:
            call_eagerly(model, batch)
        except WrittenInput:
            raise
        except Exception:  # it may take other arguments in this mode
            return


def waiting_layers(model: nn.Module) -> list[FrozenConv2d | FrozenBatchNorm]:
    """The layers that may wait for what follows them."""
    return [m for m in model.modules() if isinstance(m, (FrozenConv2d, FrozenBatchNorm)) and m.folds]
