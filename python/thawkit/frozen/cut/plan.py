"""What of a recorded forward pass is the prefix, and what the rest needs of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec

from thawkit.errors import ThawkitError
from thawkit.frozen.cut.trace import PLAIN, Call, Recorder, Step, Value
from thawkit.frozen.layers import Rewritten
from thawkit.frozen.structure import is_leaf


class NoCutError(ThawkitError):
    """A model that cannot be cut; the message says why."""


@dataclass
class Op:
    """A call of a torch function in a frame; of a skipped one, what it returns."""

    step: Step
    skip: bool
    outputs: Outputs


@dataclass
class Sub:
    """A module call in a frame: skipped, entered with a frame of its own, or run as it is.

    ``only_trains`` says that evaluation does without it, as without an auxiliary head.
    """

    call: Call
    outputs: Outputs | None
    frame: Frame | None
    only_trains: bool = False


@dataclass
class Outputs:
    """What a skipped part returns: for each leaf the number of a feature, or a form, or the value itself."""

    slots: list[int | None]
    spec: TreeSpec | None = None
    leaves: list[Any] = field(default_factory=list)


@dataclass
class Frame:
    """The prefix in the code of one module call, in order; past the last skipped part nothing is watched."""

    ops: list[Op] = field(default_factory=list)
    subs: list[Sub] = field(default_factory=list)


class Plan:
    """A recorded forward pass divided in two.

    Attributes:
        root, inputs: what was recorded.
        subjects, numbers: the values that are kept, in the order of their use, and their numbers by identity.
        before, skipped: names of the modules that are not run after the cut, and these.
        own: modules in whose own code a part of the prefix stands.
        at: where the prefix ends, and why, in words; empty where all is the prefix's.
        uses_parameters: whether the prefix holds any layer.
        frame: the prefix by module call.
        patched: the modules whose calls are watched.
        moving: ids of the tensors that train or that the forward writes to, which are not the prefix's.
    """

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self.model, self.root, self.inputs = model, recorder.root, recorder.inputs
        self._opened: set[Call] = set()
        self._forced: set[Step] = set()
        self.make()

    def make(self) -> None:
        """Divide what was recorded; anew after :meth:`move` or :meth:`economize`."""
        self._whole: dict[Call, bool] = {}
        self.subjects: list[Value] = []  # the values that are kept
        numbers: dict[int, int] = {}

        def keep(value: Value) -> None:
            if value.derived and not self._at_hand(value) and id(value) not in numbers:
                numbers[id(value)] = len(self.subjects)
                self.subjects.append(value)

        self.before: list[str] = []
        self.uses_parameters = False
        first = next((step for step in self.root.steps() if step.tainted), None)
        self.at = place(first) if first else ""
        self.own: list[nn.Module] = []
        self.skipped: list[nn.Module] = []
        self.moving = {
            id(v.tensor) for s in self.root.steps() for v in (*s.operands, *s.changes) if v.tainted
        } | {id(p) for p in self.model.parameters() if p.requires_grad}
        for step in self._uses(self.root):
            for value in step.operands:
                keep(value)
        for leaf in self.root.leaves:
            if isinstance(leaf, Value):
                keep(leaf)
        self.numbers = numbers
        self.frame = self._frame_of(self.root)
        self.patched = list({id(m): m for m in self._modules(self.frame)}.values())

    def _at_hand(self, value: Value) -> bool:
        """Whether the rest computes a value by itself."""
        return value.tainted or (isinstance(value.producer, Step) and self._runs(value.producer))

    def _runs(self, step: Step) -> bool:
        return step.tainted or step in self._forced or not step.derived or self._undivided(step.call)

    def _undivided(self, call: Call | None) -> bool:
        """Whether a call is part of a layer of which something runs after the cut, which then runs whole."""
        while call is not None and call.parent is not None:
            if call not in self._whole:
                layer = is_leaf(call.module) or isinstance(call.module, Rewritten)
                runs = layer and (call.tainted or any(step in self._forced for step in call.steps()))
                self._whole[call] = runs
            if self._whole[call]:
                return True
            call = call.parent
        return False

    def _skippable(self, call: Call) -> bool:
        return (
            call.parent is not None
            and call not in self._opened
            and not call.tainted
            and not self._undivided(call)
            and all(isinstance(leaf, (Value, *PLAIN)) for leaf in call.leaves)
            and not any(step in self._forced for step in call.steps())
            and (any(step.derived for step in call.steps()) or self._makes_own(call))
        )

    @staticmethod
    def _makes_own(call: Call) -> bool:
        return any(isinstance(v, Value) and v.producer is call and not v.tainted for v in call.leaves)

    def _uses(self, call: Call) -> Iterator[Step]:
        """The steps that are run after the cut, and those that read a value."""
        for item in call.items:
            if isinstance(item, Step):
                reads = not item.changes and not any(isinstance(leaf, Value) for leaf in item.leaves)
                if reads:
                    self._forced.add(item)
                if self._runs(item):
                    yield item
            elif not self._skippable(item):
                yield from self._uses(item)

    def _holds_prefix(self, call: Call) -> bool:
        return any(
            not self._runs(item)
            if isinstance(item, Step)
            else self._skippable(item) or self._holds_prefix(item)
            for item in call.items
        )

    def _frame_of(self, call: Call) -> Frame:
        frame = Frame()
        if call.module not in self.own:
            self.own.append(call.module)
        for item in call.items:
            if isinstance(item, Step):
                if not item.operands:
                    continue  # makes a tensor out of nothing: always run
                skip = not self._runs(item)
                self.uses_parameters |= skip and item.uses_parameter
                frame.ops.append(Op(item, skip, self._outputs(item.leaves)))
            elif self._skippable(item):
                self.before.append(item.name)
                self.skipped.append(item.module)
                self.uses_parameters |= any(step.uses_parameter for step in item.steps())
                frame.subs.append(Sub(item, self._outputs(item.leaves), None))
            else:
                inner = self._frame_of(item) if self._holds_prefix(item) else None
                frame.subs.append(Sub(item, None, inner))
        while frame.ops and not frame.ops[-1].skip:
            frame.ops.pop()
        while frame.subs and frame.subs[-1].outputs is None and frame.subs[-1].frame is None:
            frame.subs.pop()
        return frame

    def _outputs(self, leaves: list[Any]) -> Outputs:
        return Outputs([self.numbers.get(id(leaf)) for leaf in leaves])

    def _modules(self, frame: Frame) -> Iterator[nn.Module]:
        """The modules whose calls are watched: those called from code that holds a part of the prefix."""

        def called(call: Call, watched: Frame) -> Iterator[nn.Module]:
            inner = {sub.call: sub.frame for sub in watched.subs if sub.frame is not None}
            for item in call.items:
                if isinstance(item, Call):
                    yield item.module
                    if item in inner:
                        yield from called(item, inner[item])

        yield from called(self.root, frame)

    def move(self, value: Value) -> None:
        """Let a kept value be computed by the rest, or first look into the module that it comes out of.

        Raises:
            NoCutError: it is an input.
        """
        producer = value.producer
        hidden = self._hiding(producer)
        if hidden is not None:
            self._opened.add(hidden)
        elif isinstance(producer, Step):
            self._forced.add(producer)
        else:
            raise NoCutError("the rest needs an input that has no row for each sample")

    def economize(self) -> bool:
        """Let the rest compute what is a function, without parameters, of other values that are kept.

        Returns:
            Whether there are any.
        """
        steps = [value.producer for value in self.subjects]
        cheap = {step for step in steps if isinstance(step, Step) and self._follows(step)}
        self._forced |= cheap
        return bool(cheap)

    def _follows(self, step: Step) -> bool:
        known = (self._at_hand(v) or id(v) in self.numbers for v in step.operands if v.derived)
        return not step.uses_parameter and all(known)

    def _hiding(self, producer: Step | Call | None) -> Call | None:
        """The skipped module call in or as which ``producer`` happens."""
        call = producer.call if isinstance(producer, Step) else producer
        chain: list[Call] = []
        while call is not None:
            chain.append(call)
            call = call.parent
        return next((c for c in reversed(chain) if self._skippable(c)), None)

    def release(self) -> None:
        """Let go of the values that were recorded; the plan needs only what they were."""
        nothing = torch.empty(0)
        for step in self.root.steps():
            for value in (*step.operands, *step.leaves, *step.changes):
                if isinstance(value, Value):
                    value.tensor = nothing
        for value in (*self.inputs, *self.subjects):
            value.tensor = nothing


def place(step: Step) -> str:
    """The module that a tainted step stands in, and what taints it, in words."""
    name = repr(step.call.name) if step.call.name else f"the {type(step.call.module).__name__}'s own code"
    trains = any(v.tensor.requires_grad for v in step.operands)
    return f"{name}, which {'trains' if trains else 'is random, changes its state or mixes samples'}"
