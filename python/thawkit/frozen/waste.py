"""What an ordinary model saves for the backward pass, and how much of that its gradients need."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thawkit.errors import ThawkitError
from thawkit.frozen import needs
from thawkit.frozen.measure import (
    Example,
    ExampleError,
    call_eagerly,
    existing,
    running,
    saved_by_module,
    storage_key,
    train_except,
    undisturbed,
)
from thawkit.frozen.table import aligned, in_words

_SHOWN = 12  # rows of each table that are printed


class _Wasteful:
    saved_bytes: int
    minimum_bytes: int

    @property
    def wasted_bytes(self) -> int:
        """Bytes that are saved and not needed."""
        return self.saved_bytes - self.minimum_bytes


@dataclass(frozen=True)
class WasteRow(_Wasteful):
    """What one module's own code saves.

    A storage that several operators hold is counted once, for the module that saved it first, and so is what
    all of them need of it.

    Attributes:
        module: dotted name; empty for the model's own ``forward``.
        kind: class name of the module.
        operators: the operators that hold the storages, as the graph calls them, those of other modules
            included: ``Convolution``, ``Relu``.
        saved_bytes: bytes that autograd keeps.
        minimum_bytes: bytes that the gradients need.
        recompute_bytes: the same where elementwise functions and normalizations may run again.
    """

    module: str
    kind: str
    operators: tuple[str, ...]
    saved_bytes: int
    minimum_bytes: int
    recompute_bytes: int


@dataclass(frozen=True)
class Holders(_Wasteful):
    """The storages that the same operators hold.

    Attributes:
        operators: as the graph calls them.
        storages: how many there are.
        saved_bytes, minimum_bytes, recompute_bytes: as in :class:`WasteRow`.
    """

    operators: tuple[str, ...]
    storages: int
    saved_bytes: int
    minimum_bytes: int
    recompute_bytes: int


@dataclass(frozen=True)
class WasteReport(_Wasteful):
    """What a forward of a model saves, needs and wastes. ``print(report)`` shows two tables.

    The minimum is exact and without recomputation: a convolution or linear layer needs its input for the
    gradient of its weight and nothing else, a batch normalization with fixed statistics for that of its
    scale, layer normalization and batch statistics always do, as GELU, SiLU and attention do; a ReLU needs
    one bit an element, none where its input or its result is kept anyway; max-pooling a code of 2, 4 or 8
    bits; dropout one bit. A storage of which a view is needed counts whole. What an operator unknown to the
    rules saves counts as needed.

    Attributes:
        rows: by module, the most wasteful first.
        holders: by the operators that hold a storage together, the most wasteful first.
        saved_bytes: bytes that autograd keeps; parameters, buffers and the example do not count.
        minimum_bytes: bytes that the gradients need.
        recompute_bytes: bytes needed where elementwise functions and normalizations run again from what is
            kept for them in any case, as for ``Linear(gelu(x))`` of which ``x`` is kept.
    """

    rows: tuple[WasteRow, ...]
    holders: tuple[Holders, ...]
    saved_bytes: int
    minimum_bytes: int
    recompute_bytes: int

    def __str__(self) -> str:
        ratio = f" ({self.saved_bytes / self.minimum_bytes:.1f}x)" if self.minimum_bytes else ""
        lines = [
            f"thawkit.waste: {in_words(self.saved_bytes)} saved for backward, "
            f"{in_words(self.minimum_bytes)} needed{ratio}, {in_words(self.wasted_bytes)} wasted; "
            f"{in_words(self.recompute_bytes)} needed with elementwise recompute"
        ]
        sizes = ("saved", "needed", "recompute", "wasted")
        held = [(" + ".join(h.operators), f"{h.storages}", *_sizes(h)) for h in self.holders[:_SHOWN]]
        lines += ["", *aligned([("held by", "tensors", *sizes), *held], left=1)]
        by_module = [(row.module or "(the model)", row.kind, *_sizes(row)) for row in self.rows[:_SHOWN]]
        lines += ["", *aligned([("saved by", "kind", *sizes), *by_module], left=2)]
        if len(self.rows) > _SHOWN:
            lines.append(f"and {len(self.rows) - _SHOWN} more modules")
        return "\n".join(lines)


def _sizes(row: WasteRow | Holders) -> tuple[str, ...]:
    sizes = row.saved_bytes, row.minimum_bytes, row.recompute_bytes, row.wasted_bytes
    return tuple(in_words(size) for size in sizes)


def waste(model: nn.Module, example: Example) -> WasteReport:
    """Measure what autograd keeps in one forward of a model, and how much of it the gradients need.

    The model is measured as it is, with its ``requires_grad`` flags and in its modes, and is not rewritten;
    modes, buffers and random state are as before. Functional calls count like modules: what is needed goes
    by the operators in the graph. A model and an example on the meta device, or in ``FakeTensorMode``, are
    measured without computing anything; attention counts there as torch runs it there, which is not fused.

    Args:
        model: any; the loss is not part of it unless its ``forward`` computes it.
        example: a batch as the model takes it: a tensor, a tuple of arguments, or a mapping of keyword
            arguments.

    Returns:
        The report; print it.

    Raises:
        ThawkitError: ``model`` is no module, it fails on ``example``, or there is no tensor in its output.
    """
    if not isinstance(model, nn.Module):
        raise ThawkitError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)
    with undisturbed(model):
        try:
            storages, outputs = _held(model, example)
        except Exception as error:
            raise ExampleError(error) from error
    if not any(isinstance(output, Tensor) for output in outputs):
        raise ThawkitError("model: expected a tensor in its output, got none")
    return _report(model, storages)


@dataclass(frozen=True)
class Measured:
    """What a model saves and needs.

    Attributes:
        saved: bytes by the dotted name of the module that saved them first.
        minimum_bytes: bytes that the gradients need, see :class:`WasteReport`; None where the output holds no
            tensor to follow.
        inexact_bytes: those of them that something else than the gradient of a weight matrix needs, which
            could be kept in fewer bits.
        outputs: the leaves of the model's output.
    """

    saved: Counter[str]
    minimum_bytes: int | None
    inexact_bytes: int
    outputs: list[Any]


def measure(model: nn.Module, example: Example, evaluating: Set[nn.Module]) -> Measured:
    """As :func:`waste`, in training mode but for the modules ``evaluating``."""
    with undisturbed(model):
        train_except(model, evaluating)
        storages, outputs = _held(model, example)
    if not any(isinstance(output, Tensor) for output in outputs):
        return Measured(saved_by_module(model, example, evaluating), None, 0, outputs)
    saved: Counter[str] = Counter()
    for storage in storages:
        saved[storage.module] += storage.nbytes
    by_products = sum(s.minimum for s in storages if all(map(_is_product, s.uses)))
    minimum = sum(s.minimum for s in storages)
    return Measured(saved, minimum, minimum - by_products, outputs)


def _is_product(use: _Use) -> bool:
    return needs.is_product(use.operator)


def _held(model: nn.Module, example: Example) -> tuple[list[_Storage], list[Any]]:
    """Run the model; return the storages that the graph of its output holds, and the leaves of the output."""
    with running(model) as stack, _Noise() as noise:

        def pack(tensor: Tensor) -> _Saved:
            return _Saved(tensor, stack[-1], storage_key(tensor) in noise.storages)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            outputs = list(_leaves(call_eagerly(model, example)))
    tensors = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
    return _Graph(tensors, existing(model, example), _frozen_shapes(model)).storages, outputs


class _Saved:
    """A tensor that autograd keeps, where it was saved, and whether it is noise of two values."""

    def __init__(self, tensor: Tensor, module: str, is_noise: bool) -> None:
        self.tensor, self.module, self.is_noise = tensor, module, is_noise


class _Noise(TorchDispatchMode):
    """Remembers what ``bernoulli`` filled: on the CPU dropout multiplies by that."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}  # a kept storage's key is not used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.bernoulli, torch.ops.aten.bernoulli_):
            self.storages[storage_key(result)] = result.untyped_storage()
        return result


