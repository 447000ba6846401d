"""What autograd really saves in a forward pass, told apart by module."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from thawkit.errors import ThawkitError
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

    A buffer that is as it was is not written to, which would count as a change.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, version_of(buffer), buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, version, value in buffers:
                if version_of(buffer) != version or not _equal(buffer, value):
                    buffer.copy_(value)
