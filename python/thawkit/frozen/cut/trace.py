"""One forward pass as a record: which module ran what, and what of it depends on something that trains.

A :class:`Recorder` sees every call of a torch function, however the model makes it (``TorchFunctionMode``),
and every call of a module. A value is *tainted* if it depends on what trains, on a random number, or on state
that the forward itself changes; what is not tainted is a pure function of the input and of what is frozen.
Nothing is told from the classes of layers: a random number is noticed because a generator has moved, changing
statistics because a buffer was written to, a parameter that trains because it needs a gradient.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map_only

from thawkit.frozen.functional import Watcher
from thawkit.ops.frozen.packed import version_of

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout)
"""What an output may hold beside tensors, for it to be known by its value."""

# fmt: off: one name a line would be forty lines
_PROPERTIES = [
    "shape",
    "dtype",
    "device",
    "ndim",
    "requires_grad",
    "is_cuda",
    "is_cpu",
    "is_meta",
    "is_mps",
    "is_xpu",
    "layout",
    "is_sparse",
    "is_quantized",
    "is_nested",
    "is_mkldnn",
    "itemsize",
    "nbytes",
    "is_leaf",
    "grad_fn",
    "grad",
    "names",
    "is_sparse_csr",
    "_version",
]
_METHODS = [
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "is_floating_point",
    "is_complex",
    "__len__",
    "stride",
    "is_contiguous",
    "is_signed",
    "element_size",
    "storage_offset",
    "get_device",
    "is_pinned",
    "is_conj",
    "is_neg",
    "is_inference",
    "has_names",
    "is_shared",
    "__hash__",
]
# fmt: on
METADATA = (
    {getattr(Tensor, name).__get__ for name in _PROPERTIES if hasattr(Tensor, name)}
    | {getattr(Tensor, name) for name in _METHODS if hasattr(Tensor, name)}
    | {
        torch.is_floating_point,
        torch.is_complex,
        torch.numel,
        torch.is_conj,
        torch.is_neg,
        torch.is_inference,
    }
)
"""Functions that look at a tensor's form and not at its values."""


def name_of(func: Any) -> str:
    """A torch function by a name that is the same at every call."""
    owner = getattr(func, "__self__", None)
    return str(getattr(func, "__name__", func) if owner is None else getattr(owner, "__name__", func))


class Value:
    """What a tensor holds between two writes to it.

    Attributes:
        tensor: kept, so that its identity is not used again.
        producer: the step or the module call whose result it is; None for an input and what existed before.
        derived: whether it depends on the input.
        tainted: see the module.
    """

    def __init__(self, tensor: Tensor, producer: Step | Call | None, derived: bool, tainted: bool) -> None:
        self.tensor, self.producer, self.derived, self.tainted = tensor, producer, derived, tainted
        self._version = version_of(tensor)

    def still(self) -> bool:
        """Whether the tensor still holds it."""
        return version_of(self.tensor) == self._version


class Step:
    """A call of a torch function.

    Attributes:
        name, call: the function, and the module call in whose code it stands.
        operands: what it takes.
        leaves: its result as a flat list, tensors as values.
        changes: values that it made by writing to a tensor.
        own_taint: tainted by itself and not by an operand.
        uses_parameter: whether an operand is a parameter.
    """

    def __init__(self, name: str, call: Call, operands: list[Value], own_taint: bool) -> None:
        self.name, self.call, self.operands, self.own_taint = name, call, operands, own_taint
        self.leaves: list[Any] = []
        self.changes: list[Value] = []
        self.uses_parameter = any(isinstance(v.tensor, nn.Parameter) for v in operands)

    @property
    def tainted(self) -> bool:
        """Whether its result is."""
        return self.own_taint or any(v.tainted for v in self.operands)

    @property
    def derived(self) -> bool:
        """Whether its result depends on the input."""
        return any(v.derived for v in self.operands)


