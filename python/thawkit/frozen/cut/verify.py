"""Whether prefix and rest give what the model gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thawkit.frozen.cut.batches import example_of, near
from thawkit.frozen.cut.cut import Cut
from thawkit.frozen.cut.plan import NoCutError
from thawkit.frozen.cut.run import training
from thawkit.frozen.measure import training_modes


class DiffersError(NoCutError):
    """Prefix and rest do not give what the model gives, in training mode."""


def verify(cut: Cut, first: list[Tensor], second: list[Tensor]) -> None:
    """Compare the whole model with prefix and rest on two batches.

    Raises:
        DiffersError: they differ in one bit of an output or gradient.
        NoCutError: in evaluation mode they differ by more than rounding.
    """
    for inputs in (first, second):
        args, kwargs = _arguments(cut, inputs)
        whole = _outcome(cut.model, partial(cut.model, *args, **kwargs))
        with training(cut.model), torch.enable_grad():
            torch.manual_seed(1)  # the prefix draws nothing
            features = cut.prefix(example_of(_arguments(cut, inputs)))
        versions = [t._version for t in features]
        rest = _outcome(cut.model, partial(cut.rest, features))
        if [t._version for t in features] != versions:
            cut.copies = True
            return verify(cut, first, second)
        if not _equal(whole, rest):
            raise DiffersError("the rest of the model, run from its features, does not give the same")
        _verify_evaluation(cut, inputs, features, learn=inputs is first)


def _verify_evaluation(cut: Cut, inputs: list[Tensor], features: list[Tensor], *, learn: bool) -> None:
    """The same in evaluation mode, in which a model may run other kernels, with the features of training."""
    args, kwargs = _arguments(cut, inputs)
    with training_modes(cut.model, set(cut.model.modules())), torch.no_grad():
        torch.manual_seed(0)
        whole = tree_leaves(cut.model(*args, **kwargs))
        torch.manual_seed(0)
        rest = tree_leaves(cut.rest(features, learn=learn))
    if not _equal(whole, rest, rounding=True):
        raise NoCutError("in evaluation mode the rest of the model does not give the same")


def _arguments(cut: Cut, inputs: list[Tensor]) -> Any:
    """The model's arguments, which it may write to."""
    return cut.call_of([t.clone() for t in inputs])


def _outcome(model: nn.Module, run: Callable[[], Any]) -> list[Any]:
    """The leaves of an output and the gradients of their sum."""
    trains = [p for p in model.parameters() if p.requires_grad]
    with training(model), torch.enable_grad():
        torch.manual_seed(0)
        leaves = tree_leaves(run())
        total = [t.double().sum() for t in leaves if isinstance(t, Tensor) and t.requires_grad]
        found: Sequence[Any] = ()
        if total and trains:
            found = torch.autograd.grad(torch.stack(total).sum(), trains, allow_unused=True)
    return [*leaves, *found]


def _equal(a: Sequence[Any], b: Sequence[Any], *, rounding: bool = False) -> bool:
    """Whether tensors are equal, bit by bit or but for ``rounding``; what is none is not compared."""

    def same(x: Any, y: Any) -> bool:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return isinstance(x, Tensor) == isinstance(y, Tensor)
        if x.shape != y.shape or not torch.equal(x.isnan(), y.isnan()):
            return False
        return near(x, y) if rounding else torch.equal(x.nan_to_num(), y.nan_to_num())

    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