def _leaves(output: Any) -> Iterator[Any]:
    """The leaves of an output, which may be an object with tensors for attributes."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) or not hasattr(leaf, "__dict__"):
            yield leaf
        else:
            yield from tree_leaves(list(vars(leaf).values()))


def _frozen_shapes(model: nn.Module) -> set[tuple[torch.Size, torch.dtype]]:
    return {(p.shape, p.dtype) for p in model.parameters() if not p.requires_grad}


@dataclass
class _Use:
    node: Any
    operator: str
    attribute: str
    need: float


@dataclass
class _Storage:
    """One storage that the graph holds.

    Attributes:
        module: that saved it first.
        nbytes: its size.
        uses: what holds it.
        minimum: bytes that are needed of it.
        recompute: the same where cheap functions run again.
    """

    module: str
    nbytes: int
    uses: list[_Use] = field(default_factory=list)
    minimum: int = 0
    recompute: int = 0

    @property
    def whole(self) -> bool:
        return any(use.need == needs.WHOLE for use in self.uses)


class _Graph:
    """The storages that a graph holds, with what is needed of each."""

    def __init__(
        self, outputs: Iterable[Tensor], known: set[int], frozen: set[tuple[torch.Size, torch.dtype]]
    ) -> None:
        self.by_key: dict[int, _Storage] = {}
        self.inputs: dict[Any, int] = {}  # a node's first argument where the graph keeps it
        for node in _in_order(outputs):
            for attribute, saved in _saved_by(node):
                self._add(node, attribute, saved, known, frozen)
        self._kept_results: set[Any] = set()
        for storage in self.by_key.values():
            if storage.whole:
                self._kept_results |= {node for use in storage.uses for node in self._producers(use)[:1]}
        for storage in self.by_key.values():
            if storage.whole:
                storage.minimum = storage.nbytes
                storage.recompute = 0 if self._recomputable(storage) else storage.nbytes
            else:
                bits = sum(0 if self._is_free(use) else use.need for use in storage.uses)
                storage.minimum = storage.recompute = min(storage.nbytes, int(bits))

    @property
    def storages(self) -> list[_Storage]:
        return list(self.by_key.values())

    def _add(self, node: Any, attribute: str, saved: _Saved, known: set[int], frozen: set[Any]) -> None:
        key, operator = storage_key(saved.tensor), needs.operator_of(node)
        if key in known or not saved.tensor.untyped_storage().nbytes():
            return
        if key not in self.by_key:
            self.by_key[key] = _Storage(saved.module, saved.tensor.untyped_storage().nbytes())
        need = needs.needed(node, attribute, saved.tensor)
        if saved.is_noise:
            need = min(need, math.ceil(saved.tensor.numel() / 8))
        if _is_cast_weight(node, operator, attribute, saved.tensor, frozen):
            need = 0
        self.by_key[key].uses.append(_Use(node, operator, attribute, need))
        if needs.argument_of(operator, attribute) == 0 and attribute != "result":
            self.inputs[node] = key

    def _producers(self, use: _Use) -> list[Any]:
        """The cheap functions that computed what is used, last first."""
        argument = needs.argument_of(use.operator, use.attribute)
        return [] if argument is None else list(self._chain(use.node, argument))

    def _chain(self, node: Any, argument: int) -> Iterator[Any]:
        while argument < len(node.next_functions):
            node = node.next_functions[argument][0]
            if node is None:
                return
            operator = needs.operator_of(node)
            if needs.CHEAP.fullmatch(operator):
                yield node
            elif operator not in needs.SHAPE_ONLY:
                return
            argument = 0

    def _is_free(self, use: _Use) -> bool:
        """Whether a mask can be told from something that is kept in any case."""
        if not needs.is_mask(use.operator):
            return False
        if use.node in self._kept_results:
            return True
        before = next(self._chain(use.node, 0), None)
        if before is None or not needs.is_batch_norm(needs.operator_of(before)):
            return False
        kept = self.inputs.get(before)
        return kept is not None and self.by_key[kept].whole

    def _recomputable(self, storage: _Storage) -> bool:
        for use in storage.uses:
            for producer in self._producers(use):
                kept = self.inputs.get(producer)
                if kept is not None and self.by_key[kept].whole and self.by_key[kept] is not storage:
                    return True
        return False


def _in_order(outputs: Iterable[Tensor]) -> list[Any]:
    """The nodes of a graph in the order in which they were recorded."""
    queue = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen = set(queue)
    while queue:
        for following, _ in queue.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return sorted(seen, key=lambda node: node._sequence_nr())


def _saved_by(node: Any) -> Iterator[tuple[str, _Saved]]:
    """What a node keeps, by attribute; nothing of what activation checkpointing will compute again."""
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            kept = getattr(node, name)
            for saved in kept if isinstance(kept, (tuple, list)) else [kept]:
                if isinstance(saved.data, _Saved):
                    yield name.removeprefix("_raw_saved_"), saved.data


def _is_cast_weight(node: Any, operator: str, attribute: str, tensor: Tensor, frozen: set[Any]) -> bool:
    """Whether a tensor is the copy of a frozen weight that autocast made, which can be made again."""
    argument = needs.argument_of(operator, attribute)
    if argument is None or needs.wants(node, argument):
        return False
    return any(
        shape in (tensor.shape, tensor.shape[::-1]) and dtype != tensor.dtype for shape, dtype in frozen
    )


def _report(model: nn.Module, storages: list[_Storage]) -> WasteReport:
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    modules: defaultdict[str, list[_Storage]] = defaultdict(list)
    together: defaultdict[tuple[str, ...], list[_Storage]] = defaultdict(list)
    for storage in storages:
        modules[storage.module].append(storage)
        together[_operators([storage])].append(storage)
    rows = [WasteRow(name, kinds[name], _operators(of), *_totals(of)) for name, of in modules.items()]
    holders = [Holders(operators, len(of), *_totals(of)) for operators, of in together.items()]

    def order(row: WasteRow | Holders) -> tuple[int, int]:
        return -row.wasted_bytes, -row.saved_bytes

    return WasteReport(tuple(sorted(rows, key=order)), tuple(sorted(holders, key=order)), *_totals(storages))


def _operators(storages: list[_Storage]) -> tuple[str, ...]:
    return tuple(Counter(use.operator for storage in storages for use in storage.uses))


def _totals(storages: list[_Storage]) -> tuple[int, int, int]:
    return (
        sum(storage.nbytes for storage in storages),
        sum(storage.minimum for storage in storages),
        sum(storage.recompute for storage in storages),
    )
