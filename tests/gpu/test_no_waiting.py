"""Two operators alone make the CPU wait for the GPU; all launch on their tensors' device and current stream.

Tensors are fake ones of a CUDA device: they have shapes and no numbers, so that whoever reads a number of
theirs, which on a GPU would wait for it and could not be captured in a CUDA graph, is counted. What prepares
launches runs as it is; the launches themselves do nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

import thawkit

pytest.importorskip("triton")

from tests.gpu.calls import CALLS
from tests.gpu_proof.cuda_host.host import glue
from tests.gpu_proof.triton_checks import interpreter
from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.ops import dispatch

STREAM = 1234
DEVICE = torch.device("cuda", 1)  # not the current one

# What torch.use_deterministic_algorithms refuses on CUDA, and what adds by atomics without it.
_REFUSED = {
    *("put", "index_reduce", "bincount", "histc", "kthvalue", "median", "nanmedian", "segment_reduce"),
    *("adaptive_avg_pool2d_backward", "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward"),
    *("avg_pool3d_backward", "nll_loss2d_forward", "nll_loss2d_backward"),
}
_BY_ATOMICS = {"index_add", "index_put", "scatter_add", "embedding_dense_backward"}
# Calls of torch's index_add: what adds numbers that differ to one place, and what adds one to each.
_ADD_IN_ANY_ORDER = {"supcon", "triplet_margin, hard", "mmd, classes"}
_ADD_ONE_TO_EACH = {"nt_xent_labels"}
# How often the CPU waits for a number after all, on the kernels and in plain PyTorch: for the bandwidths' and
# the rows' sizes, and for where the classes of a panel's anchors begin and end, in each direction.
_WAITS = {"permutation_sums": (2, 1), "nt_xent_labels": (4, 0)}
_READS = {getattr(torch.ops.aten, name).default for name in ("_local_scalar_dense", "item", "is_nonzero")}
_PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm")}
_COPIES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default

pytestmark = interpreter.required()


def _kernels() -> dict[Any, tuple[Callable, Callable]]:
    """What runs each operator of the namespace, and its fake, by the operator."""
    found = {}
    for module in [m for name, m in sys.modules.items() if name.startswith("thawkit.ops")]:
        for value in vars(module).values():
            if getattr(value, "__qualname__", "") == "define.<locals>.operator":
                names = inspect.getclosurevars(value).nonlocals
                inner = inspect.getclosurevars(names["on_its_device"]).nonlocals
                found[names["overload"]] = names["on_its_device"], inner["kernel"]
    return found


class Prepared(TorchDispatchMode):
    """Runs what an operator's call on a GPU runs up to its launches, in place of its fake kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = _kernels()
        self.copies: list[str] = []
        self.waits = 0
        self.called: set[str] = set()
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.kernels:
            wanted = func(*args, **kwargs)  # the fake ones, for outputs that nobody asked for
            with self:
                results = self.kernels[func][0](*args, **kwargs)
            if not isinstance(results, tuple):
                return results
            return tuple(b if a is None else a for a, b in zip(results, wanted, strict=True))
        if func in _READS:
            self.waits += 1
            return 1  # as good as any
        out = func(*args, **kwargs)
        self.called.add(func.overloadpacket.__name__.strip("_"))
        if func.overloadpacket in _PRODUCTS:
            self.products.add(out.dtype)
        places = {x.device.type for x in (*args, out) if isinstance(x, FakeTensor)}
        if func in _COPIES and len(places) > 1:
            self.copies.append(f"{func} of {tuple(out.shape)}")
        return out


