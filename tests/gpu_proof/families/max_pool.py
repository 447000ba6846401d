"""Max-pooling with codes of a few bits: torch's values and gradients, and the bytes of the CPU kernel."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned
from thawkit.ops.frozen import cpu
from thawkit.ops.frozen.max_pool import _bits, _empty_input, _geometry, _indices, _outputs, _Windows

_STOCK = {2: F.max_pool2d, 3: F.max_pool3d}
_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_DTYPES = {torch.float32: 3e-7, torch.float16: 6e-4, torch.bfloat16: 5e-3}
_SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0])

# shape, then kernel_size, stride, padding, dilation, ceil_mode
_CASES = {
    "2": ((2, 3, 12, 10), 2, None, 0, 1, False),
    "3 by 2": ((2, 3, 13, 17), 3, 2, 1, 1, False),
    "mixed": ((2, 5, 7, 9), (2, 3), (1, 2), (1, 1), (2, 1), True),
    "overlapping": ((2, 8, 7, 9), 3, 1, 1, 1, False),
    "apart": ((1, 4, 20, 21), 5, 7, 0, 1, True),
    "of 256": ((1, 3, 20, 21), 16, 7, 8, 1, False),
    "of 1": ((2, 3, 6, 5), 1, 1, 0, 1, False),
    "dilated": ((2, 3, 9, 9), 2, 2, 1, 3, True),
    "volumes": ((1, 4, 5, 6, 9), (3, 2, 3), (2, 1, 2), 1, (1, 2, 1), True),
    "two programs": ((1, 5, 40, 40), 2, None, 0, 1, False),
}


def _input(case: str, values: str, dtype: torch.dtype, last: bool) -> tuple[Tensor, _Windows]:
    shape, *options = _CASES[case]
    generator = torch.Generator().manual_seed(len(case))
    x = torch.randn(shape, generator=generator).round()
    if values == "special":
        chosen = _SPECIAL[torch.randint(4, shape, generator=generator)]
        x = torch.where(torch.rand(shape, generator=generator) < 1 / 7, chosen, x)
    elif values == "-inf":
        x = torch.full(shape, -math.inf)
    x = x.to(dtype).contiguous(memory_format=_LAST[len(shape) - 2] if last else torch.contiguous_format)
    windows = _Windows.of(x, len(shape) - 2, *options)
    assert windows is not None
    return x, windows


def _forward(kernels: ModuleType, case: str, values: str, dtype: torch.dtype, last: bool) -> list[Comparison]:
    x, windows = _input(case, values, dtype, last)
    geometry = _geometry(x.shape, windows, last)
    outputs = [_outputs(x, windows) for _ in range(2)]
    for y, codes in outputs:
        y.fill_(math.nan)
        codes.fill_(0xA5)
    (y, codes), (_, of_codes) = outputs
    kernels.max_pool(x, y, codes, geometry)
    cpu.max_pool(x, *outputs[1], geometry)
    # of contiguous memory: of channels-last volumes of -inf torch names another element
    _, *options = _CASES[case]
    truth, index = _STOCK[x.dim() - 2](x.contiguous(), *options, return_indices=True)
    got = _indices(codes, tuple(y.shape), list(x.shape[2:]), last, windows)
    return [
        Comparison("values", y, truth, 0.0),
        Comparison("places", got, index, 0.0),
        Comparison("codes", codes, of_codes, 0.0),
    ]


def _backward(kernels: ModuleType, case: str, dtype: torch.dtype, last: bool) -> list[Comparison]:
    x, windows = _input(case, "ties", dtype, last)
    geometry = _geometry(x.shape, windows, last)
    y, codes = _outputs(x, windows)
    cpu.max_pool(x, y, codes, geometry)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    g = g.contiguous(memory_format=_LAST[x.dim() - 2] if last else torch.contiguous_format)
    dx = _empty_input(g, list(x.shape[2:]), last).fill_(math.nan)
    kernels.max_pool_backward(g, dx, codes, geometry)
    index = _indices(codes, tuple(y.shape), list(x.shape[2:]), last, windows).flatten(2)
    truth = torch.zeros(x.shape, dtype=torch.float64).flatten(2)
    truth = truth.scatter_add(2, index, g.double().flatten(2)).view(x.shape)
    return [Comparison("gradient", dx, truth, _DTYPES[dtype])]


def _infinite(kernels: ModuleType) -> list[Comparison]:
    """An upstream gradient that is infinite reaches one element, and 0 times it none."""
    x, windows = _input("overlapping", "ties", torch.float32, False)
    geometry = _geometry(x.shape, windows, False)
    y, codes = _outputs(x, windows)
    cpu.max_pool(x, y, codes, geometry)
    g = torch.ones_like(y)
    g[0, 0, 3, 3] = math.inf
    dx, truth = poisoned(*x.shape), torch.empty_like(x)
    kernels.max_pool_backward(g, dx, codes, geometry)
    cpu.max_pool_backward(g, truth, codes, geometry)
    return [Comparison("gradient", dx, truth, 0.0)]


def _far(kernels: ModuleType, last: bool) -> list[Comparison]:
    """Pairs of planes of two rows of four numbers, in windows of 2 x 2, the last of them."""
    pairs, out_of_pair = (1 << 27) + 9, 1 if last else 2
    windows = _Windows([1, 2], [2, 2], [2, 2], [0, 0], [1, 1])
    assert _bits(windows.kernel) == 2
    x, dx = (torch.empty(pairs * 16, dtype=torch.bfloat16) for _ in range(2))
    y, codes = (
        torch.empty(pairs * 4, dtype=torch.bfloat16),
        torch.empty(pairs * out_of_pair, dtype=torch.uint8),
    )

    def planes(memory: Tensor, *size: int) -> Tensor:
        part = memory[-4 * 2 * math.prod(size) :]
        return part.view(4, *size, 2).movedim(-1, 1) if last else part.view(4, 2, *size)

    x[-64:] = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    y[-16:], dx[-64:], codes[-4 * out_of_pair :] = math.nan, math.nan, 0xA5
    geometry = _geometry((pairs, 2, 2, 4), windows, last)
    kernels.max_pool(x, y, codes, geometry)
    truth, index = F.max_pool2d(planes(x, 2, 4).contiguous(), 2, return_indices=True)
    got = _indices(codes[-4 * out_of_pair :], (4, 2, 1, 2), [2, 4], last, windows)
    kernels.max_pool_backward(y, dx, codes, geometry)
    handed = torch.zeros(4, 2, 8).scatter_add(2, index.flatten(2), truth.float().flatten(2)).view(4, 2, 2, 4)
    return [
        Comparison("the last values", planes(y, 1, 2), truth, 0.0),
        Comparison("the last places", got, index, 0.0),
        Comparison("the last gradients", planes(dx, 2, 4), handed, 0.0),
    ]


def _configuration(kernels: ModuleType, dtype: torch.dtype, options: tuple, last: bool) -> None:
    x = torch.empty(8, 64, 56, 56, dtype=dtype)
    windows = _Windows.of(x, 2, *options)
    assert windows is not None
    y, codes = torch.empty(8, 64, *windows.out, dtype=dtype), torch.empty(1 << 20, dtype=torch.uint8)
    geometry = _geometry(x.shape, windows, last)
    kernels.max_pool(x, y, codes, geometry)
    kernels.max_pool_backward(y, x, codes, geometry)


_MUTANTS = {
    "forward: before the first row": Mutant("valid = valid & (at_h >= 0)", "valid = valid"),
    "forward: past the last column": Mutant(" & (at_w < size_w)", ""),
    "forward: the last of equal maxima": Mutant("value > best", "value >= best"),
    "forward: NaN is no maximum": Mutant(" | (value != value)", ""),
    "forward: no code for -inf": Mutant("(code < 0) | ", ""),
    "forward dilated: without dilation": Mutant("number % KERNEL_W * dilation_w", "number % KERNEL_W"),
    "forward: without padding": Mutant("h = h * stride_h - padding_h", "h = h * stride_h"),
    "forward: rows for columns": Mutant("number // KERNEL_W % KERNEL_H", "number % KERNEL_H"),
    "forward: values past the last": Mutant("(byte < bytes) & (index < codes)", "byte < bytes"),
    "forward: codes the other way round": Mutant("shifts = tl.arange(0, each) * BITS", "shifts = (each - 1 - tl.arange(0, each)) * BITS"),
    "forward: bytes past the last": Mutant("tl.store(Codes + to, code.to(tl.uint8), mask=to < bytes)", "tl.store(Codes + to, code.to(tl.uint8))"),
    "forward: groups without bytes of their own": Mutant("return groups, triton.cdiv(codes * bits, 8), codes", "return groups, max(1, codes * bits // 8), codes"),
    "forward: codes past the last of a group": Mutant("code = tl.where(there, code, 0)", "code = code"),
    "forward two programs: too few programs": Mutant("groups * per_group * (8 // bits), _BLOCK)", "groups * per_group * (8 // bits), 2 * _BLOCK)"),
    "past: int32 offsets": Mutant("WIDE=max(x.numel(),", "WIDE=0 * max(x.numel(),"),
    "past: int32 offsets of gradients": Mutant("WIDE=max(dx.numel(),", "WIDE=0 * max(dx.numel(),"),
    "backward: windows before the first": Mutant("(o >= 0) & ", ""),
    "backward: past a window's reach": Mutant(" & (distance <= (KERNEL - 1) * dilation)", ""),
    "backward: between dilated elements": Mutant(" & (distance % dilation == 0)", ""),
    "backward: one window too few": Mutant("(d * (k - 1)) // s + 1", "max(1, (d * (k - 1)) // s)"),
    "backward: past the last window": Mutant("tl.minimum((i + padding) // stride, out - 1)", "((i + padding) // stride)"),
    "backward: whatever the code": Mutant("held & (code == (kd", "held & (code >= 0 * (kd"),
    "backward: the wrong bits": Mutant("(index & (each - 1)) * BITS", "(index & (each - 1))"),
    "backward: the last window alone": Mutant("dx += tl.load(G", "dx = tl.load(G"),
    "backward: past the last": Mutant("tl.store(DX + at, dx, mask=there)", "tl.store(DX + at, dx)"),
    "backward: channels of neighbours": Mutant("index = ow * channels + c", "index = ow * channels"),
}  # fmt: skip

FAMILY = Family(
    name="frozen max-pool",
    file="max_pool.py",
    problems={
        **{
            f"forward {case}, {values}, {'channels-last' if last else 'contiguous'}, {str(dtype)[6:]}": partial(
                _forward, case=case, values=values, dtype=dtype, last=last
            )
            for case in _CASES
            for last in (False, True)
            for values, dtype in zip(("ties", "special", "-inf"), _DTYPES, strict=True)
        },
        **{
            f"backward {case}, {'channels-last' if last else 'contiguous'}, {str(dtype)[6:]}": partial(
                _backward, case=case, dtype=dtype, last=last
            )
            for number, case in enumerate(_CASES)
            for last in (False, True)
            for dtype in (list(_DTYPES) if case == "mixed" else [list(_DTYPES)[(number + last) % 3]])
        },
        "backward, infinite": _infinite,
    },
    configurations={
        f"{str(dtype)[6:]}, {name}, {'channels-last' if last else 'contiguous'}": partial(
            _configuration, dtype=dtype, options=options, last=last
        )
        for name, options in (
            ("2 by 2", (2, None, 0, 1, False)), ("3 by 2", (3, 2, 1, 1, False)), ("5 by 1", (5, 1, 2, 1, False)),
        )
        for dtype, last in ((torch.float32, False), (torch.bfloat16, True))
    },
    mutants=_MUTANTS,
    scattered=frozenset({"_forward", "_backward"}),
    huge={f"past 2^31, {'channels-last' if last else 'contiguous'}": partial(_far, last=last) for last in (False, True)},
)  # fmt: skip
