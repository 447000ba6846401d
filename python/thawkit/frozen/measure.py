"""What autograd really saves in a forward pass, told apart by module."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from thawkit.errors import ThawkitError
from thawkit.frozen.deferred import plain
from thawkit.ops.frozen.packed import version_of


class ExampleError(ThawkitError):
    """A model fails on the example that it is to be measured on; ``__cause__`` is what it raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"example: the model fails on it: {type(cause).__name__}: {cause}")


Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def saved_by_module(
    model: nn.Module,
    example: Example,
    evaluating: Set[nn.Module],
    outputs: list[Any] | None = None,
    moved: set[str] | None = None,
) -> Counter[str]:
    """Run one eager training-mode forward and count the bytes that autograd keeps for the backward pass.

    Storages are counted once, for the module that saved them first; parameters, buffers and the example,
    which exist anyway, are not. Afterwards modes, buffers and random state are as before.

    Args:
        model: run with its present ``requires_grad`` flags.
        example: the input, a tuple of inputs, or a mapping of keyword arguments.
        evaluating: the modules to hold in evaluation mode; all others train.
        outputs: a list that is to get the leaves of the model's output.
        moved: a set that is to get the names of the buffers that the forward changes.

    Returns:
        Bytes by the dotted name of the innermost module running at the time.
    """
    known = existing(model, example)
    held: dict[int, tuple[str, torch.UntypedStorage]] = {}  # a kept storage's address is not used again
    with training_modes(model, evaluating), running(model) as stack:

        def pack(tensor: Tensor) -> Tensor:
            address = storage_key(tensor)
            if address not in known and address not in held:
                held[address] = (stack[-1], tensor.untyped_storage())
            return tensor

        before = {} if moved is None else {n: b.detach().clone() for n, b in model.named_buffers()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = call_eagerly(model, example)
        if moved is not None:
            moved |= {n for n, b in model.named_buffers() if n in before and not _equal(b, before[n])}
    if outputs is not None:
        outputs += tree_leaves(output)
    saved: Counter[str] = Counter()
    for name, storage in held.values():
        saved[name] += storage.nbytes()
    return saved


def saved_alone(
    model: nn.Module, example: Example, evaluating: Set[nn.Module], modules: Set[nn.Module]
) -> set[nn.Module]:
    """Find which of ``modules`` save an output of theirs, in one such forward, that no other one saves."""
    names = {module: name for name, module in model.named_modules()}
    savers: defaultdict[int, set[str]] = defaultdict(set)
    held: list[torch.UntypedStorage] = []  # a kept storage's address is not used again
    results: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if module in modules:
            results.append((module, storage_key(plain(output))))

    handle = register_module_forward_hook(note)
    try:
        with training_modes(model, evaluating), running(model) as stack:

            def pack(tensor: Tensor) -> Tensor:
                savers[storage_key(tensor)].add(stack[-1])
                held.append(tensor.untyped_storage())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                call_eagerly(model, example)
    finally:
        handle.remove()
    return {module for module, key in results if savers.get(key) == {names[module]}}


def held_bytes(model: nn.Module, example: Example, evaluating: Set[nn.Module]) -> list[int]:
    """Run two training steps and measure the bytes that torch's allocator holds for the second, all along.

    What the first leaves behind, as weights laid out anew, is no part of them, nor is what was there before.
    Gradients of parameters count as soon as they are there. Instead of a loss, all outputs are summed. Modes,
    buffers, random state and ``grad`` stay as they are.

    Args:
        model: run with its present ``requires_grad`` flags.
        example: the input, a tuple of inputs, or a mapping of keyword arguments.
        evaluating: the modules to hold in evaluation mode; all others train.

    Raises:
        ThawkitError: the model holds no values, or checkpoints in a way that hides its gradients.
    """
    device = next((p.device.type for p in model.parameters()), "cpu")
    if device == "meta":
        raise ThawkitError("model: expected one with values; what a step takes shows only when it runs")
    with training_modes(model, evaluating):
        _step(model, example)
        with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            _step(model, example)
    assert recorded.profiler is not None
    changes = [
        event.nbytes()
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type().name.lower() == device
    ]
    return list(accumulate(changes, initial=0))


def _step(model: nn.Module, example: Example) -> None:
    """Forward and backward, without a change of ``grad``."""
    trains = [p for p in model.parameters() if p.requires_grad]
    try:
        output = call_eagerly(model, example)
        results = [y for y in tree_leaves(output) if isinstance(y, Tensor) and y.requires_grad]
        if results and trains:
            torch.autograd.grad(results, trains, [torch.ones_like(y) for y in results], allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" in str(error).lower():
            raise ThawkitError(
                "model: reentrant checkpoints take backward() only, which hides a step"
            ) from error
        raise


@contextmanager
def _silent() -> Iterator[None]:
    """Let torch's profiler not talk on standard error, unless it was asked to."""
    name = "KINETO_LOG_LEVEL"
    asked = name in os.environ
    os.environ.setdefault(name, "6")
    try:
        yield
    finally:
        if not asked:
            del os.environ[name]


def call_eagerly(model: nn.Module, example: Example) -> Any:
    """Call the model with gradients recorded, also where it was compiled."""
    with _uncompiled(), torch.enable_grad():
        if isinstance(example, Mapping):
            return model(**example)
        return model(*example) if isinstance(example, (tuple, list)) else model(example)


def train_except(model: nn.Module, evaluating: Set[nn.Module]) -> None:
    """Put all modules but ``evaluating`` in training mode, and those in evaluation mode."""
    for module in model.modules():
        module.training = module not in evaluating  # not train(): overridden ones have side effects


def existing(model: nn.Module, example: Example) -> set[int]:
    """Keys of the storages that exist without any forward: parameters, buffers and the example."""
    return {storage_key(t) for t in (*model.parameters(), *model.buffers(), *tensors_of(example))}


@contextmanager
def trial(model: nn.Module, example: Example, evaluating: Set[nn.Module]) -> Iterator[Any]:
    """Run the same forward and yield its output, for a backward pass inside the block."""
    with training_modes(model, evaluating):
        yield call_eagerly(model, example)


def guess_example(model: nn.Module) -> Tensor | None:
    """Make one blank image for a model whose first convolution is 2-d; None for any other.

    The size is what timm's or 🤗's configuration says, else 224 pixels.
    """
    stem = next((m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    if not isinstance(stem, nn.Conv2d) or stem.weight.is_meta:
        return None
    size = getattr(getattr(model, "config", None), "image_size", None)
    timm_config = getattr(model, "pretrained_cfg", None)
    if isinstance(timm_config, Mapping):
        size = timm_config.get("input_size", (224, 224))[-2:]
    height, width = size if isinstance(size, (tuple, list)) else (size or 224, size or 224)
    return stem.weight.new_zeros(1, stem.in_channels, height, width)


def tensors_of(example: Example) -> list[Tensor]:
    """The tensors of an example, in order."""
    inputs = dict(example) if isinstance(example, Mapping) else example  # 🤗's BatchEncoding is no dict
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def storage_key(tensor: Tensor) -> int:
    """What tells a tensor's storage apart while it lives; fake and meta tensors have no address."""
    return tensor.untyped_storage()._cdata


def _uncompiled() -> AbstractContextManager[None]:
    """Let what was compiled run eagerly; nothing was if nobody has imported the compiler, which is slow."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """Yield a stack whose top is the name of the module that runs."""
    names = {module: name for name, module in model.named_modules()}
    stack = [""]

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(names.get(module, stack[-1]))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def training_modes(model: nn.Module, evaluating: Set[nn.Module]) -> Iterator[None]:
    """Put the modules in training mode, and put back modes, buffers and random state at the end."""
    with undisturbed(model):
        train_except(model, evaluating)
        yield


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, as far as they hold anything."""
    return a.is_meta or isinstance(a, FakeTensor) or torch.equal(a, b)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put back modes, buffers and random state at the end.

    A buffer that is as it was is not written to, which would count as a change. One that a forward assigns
    anew (``self.mean = 0.9 * self.mean + ...``) is the former tensor again.
    """
    modes = [(module, module.training) for module in model.modules()]
    assigned = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, version_of(buffer), buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, named in assigned:
            module._buffers.update(named)
        with torch.no_grad():
            for buffer, version, value in buffers:
                if version_of(buffer) != version or not _equal(buffer, value):
                    buffer.copy_(value)
