"""csrc/cuda/softmax_focal.cu: the softmax focal loss and its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thawkit.ops.focal import cuda, reference
from thawkit.ops.focal.softmax_operators import Options

from .registry import DTYPES, UNIT, Run, check, close, elements_of, last_stride, same, virtual

# positions, classes, positions of a sample next to each other
SHAPES = [(1, 1), (9, 2), (300, 5), (3, 16), (3, 17), (9, 100), (2, 7, 3, 5), (1, 40, 300)]
# the fast exponential, and what is 1 less a probability
ERROR = 4e-6


def options(gamma: float, **given: object) -> Options:
    usual = Options(None, None, None, 1.0, gamma, 0.0, -100, "cuda")
    return usual._replace(**given)


def truth(x: Tensor, t: Tensor, o: Options, upstream: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    wide = x.double().requires_grad_()
    vectors = [None if v is None else v.double() for v in (o.alpha, o.offset, o.margin)]
    alpha, offset, margin = vectors
    t = t.double() if t.is_floating_point() else t
    loss = reference.softmax_focal(wide, t, alpha, o.gamma, o.smoothing, o.ignored, o.scale, offset, margin)
    (grad,) = torch.autograd.grad((loss * upstream).sum(), wide)
    return loss.detach(), grad


def targets(shape: tuple[int, ...], kind: str) -> tuple[Tensor, dict[str, object]]:
    """Targets of a kind, and the options that go with it."""
    positions, classes = (shape[0], *shape[2:]), shape[1]
    if kind == "probabilities":
        return torch.randn(shape).softmax(1).half(), {"alpha": torch.rand(classes) + 0.5}
    t = torch.randint(classes, positions)
    if kind == "plain":
        return t, {}
    t[torch.rand(positions) < 0.3] = -7
    vectors = {
        "alpha": torch.rand(classes) + 0.5,
        "offset": torch.randn(classes),
        "margin": torch.rand(classes),
    }
    smoothing = 0.1 if kind == "smoothed" else 0.0
    return t, {**vectors, "scale": 1.5, "smoothing": smoothing, "ignored": -7}


@check(
    "softmax_focal", shape=SHAPES, dtype=DTYPES, kind=["plain", "options", "smoothed", "probabilities"],
    gamma=[0.0, 1.0, 2.0, 1.5],
)  # fmt: skip
def losses_and_gradients(run: Run, shape: tuple, dtype: torch.dtype, kind: str, gamma: float) -> None:
    x = (torch.randn(shape) * 3).to(dtype)
    t, given = targets(shape, kind)
    o = options(gamma, **given)
    upstream = torch.randn(shape[0], *shape[2:])
    with run(seed=len(kind)):
        rows = cuda.softmax_rows(x, t, o)
        total, grad = cuda.softmax_total(x, t, o, 0.5, torch.tensor(4.0), True)
        _, half = cuda.softmax_total(x, t, o, 0.5, None, True)
        backward = cuda.softmax_backward(upstream, x, t, o)
    loss, slope = truth(x, t, o)
    close(rows, loss, 2 * ERROR, 2e-6)
    close(half, 0.5 * slope, UNIT[dtype] + 4 * ERROR, 4e-6)
    close(total, 0.125 * loss.sum(), 1e-5, 1e-6)
    close(grad, 0.125 * slope, UNIT[dtype] + 4 * ERROR, 2e-6)
    close(backward, truth(x, t, o, upstream.double())[1], UNIT[dtype] + 4 * ERROR, 1e-5)


@check("softmax_focal", classes=[3, 40], gamma=[0.0, 2.0])
def a_target_far_above_the_rest(run: Run, classes: int, gamma: float) -> None:
    """Its loss and the gradient, which are tiny, keep their digits; and far below nothing overflows."""
    x, t = torch.randn(4, classes), torch.tensor([0, 1, 2, 0])
    x[torch.arange(4), t] = torch.tensor([6.0, 15.0, 20.0, -1e4])
    o = options(gamma)
    with run():
        rows, grad = cuda.softmax_rows(x, t, o), cuda.softmax_backward(torch.ones(4), x, t, o)
    loss, slope = truth(x, t, o)
    close(rows, loss, 3e-5, 1e-30)
    close(grad[torch.arange(4), t], slope[torch.arange(4), t], 3e-5, 1e-30)
    close(grad, slope, 5e-5, 1e-6 * float(slope[:3].abs().max()))


@check("softmax_focal", classes=[3, 40])
def ties_at_the_top(run: Run, classes: int) -> None:
    x, t, o = torch.zeros(5, classes), torch.arange(5) % 3, options(2.0)
    with run():
        rows, grad = cuda.softmax_rows(x, t, o), cuda.softmax_backward(torch.ones(5), x, t, o)
    loss, slope = truth(x, t, o)
    close(rows, loss, ERROR)
    close(grad, slope, 2 * ERROR, 1e-7)


@check("softmax_focal", classes=[5, 40], value=[math.nan, math.inf])
def numbers_that_spoil_their_position_alone(run: Run, classes: int, value: float) -> None:
    x, t = torch.randn(4, classes), torch.tensor([1, 2, -100, 3])
    x[1, 4] = x[2, 0] = value
    with run():
        rows = cuda.softmax_rows(x, t, options(2.0))
        grad = cuda.softmax_backward(torch.ones(4), x, t, options(2.0))
    same(rows.isnan(), torch.tensor([False, True, False, False]))
    assert grad[[0, 3]].isfinite().all()
    assert grad[1].isnan().any()
    assert rows[2] == 0
    assert (grad[2] == 0).all()


@check("softmax_focal", classes=[5, 40])
def classes_of_no_probability(run: Run, classes: int) -> None:
    x, t, o = torch.randn(6, classes), torch.zeros(6, dtype=torch.int64), options(2.0)
    x[:, 1:3] = x[:, -1] = -math.inf
    with run():
        rows, grad = cuda.softmax_rows(x, t, o), cuda.softmax_backward(torch.ones(6), x, t, o)
    kept = [0, *range(3, classes - 1)]
    loss, slope = truth(x[:, kept], t, o)
    close(rows, loss, 2 * ERROR, 1e-6)
    close(grad[:, kept], slope, 4 * ERROR, 2e-6)
    assert (grad[:, [1, 2, classes - 1]] == 0).all()


@check("softmax_focal", classes=[5, 40], target=[-1, 40, 2**40], margins=[False, True])
def targets_that_are_no_classes(run: Run, classes: int, target: int, margins: bool) -> None:
    x, t = torch.randn(3, classes), torch.tensor([0, target, 1])
    o = options(2.0, margin=torch.rand(classes) if margins else None)
    with run():
        rows, grad = cuda.softmax_rows(x, t, o), cuda.softmax_backward(torch.ones(3), x, t, o)
    same(rows.isnan(), torch.tensor([False, True, False]))
    assert grad[1].isnan().all()
    assert grad[[0, 2]].isfinite().all()


@check("softmax_focal", classes=[5, 40])
def margins_that_no_class_has(run: Run, classes: int) -> None:
    """Probabilities name no class."""
    x, t = torch.randn(3, classes), torch.randn(3, classes).softmax(1)
    with run():
        rows = cuda.softmax_rows(x, t, options(2.0, margin=torch.ones(classes)))
    close(rows, truth(x, t, options(2.0))[0], 2 * ERROR, 2e-6)


@check("softmax_focal", shape=[(1, 2, 2**30 + 777), (2**27 + 77, 17)])
def past_two_to_the_31(run: Run, shape: tuple[int, ...]) -> None:
    positions = shape[0] * shape[2] if len(shape) == 3 else shape[0]
    a_block = 256 if len(shape) == 3 else 8
    x, grad, t = (
        virtual(math.prod(shape), torch.float32),
        virtual(math.prod(shape), torch.float32),
        virtual(positions, torch.int64),
    )
    loss, upstream = virtual(positions, torch.float32), virtual(positions, torch.float32)
    block = last_stride(positions, a_block)[1]
    at = elements_of(block, positions, a_block)[-40:]
    step = positions if len(shape) == 3 else 1
    place = (at if len(shape) == 3 else at * shape[1])[:, None] + torch.arange(shape[1]) * step
    assert place.max() >= 2**31
    x[place], t[at], upstream[at] = (
        torch.randn(place.shape),
        torch.randint(shape[1], at.shape),
        torch.randn(at.shape),
    )
    of_positions = (shape[0], *shape[2:])
    with run(blocks=[block]):
        cuda._run_softmax(
            x.view(shape), t.view(of_positions), options(2.0), loss.view(of_positions), grad.view(shape),
            upstream.view(of_positions), 1.0,
        )  # fmt: skip
    losses, slopes = truth(x[place], t[at], options(2.0), upstream[at].double())
    close(loss[at], losses, 2 * ERROR, 2e-6)
    close(grad[place], slopes, 4 * ERROR, 1e-5)


@check("softmax_focal", shape=[(0, 7), (2, 7, 0)])
def nothing(run: Run, shape: tuple[int, ...]) -> None:
    x, t = torch.empty(shape), torch.empty(shape[:1] + shape[2:], dtype=torch.int64)
    with run():
        assert cuda.softmax_rows(x, t, options(2.0)).shape == t.shape
