"""The focal losses: sigmoid and softmax."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.gpu_proof.triton_checks.family import Comparison, Family, Mutant, poisoned
from thawkit.ops.focal import reference

_ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
_BALANCED = {"positive": 0.25, "negative": 0.75}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sigmoid_truth(x: Tensor, t: Tensor, upstream: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Losses and gradients by the definition, of what the kernel takes."""
    x = x.double().requires_grad_()
    if t.dim() < x.dim():
        kept = (t != options.get("ignored", -77)).unsqueeze(-1)
        t = (t.unsqueeze(-1) == torch.arange(x.shape[-1])).double()
    else:
        kept, t = t != options.get("ignored", -77), t.double()
    kept = kept & options.get("mask", torch.tensor(True))
    positive, negative, pos_weight = options.get("positive", 1.0), options.get("negative", 1.0), 1.0
    if "classes" in options:
        period = options["period"]
        at = torch.arange(x.numel()) % period
        positive, negative, pos_weight = (c[at].double().reshape(x.shape) for c in options["classes"])
    smoothing, separate = options.get("smoothing", 0.0), options.get("separate", False)
    loss = reference.sigmoid_focal(
        x, t, positive, negative, options["gamma"], pos_weight, smoothing, separate
    )
    if "row_weight" in options:
        factor = options["row_weight"].double().repeat_interleave(options["row"])
        loss = loss * factor.reshape(x.shape)
    loss = loss.where(kept, 0)
    return loss.detach(), torch.autograd.grad((loss * upstream.double()).sum(), x)[0]


def _sigmoid_compared(
    kernels: ModuleType, x: Tensor, t: Tensor, tolerance: float, options: dict[str, Any]
) -> list[Comparison]:
    """Every output in turn: losses; their sum and its gradient; an elementwise upstream gradient."""
    call = partial(kernels.sigmoid_focal, x, t, **{"positive": 1.0, "negative": 1.0, **options})
    upstream = _random(*x.shape, seed=9).to(x.dtype)
    loss, grad, of_total = (poisoned(*x.shape, dtype=x.dtype) for _ in range(3))
    total, divisor = poisoned(kernels.sigmoid_programs(x.numel())), torch.tensor(7.0)
    call(kernels.Outputs(loss=loss))
    call(kernels.Outputs(grad=grad, upstream=upstream))
    call(kernels.Outputs(total=total, grad=of_total, factor=0.5, divisor=divisor))
    losses, gradients = _sigmoid_truth(x, t, upstream, options)
    _, of_sum = _sigmoid_truth(x, t, torch.full(x.shape, 0.5 / 7), options)
    return [
        Comparison("losses", loss, losses, tolerance),
        Comparison("gradient", grad, gradients, tolerance),
        Comparison("sum", total.sum(), losses.sum(), 2e-6),
        Comparison("gradient of the sum", of_total, of_sum, tolerance),
    ]


def _sigmoid(
    kernels: ModuleType, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, spread: float = 3.0,
    indices: bool = False, **options: Any,
) -> list[Comparison]:  # fmt: skip
    x = (_random(*shape) * spread).to(dtype)
    if indices:
        t = torch.arange(shape[:-1].numel() if isinstance(shape, torch.Size) else x[..., 0].numel())
        t = (t % (shape[-1] + 1) - 1).reshape(shape[:-1])
    else:
        t = (_random(*shape, seed=1) > 0).to(dtype) * (1.0 if "ignored" in options else 0.9) + 0.0
    return _sigmoid_compared(kernels, x, t, _ROUNDING[dtype], {**_BALANCED, "gamma": 2.0, **options})


def _tails(kernels: ModuleType, gamma: float) -> list[Comparison]:
    """Each logit is compared by itself: a small loss next to large ones is not to vanish."""
    compared = []
    for logit in (-20.0, -9.0, 0.0, 9.0, 20.0):
        for target in (0.0, 1.0):
            x, t = torch.full((3,), logit), torch.full((3,), target)
            compared += _sigmoid_compared(kernels, x, t, 2e-5, {**_BALANCED, "gamma": gamma})
    return compared


def _far(kernels: ModuleType) -> list[Comparison]:
    count = (1 << 31) + 5
    x = torch.empty(count, dtype=torch.bfloat16)
    t, grad = torch.empty_like(x), torch.empty_like(x)
    ends = slice(-5, None)
    x[ends], t[ends] = _random(5).bfloat16(), 1.0
    grad[ends] = torch.nan
    kernels.sigmoid_focal(x, t, kernels.Outputs(grad=grad), gamma=2.0, **_BALANCED)
    _, truth = _sigmoid_truth(x[ends], t[ends], torch.ones(5), {"gamma": 2.0, **_BALANCED})
    return [Comparison("the last gradients", grad[ends], truth, 8e-3)]


