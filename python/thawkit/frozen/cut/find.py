"""Finding the cut of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from thawkit.errors import ThawkitError
from thawkit.frozen.cut.batches import as_call, example_of, leaves_of, same_row, two_batches
from thawkit.frozen.cut.cut import Cut
from thawkit.frozen.cut.plan import NoCutError, Plan, place
from thawkit.frozen.cut.run import training
from thawkit.frozen.cut.trace import Recorder, Value, spread_taint
from thawkit.frozen.cut.verify import DiffersError, verify
from thawkit.frozen.deferred import at_once
from thawkit.frozen.functional import settled
from thawkit.frozen.measure import Example

_ROUNDS = 50  # of moving the cut to where its values have one row a sample


def find_cut(model: nn.Module, example: Example) -> Cut:
    """Find where the frozen prefix of a model ends.

    Args:
        model: with the ``requires_grad`` flags that it trains with; judged as ``model.train()`` would run it.
        example: a batch as the model takes it, samples in the first dimension of every tensor: a tensor, a
            tuple of arguments, or a mapping of keyword arguments.

    Raises:
        NoCutError: there is no such place; the message says why.
        ThawkitError: ``example`` holds no sample.
    """
    leaves = leaves_of(example)
    if not leaves or not all(isinstance(t, Tensor) for t in leaves):
        raise NoCutError(f"example: expected tensors, got {[type(t).__name__ for t in leaves]}")
    if not leaves[0].dim() or not len(leaves[0]):
        raise ThawkitError("example: expected a batch of at least one sample, with samples in dimension 0")
    model = getattr(model, "_orig_mod", model)  # of a model under torch.compile
    device = next((p.device for p in model.parameters()), leaves[0].device)
    spec = tree_flatten(as_call(example))[1]
    batches = two_batches([t.detach().to(device) for t in leaves])
    with settled():
        first, second = (_record(model, tree_unflatten(list(batch), spec), batch) for batch in batches)
        _mark_mixing(first, second, *batches)
        try:
            plan = Plan(model, first)
            cut = Cut(plan, example_of(tree_unflatten(list(batches[0]), spec)))
            _settle_and_verify(cut, plan, *batches)
        except ThawkitError:
            raise
        except Exception as error:  # whatever a model raises when its forward is run in parts
            raise NoCutError(f"the model cannot be run in parts: {type(error).__name__}: {error}") from error
    plan.release()
    return cut


def _settle_and_verify(cut: Cut, plan: Plan, first: list[Tensor], second: list[Tensor]) -> None:
    """Plan anew until what is kept is right: one row a sample, nothing that need not be, the same results."""
    for _ in range(_ROUNDS):
        if not plan.uses_parameters:
            raise NoCutError(_nothing_before(plan))
        if cut.settle(first, second) and not plan.economize():
            if not cut.features:
                raise NoCutError(_nothing_before(plan))
            try:
                return verify(cut, first, second)
            except DiffersError:
                if not cut.join():
                    raise
        plan.make()
    raise NoCutError("no values found that have one row for each sample")


def _nothing_before(plan: Plan) -> str:
    step = next((s for s in plan.root.steps() if s.tainted), None)
    return "nothing trains" if step is None else f"no frozen layer comes before {place(step)}"


def _record(model: nn.Module, call: Any, inputs: list[Tensor]) -> Recorder:
    args, kwargs = call
    with at_once(), training(model), torch.enable_grad():
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with Recorder(model, inputs) as recorder:
            model(*args, **kwargs)
        moved = {id(buffer) for buffer, value in before if not torch.equal(buffer, value)}
    for step in recorder.root.steps():  # some operators write to buffers without saying so
        step.own_taint |= any(id(v.tensor) in moved for v in step.operands)
    spread_taint(recorder.root)
    return recorder


def _mark_mixing(one: Recorder, two: Recorder, first: list[Tensor], second: list[Tensor]) -> None:
    """Taint the steps after which the first sample's row depends on the rest of the batch."""
    steps = list(zip(one.root.steps(), two.root.steps(), strict=False))
    if any(a.name != b.name or len(a.leaves) != len(b.leaves) for a, b in steps):
        return  # other paths: only what is kept can be compared, later
    sizes = first[0].shape[0], second[0].shape[0]
    for a, b in steps:
        if a.tainted or not a.derived:
            continue
        for x, y in zip(a.leaves, b.leaves, strict=True):
            if not isinstance(x, Value) or not isinstance(y, Value) or x.producer is not a:
                continue
            if not (x.still() and y.still()):
                continue
            s, t = x.tensor, y.tensor
            if s.dim() and t.dim() and (s.shape[0], t.shape[0]) == sizes and s.shape[1:] == t.shape[1:]:
                a.own_taint |= not same_row(s, t)
    spread_taint(one.root)