class Call:
    """A call of a module. ``items`` are the steps and calls in it, ``leaves`` its result as a flat list."""

    def __init__(self, module: nn.Module, name: str, parent: Call | None) -> None:
        self.module, self.name, self.parent = module, name, parent
        self.items: list[Step | Call] = []
        self.leaves: list[Any] = []
        self.impure = False

    @property
    def tainted(self) -> bool:
        """Whether anything in it or of its result is."""
        return (
            self.impure
            or any(isinstance(leaf, Value) and leaf.tainted for leaf in self.leaves)
            or any(step.tainted for step in self.steps())
        )

    def steps(self) -> Iterator[Step]:
        """Every step in it and in what it calls, in order."""
        for item in self.items:
            if isinstance(item, Step):
                yield item
            else:
                yield from item.steps()


class Recorder(Watcher):
    """Records the forward passes inside its ``with``; ``root`` is the model's own call."""

    def __init__(self, model: nn.Module, inputs: list[Tensor]) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.root = Call(model, "", None)
        self.inputs = [Value(t, None, True, False) for t in inputs]
        self._known = {id(v.tensor): v for v in self.inputs}
        self._stack: list[Call] = []
        self._devices = {t.device for t in (*inputs, *model.parameters()) if t.is_cuda}
        self._torch_state, self._other_state = self._torch_random(), _other_random()
        self._unsteady = False  # a generator other than torch's has moved: nobody knows what it decided

    def __enter__(self) -> Recorder:
        self._handles = (
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        )
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA or not self._stack:
            return func(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        operands = [self.value(t) for t in tensors]
        versions = [version_of(t) for t in tensors]
        result = func(*args, **kwargs)
        changed = [
            (v, t) for v, t, old in zip(operands, tensors, versions, strict=True) if version_of(t) != old
        ]
        stateful = any(v.producer is None and not v.derived for v, _ in changed)
        moved = self._random_moved() or self._unsteady
        step = Step(name_of(func), self._stack[-1], operands, stateful or moved)
        self._stack[-1].items.append(step)
        for _, tensor in changed:
            step.changes.append(Value(tensor, step, step.derived, step.tainted))
            self._known[id(tensor)] = step.changes[-1]
        if changed and not step.tainted:
            # Another object for the result, to tell those who use it from those who held the tensor before.
            written = {id(t) for _, t in changed}
            result = tree_map_only(Tensor, lambda t: t.detach() if id(t) in written else t, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in self._known:
                tainted = step.tainted or leaf.requires_grad
                self._known[id(leaf)] = Value(leaf, step, step.derived, tainted)
            step.leaves.append(self._known[id(leaf)] if isinstance(leaf, Tensor) else leaf)
        return result

    def value(self, tensor: Tensor) -> Value:
        """What a tensor holds now."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = Value(tensor, None, False, tensor.requires_grad)
        value = self._known[id(tensor)]
        value.tainted |= tensor.requires_grad  # an autograd.Function may have given it that after its making
        return value

    def _begin(self, module: nn.Module, args: Any) -> None:
        parent = self._stack[-1] if self._stack else None
        if parent is None:
            self._stack.append(self.root)
        else:
            call = Call(module, self.names.get(module, "?"), parent)
            parent.items.append(call)
            self._stack.append(call)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._stack.pop()
        call.impure = self._random_moved() or self._unsteady
        tainted = call.impure or any(step.tainted for step in call.steps())
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and id(leaf) not in self._known:  # made out of torch functions' sight
                self._known[id(leaf)] = Value(leaf, call, True, tainted or leaf.requires_grad)
            call.leaves.append(self.value(leaf) if isinstance(leaf, Tensor) else leaf)

    def _random_moved(self) -> bool:
        before, before_others = self._torch_state, self._other_state
        with torch._C.DisableTorchFunction():
            self._torch_state, self._other_state = self._torch_random(), _other_random()
            self._unsteady |= before_others != self._other_state
            return not all(map(torch.equal, before, self._torch_state))

    def _torch_random(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]


def _other_random() -> tuple[Any, ...]:
    state: tuple[Any, ...] = (random.getstate(),)
    if "numpy" in sys.modules:
        _, keys, *rest = sys.modules["numpy"].random.get_state()
        state += (keys.tobytes(), *rest)
    return state


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def spread_taint(root: Call) -> None:
    """Taint what depends on a step that is tainted by itself."""
    for step in root.steps():
        if step.tainted:
            for leaf in (*step.leaves, *step.changes):
                if isinstance(leaf, Value) and leaf.producer is step:
                    leaf.tainted = True