def _softmax_compared(
    kernels: ModuleType, x: Tensor, t: Tensor, tolerance: float, options: dict[str, Any]
) -> list[Comparison]:
    positions = x.shape[:1] + x.shape[2:]
    upstream = _random(*positions, seed=9)
    wide = x.double().requires_grad_()
    vectors = {name: options.get(name) for name in ("alpha", "offset", "margin")}
    losses = reference.softmax_focal(
        wide, t if not t.is_floating_point() else t.double(), vectors["alpha"], options["gamma"],
        options.get("smoothing", 0.0), options.get("ignored", -100), options.get("scale", 1.0),
        vectors["offset"], vectors["margin"],
    )  # fmt: skip
    gradients = [
        torch.autograd.grad((losses * g.double()).sum(), wide, retain_graph=True)[0]
        for g in (upstream, torch.full(positions, 0.5 / 7))
    ]
    call = partial(kernels.softmax_focal, x, t, **options)
    loss, total = (
        poisoned(*positions),
        poisoned(kernels.softmax_programs(x.shape[0], x.shape[1], x.shape[2:].numel())),
    )
    grad, of_total = (poisoned(*x.shape, dtype=x.dtype) for _ in range(2))
    call(kernels.Outputs(loss=loss))
    call(kernels.Outputs(grad=grad, upstream=upstream))
    call(kernels.Outputs(total=total, grad=of_total, factor=0.5, divisor=torch.tensor(7.0)))
    return [
        Comparison("losses", loss, losses.detach(), 2e-6),
        Comparison("gradient", grad, gradients[0], tolerance),
        Comparison("sum", total.sum(), losses.detach().sum(), 2e-6),
        Comparison("gradient of the sum", of_total, gradients[1], tolerance),
    ]


def _softmax(
    kernels: ModuleType, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, spread: float = 3.0,
    probable: bool = False, **options: Any,
) -> list[Comparison]:  # fmt: skip
    x = (_random(*shape) * spread).to(dtype)
    positions = shape[:1] + shape[2:]
    if probable:
        t = _random(*shape, seed=1).softmax(1).to(dtype)
    else:
        t = torch.randint(shape[1], positions, generator=torch.Generator().manual_seed(1))
        if t.numel() > 1:
            t.view(-1)[0] = options.get("ignored", -100)
    return _softmax_compared(kernels, x, t, _ROUNDING[dtype], {"gamma": 2.0, **options})