class Launches:
    """Stands for the compiled module: launches nothing, remembers on what device and stream it would have."""

    def __init__(self) -> None:
        self.current = torch.device("cuda", 0)
        self.seen: list[tuple[str, torch.device, int]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.seen.append((name, self.current, arguments[-1]))

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before

    def triton(self, *arguments: Any, **options: Any) -> None:
        self.seen.append(("triton", self.current, STREAM))  # Triton takes the current device's stream


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    from triton.runtime.interpreter import InterpretedFunction

    launches = Launches()
    monkeypatch.setattr(thawkit, "_C", launches)
    monkeypatch.setattr(InterpretedFunction, "__getitem__", lambda kernel, grid: launches.triton)
    monkeypatch.setattr(torch.cuda, "device", launches.device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(dispatch, "_problems", {"cuda": "", "triton": ""})
    for module in glue():
        monkeypatch.setattr(module, "pointer", lambda x: 0 if x is None else 1)
    return launches


def _gradients(out: Tensor) -> list[Tensor]:
    """Run the backward pass node by node: autograd's engine asks CUDA for the device of fake tensors."""
    waiting: Counter[Any] = Counter()
    nodes = [out.grad_fn]
    for node in nodes:  # which grows
        for after, _ in node.next_functions:
            nodes += [after] if after is not None and not waiting[after] else []
            waiting[after] += 1
    received: dict[Any, dict[int, Tensor]] = {out.grad_fn: {out.output_nr: torch.ones_like(out)}}
    leaves, ready = [], [out.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            if hasattr(node, "variable"):
                leaves.append(received[node][0])
                continue
            for grad, (after, place) in _edges(node, _arrived(node, received[node])):
                seen = received.setdefault(after, {})
                grad = grad.sum_to_size(after._input_metadata[place].shape)  # as the engine does
                seen[place] = seen[place] + grad if place in seen else grad
                waiting[after] -= 1
                ready += [] if waiting[after] else [after]
    return leaves


def _arrived(node: Any, grads: dict[int, Tensor]) -> list[Tensor]:
    """What a node gets of each of its outputs: zeros where nothing came, as from the engine."""
    places = enumerate(node._input_metadata)
    return [
        grads[i] if i in grads else torch.zeros(m.shape, dtype=m.dtype, device=m.device) for i, m in places
    ]


def _edges(node: Any, arrived: list[Tensor]) -> Iterator[tuple[Tensor, tuple[Any, int]]]:
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    if isinstance(node, BackwardCFunction):  # has edges of tensors only
        found = [grad for grad in node.apply(*arrived) if grad is not None]
        return zip(found, edges, strict=True)
    found = node(*arrived)
    every = zip(found if isinstance(found, tuple) else (found,), node.next_functions, strict=True)
    return ((grad, edge) for grad, edge in every if edge[0] is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["triton", "cuda", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_read_from_the_device(name, backend, dtype, launches):
    call = CALLS[name]
    try:
        with FakeTensorMode(), Prepared() as mode, ops.use_backend(backend):
            given = [
                torch.empty(s, dtype=dtype, device=DEVICE, requires_grad=call.differentiable)
                for s in call.shapes
            ]
            out = call.function(*given)
            results = [out, *(_gradients(out) if call.differentiable else ())]
    except ThawkitError as error:
        if "was forced, but it" not in str(error):
            raise
        pytest.skip(str(error))
    assert all(x.device == DEVICE for x in results)
    assert not mode.copies
    assert mode.waits == _WAITS.get(name, (0, 0))[backend == "reference"]
    if backend == "reference":  # what torch's operators launch, and in what order, is torch's business
        return
    assert mode.products <= {torch.float32}  # else they would be rounded on the way to the kernels
    assert not mode.called & _REFUSED
    assert bool(mode.called & _BY_ATOMICS) == (name in _ADD_IN_ANY_ORDER | _ADD_ONE_TO_EACH)
    assert launches.seen
    assert {place for _, place, _ in launches.seen} == {DEVICE}
    assert {stream for _, _, stream in launches.seen} == {STREAM}
    assert launches.current == torch.device("cuda", 0)


def test_reading_would_be_noticed(launches):
    with FakeTensorMode(), Prepared() as mode:
        torch.empty(3, device=DEVICE).sum().item()
        assert mode.waits == 1
        torch.empty(2, device=DEVICE).tolist()
        assert mode.waits == 3


def test_copying_would_be_noticed(launches):
    with FakeTensorMode(), Prepared() as mode:
        torch.empty(3, device=DEVICE).cpu()
    assert mode.copies