def _sure(kernels: ModuleType, gamma: float, classes: int) -> list[Comparison]:
    """A target whose probability is near 1: 1 less it is not to cancel."""
    compared = []
    for margin in (12.0, 20.0):
        x, t = torch.zeros(2, classes), torch.tensor([classes // 2, 0])
        x[:, classes // 2] = margin
        x[:, -1] = 5.0
        options = {"gamma": gamma}
        for row in (slice(0, 1), slice(1, 2)):
            compared += _softmax_compared(kernels, x[row], t[row], 2e-5, options)
    return [c._replace(tolerance=2e-5) for c in compared]


def _unknown_class(kernels: ModuleType) -> list[Comparison]:
    """Such a target has no margin to read either, and its gradients are no numbers."""
    x, t, upstream = _random(3, 5), torch.tensor([1, 5, -1]), torch.tensor([0.5, 1.0, 2.0])
    loss, grad, margin = poisoned(3), torch.zeros(3, 5), torch.linspace(0.1, 0.5, 5)
    out = kernels.Outputs(loss=loss, grad=grad, upstream=upstream)
    kernels.softmax_focal(x, t, out, gamma=0.0, margin=margin)
    known = x[:1].double().requires_grad_()
    first = reference.softmax_focal(known, t[:1], None, 0.0, margin=margin)
    gradient = torch.full((3, 5), torch.nan).double()
    gradient[:1] = torch.autograd.grad(0.5 * first.sum(), known)[0]
    losses = torch.tensor([first.item(), torch.nan, torch.nan])
    return [Comparison("losses", loss, losses, 2e-6), Comparison("gradient", grad, gradient, 2e-6)]


def _margins_of_no_class(kernels: ModuleType) -> list[Comparison]:
    """Probabilities name no class, so that there is no margin to read."""
    x, t, loss = _random(3, 5), _random(3, 5, seed=1).softmax(1), poisoned(3)
    kernels.softmax_focal(x, t, kernels.Outputs(loss=loss), gamma=2.0, margin=torch.ones(5))
    return [Comparison("losses", loss, reference.softmax_focal(x.double(), t.double(), None, 2.0), 2e-6)]


def _far_softmax(kernels: ModuleType) -> list[Comparison]:
    samples, classes, inner = 2, 33, 1 << 26
    x, t = (
        torch.empty(samples, classes, inner, dtype=torch.bfloat16),
        torch.empty(samples, inner, dtype=torch.int64),
    )
    grad = torch.empty_like(x)
    ends = slice(-64, None)
    for sample, part in ((0, slice(0, 64)), (1, ends)):
        x[sample, :, part], t[sample, part] = _random(classes, 64).bfloat16(), torch.arange(64) % 33
        grad[sample, :, part] = torch.nan
    kernels.softmax_focal(x, t, kernels.Outputs(grad=grad), gamma=2.0)
    wide = x[1:, :, ends].double().requires_grad_()
    truth = torch.autograd.grad(reference.softmax_focal(wide, t[1:, ends], None, 2.0).sum(), wide)[0]
    return [Comparison("the last gradients", grad[1:, :, ends], truth, 8e-3)]


_MASK = _random(70, 37, seed=4) > 0
_CLASSES = torch.rand(3, 37 + 11, generator=torch.Generator().manual_seed(5))
_CLASSES[:, 37:] = _CLASSES[:, :11]
_ALPHA = torch.rand(37, generator=torch.Generator().manual_seed(6))
_OPTIONS: dict[str, dict[str, Any]] = {
    **{f"gamma {gamma}": {"gamma": gamma} for gamma in (0.0, 0.5, 1.0, 3.3)},
    "mask": {"mask": _MASK},
    "smoothing": {"smoothing": 0.2},
    "separate": {"separate": True},
    "separate, gamma 0.5": {"separate": True, "gamma": 0.5},
    "ignored": {"ignored": 1.0},
    "class weights": {"classes": _CLASSES, "period": 37},
    "row weights": {"row_weight": torch.rand(10), "row": 7 * 37},
    "indices": {"indices": True},
    "indices, one ignored": {"indices": True, "ignored": 2.0, "row_weight": torch.rand(70), "row": 37},
}
_SOFTMAX_OPTIONS: dict[str, dict[str, Any]] = {
    **{f"gamma {gamma}": {"gamma": gamma} for gamma in (0.0, 0.5, 1.0, 3.3)},
    "alpha": {"alpha": _ALPHA},
    "smoothing": {"smoothing": 0.2},
    "offset and scale": {"offset": _random(37, seed=7), "scale": 1.7},
    "margin": {"margin": _ALPHA},
    "probabilities": {"probable": True, "alpha": _ALPHA},
    "another ignored class": {"ignored": 3},
}


def _sigmoid_configuration(kernels: ModuleType, dtype: torch.dtype, **options: Any) -> None:
    n = 1 << 14
    x = torch.empty(n // 64, 64, dtype=dtype)
    t = torch.empty(n // 64, dtype=torch.int64) if options.pop("indices", False) else x
    call = partial(kernels.sigmoid_focal, x, t, **{**_BALANCED, "gamma": 2.0, **options})
    total = torch.empty(kernels.sigmoid_programs(n))
    if set(options) <= {"gamma"}:
        call(kernels.Outputs(loss=x))
        call(kernels.Outputs(grad=x, upstream=x))
    call(kernels.Outputs(total=total, grad=x, divisor=torch.empty(())))


def _softmax_configuration(
    kernels: ModuleType, shape: tuple[int, ...], dtype: torch.dtype, **options: Any
) -> None:
    x = torch.empty(shape, dtype=dtype)
    positions = shape[:1] + shape[2:]
    t = x if options.pop("probable", False) else torch.empty(positions, dtype=torch.int64)
    call = partial(kernels.softmax_focal, x, t, **{"gamma": 2.0, **options})
    total = torch.empty(kernels.softmax_programs(shape[0], shape[1], x[0, 0].numel()))
    call(kernels.Outputs(total=total, grad=x))
    if not options:
        call(kernels.Outputs(loss=torch.empty(positions)))


_VECTOR = torch.empty(64)
_MUTANTS = {
    "logits past the last are stored": Mutant("loss, mask=inside)\n    if TOTAL", "loss)\n    if TOTAL"),
    "gradients past the last are stored": Mutant(
        "tl.where(kept, slope, 0.0), mask=inside)", "tl.where(kept, slope, 0.0))"
    ),
    "sigmoid past: int32 offsets": Mutant("WIDE=x.numel() > _WIDE", "WIDE=False"),
    "p from the wrong tail": Mutant("q = tl.where(x >= 0.0, smaller, larger)", "q = 1.0 - p"),
    "softplus cancels": Mutant("softplus = log1p(e)", "softplus = tl.log(1.0 + e)"),
    "no exponent but 0, 1 and 2": Mutant("gamma in (0.0, 1.0, 2.0) else -1", "gamma < 3 else 2"),
    "a slope that is no number at 0": Mutant(
        "tl.where(miss > 0.0, p * q / tl.where(miss > 0.0, miss, 1.0), 0.0)", "p * q / miss"
    ),
    "the mask is forgotten in the gradient": Mutant(
        "tl.store(Grad + at, tl.where(kept, slope, 0.0)", "tl.store(Grad + at, slope"
    ),
    "ignored targets count": Mutant("kept = kept & (t != ignored)", "kept = kept"),
    "ignored indices count": Mutant("kept = kept & (index.to(tl.float32) != ignored)", "kept = kept"),
    "weights of the wrong class": Mutant("column = at % period", "column = at // period"),
    "pos_weight from the negatives": Mutant("Classes + 2 * table + column", "Classes + table + column"),
    "row weights of the wrong row": Mutant("RowWeight + at // row", "RowWeight + at % row"),
    "row weights are not in the gradient": Mutant("        slope *= weight\n", ""),
    "smoothing in the focal factor": Mutant(
        "miss = p * (1.0 - t) + q * t", "miss = p * (1.0 - soft) + q * soft"
    ),
    "no divisor": Mutant("        slope /= tl.load(Divisor)\n", ""),
    "no factor": Mutant("            slope *= factor\n", "            slope *= 1.0\n"),
    "all programs write one sum": Mutant(
        "tl.store(Partial + program, tl.sum(loss, 0))", "tl.store(Partial, tl.sum(loss, 0))"
    ),
    "too few sigmoid programs": Mutant("return triton.cdiv(count, _BLOCK)", "return max(1, count // _BLOCK)"),
    "a missing gamma in separate": Mutant("power * miss + gamma * hit * loss", "power * miss + hit * loss"),
    "softmax: classes past the last count": Mutant(
        'return column, at, there, tl.where(column[None, :] < classes, z, -float("inf"))',
        "return column, at, there, z",
    ),
    "softmax: gradients past the last are stored": Mutant(
        "written = inside[:, None] & (column[None, :] < classes)",
        "written = inside[:, None] & (column[None, :] <= classes)",
    ),
    "softmax of many: other sums are not rescaled": Mutant(
        "tl.where(first, 0.0, before) + below", "tl.where(first, 0.0, others + 1.0) + below"
    ),
    "softmax of many: the old maximum is lost": Mutant("before = (others + 1.0) *", "before = others *"),
    "softmax, sure: 1 - p cancels": Mutant(
        "tl.where(distance == 0.0, (others / (1.0 + others))[:, None], 1.0 - p)", "1.0 - p"
    ),
    "softmax: no sum over the classes": Mutant(
        "slope * miss - p * (slopes[:, None] - slope)", "slope * miss"
    ),
    "softmax, sure: the gradient cancels": Mutant(
        "slope * miss - p * (slopes[:, None] - slope)", "slope - p * slopes[:, None]"
    ),
    "softmax of many: no sum over many classes": Mutant("slopes += tl.sum(", "slopes = tl.sum("),
    "softmax, offset: gradient without the scale": Mutant("(upstream * scale)[:, None]", "upstream[:, None]"),
    "softmax of many: gradient of many classes without the scale": Mutant(
        "(upstream * scale)[:, None]", "upstream[:, None]", occurrence=1
    ),
    "softmax: ignored positions count": Mutant("counts = counts & (target != ignored)", "counts = counts"),
    "softmax, unknown: gives a number": Mutant('tl.where(known, loss, float("nan"))', "loss"),
    "softmax, unknown: its gradient is a number": Mutant(
        'tl.where(known, upstream, float("nan"))', "upstream"
    ),
    "softmax, unknown: reads before the margins": Mutant(
        "mask=counts & known, other=0.0)", "mask=counts, other=0.0)"
    ),
    "softmax, probabilities and margins: reads before them": Mutant(
        "if MARGIN and not PROBABLE:", "if MARGIN:"
    ),
    "softmax, margin: of every class": Mutant(
        "tl.where(column[None, :] == target[:, None], margin[:, None], 0.0)", "margin[:, None]"
    ),
    "softmax past: int32 samples": Mutant(
        "(tl.program_id(0) // blocks).to(tl.int64)", "tl.program_id(0) // blocks"
    ),
    "softmax: blocks overlap": Mutant(
        "tl.program_id(0) % blocks * BLOCK_P", "tl.program_id(0) % blocks * (BLOCK_P // 2)"
    ),
    "softmax: stride of neighbours": Mutant(
        "column[None, :].to(tl.int64) * inner", "column[None, :].to(tl.int64)"
    ),
    "softmax, smoothing: adds no class": Mutant(
        "(1.0 - smoothing) * t + smoothing / classes", "(1.0 - smoothing) * t"
    ),
    "softmax, alpha: slopes without it": Mutant(
        "weight *= tl.load(Alpha + column, mask=column < classes, other=0.0)[None, :]", "weight *= 1.0"
    ),
}

FAMILY = Family(
    name="focal",
    file="focal.py",
    problems={
        **{
            f"sigmoid {'x'.join(map(str, shape))} {str(dtype)[6:]}": partial(_sigmoid, shape=shape, dtype=dtype)
            for shape in ((1024,), (70, 37))
            for dtype in _ROUNDING
        },
        **{
            f"sigmoid, {name}": partial(_sigmoid, shape=(70, 37), **options)
            for name, options in _OPTIONS.items()
        },
        "sigmoid 1": partial(_sigmoid, shape=(1,)),
        "sigmoid, far tails": partial(_sigmoid, shape=(70, 37), spread=60.0),
        **{f"sigmoid, tails, gamma {gamma}": partial(_tails, gamma=gamma) for gamma in (2.0, 0.5)},
        **{
            f"softmax {'x'.join(map(str, shape))} {str(dtype)[6:]}": partial(_softmax, shape=shape, dtype=dtype)
            for shape in ((1, 1), (130, 37), (3, 5, 70), (2, 40, 9, 11), (3, 3000))
            for dtype in _ROUNDING
        },
        **{
            f"softmax, {name}, {len(shape) - 2} axes": partial(_softmax, shape=shape, **options)
            for name, options in _SOFTMAX_OPTIONS.items()
            for shape in ((70, 37), (2, 37, 70))
        },
        "softmax of many classes, scaled": partial(_softmax, shape=(2, 2500), scale=1.7),
        "softmax, rising logits": lambda kernels: _softmax_compared(
            kernels, torch.linspace(-30, 30, 4500)[None], torch.tensor([4000]), 2e-6, {"gamma": 0.5}
        ),
        **{
            f"softmax, sure of {classes} classes, gamma {gamma}": partial(_sure, gamma=gamma, classes=classes)
            for gamma, classes in ((2.0, 5), (0.5, 5), (2.0, 2100))
        },
        "softmax, unknown class": _unknown_class,
        "softmax, probabilities and margins": _margins_of_no_class,
    },
    configurations={
        **{
            f"sigmoid {str(dtype)[6:]}, gamma {gamma}": partial(_sigmoid_configuration, dtype=dtype, gamma=gamma)
            for dtype in _ROUNDING
            for gamma in (2.0, 1.5)
        },
        "sigmoid, classes and rows": partial(
            _sigmoid_configuration, dtype=torch.bfloat16, classes=torch.empty(3, 64), period=64,
            row_weight=torch.empty(256), row=64,
        ),
        "sigmoid, indices and mask": partial(
            _sigmoid_configuration, dtype=torch.bfloat16, indices=True, ignored=1.0,
            mask=torch.empty(256, 64, dtype=torch.bool),
        ),
        "sigmoid, separate": partial(_sigmoid_configuration, dtype=torch.bfloat16, separate=True),
        **{
            f"softmax {'x'.join(map(str, shape))} {str(dtype)[6:]}": partial(
                _softmax_configuration, shape=shape, dtype=dtype
            )
            for shape in ((256, 64), (256, 1024), (64, 32000), (8, 16, 4096), (8, 80, 4096))
            for dtype in ((torch.float32, torch.bfloat16) if shape[1] == 1024 else (torch.bfloat16,))
        },
        "softmax, everything": partial(
            _softmax_configuration, shape=(256, 64), dtype=torch.float16, gamma=1.5, alpha=_VECTOR,
            offset=_VECTOR, margin=_VECTOR, scale=1.5, smoothing=0.1,
        ),
        "softmax, probabilities": partial(
            _softmax_configuration, shape=(256, 64), dtype=torch.bfloat16, probable=True, alpha=_VECTOR
        ),
    },
    mutants=_MUTANTS,
    huge={"sigmoid past 2^31": _far, "softmax past 2^31": _far_softmax},
)  # fmt: skip
