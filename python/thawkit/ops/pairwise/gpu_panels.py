"""Panels of products for the epilogues of a GPU, and the gradients that their slopes give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from thawkit.kernels.panel import Panel
from thawkit.ops.dispatch import memory
from thawkit.ops.pairwise.rows import through_norm, unit_rows

PANEL_BYTES = 32 << 20  # a float32 panel of this size stays in the L2 cache of a data-centre GPU
_UNCACHED = 8  # times as much a panel may take at most
_MINIMAL_BYTES = 4 << 20  # of a panel where memory counts for more than time


def panel_bytes() -> int:
    """Return how many bytes of products are to be made at a time."""
    return min(PANEL_BYTES, _MINIMAL_BYTES) if memory() == "minimal" else PANEL_BYTES


class Operand:
    """One side's rows, over their norms where that is asked for, and what becomes their gradient."""

    def __init__(self, x: Tensor, normalize: bool, need: bool) -> None:
        self.x, self.normalize = x, normalize
        self.rows, self.norms = unit_rows(x, normalize)
        if self.rows.stride(-1) != 1:
            self.rows = self.rows.contiguous()
        self.gradient = torch.zeros(x.shape, dtype=torch.float32, device=x.device) if need else None

    def through(self, factor: Tensor | float) -> Tensor | None:
        """Return the gradient by ``x``, that by the rows being ``factor`` times what was added up."""
        if self.gradient is None:
            return None
        gradient = self.gradient * factor
        if self.normalize:
            gradient = through_norm(gradient, self.x, self.norms)
        return gradient.to(self.x.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, never rounded to half precision or TF32 on the way.

    Distances are differences of products, in which ten bits of a mantissa would be all that is left.
    """
    if a.dtype == torch.float32:
        with _without_tf32():
            return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """Add :func:`product` to ``to``, float32, which is read and written once and no more."""
    if a.dtype == torch.float32:
        with _without_tf32():
            to.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(to, a, b, out_dtype=torch.float32, out=to)
    else:
        to.addmm_(a.float(), b.float())


@contextmanager
def _without_tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if before != "tf32":
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class Slopes:
    """How slopes are stored: in the dtype of the operands, and so that they use its range.

    A mean over many rows would make float16 slopes vanish, so that what all rows share comes after the
    products: ``shared``, of gradients and of sums.
    """

    def __init__(self, like: Tensor, row_weight: Tensor | None, weight: float) -> None:
        self.factor = 4096.0 if like.dtype == torch.float16 else 1.0
        self.rows: Tensor | None = None
        self.shared: Tensor | float = weight / self.factor
        if row_weight is not None and row_weight.numel():
            largest = row_weight.float().abs().amax()
            largest = largest.where(largest != 0, 1.0)
            self.rows, self.shared = (row_weight.float() / largest).contiguous(), largest / self.factor


def panel_height(rows: int, columns: int, added: int = 0) -> int:
    """Return how many rows of products are made at a time.

    Args:
        rows: of all panels.
        columns: of each.
        added: numbers a column that every panel adds to, as those of a gradient by the columns. With panels
            lower than that they would move more bytes than the products themselves, so that those leave the
            cache instead, to eight times its share; not where memory is to be minimal.
    """
    cached = panel_bytes() // (4 * max(columns, 1))
    uncached = 0 if memory() == "minimal" else _UNCACHED * cached
    return max(1, min(rows, max(cached, min(added, uncached))))


def panels(
    x: Operand, y: Operand, scale: Tensor, slopes: Slopes, backward: bool, known: Tensor | None = None
) -> Iterator[tuple[slice, Panel]]:
    """Yield panels of products; once the caller has written slopes, add their products to the gradients.

    Args:
        x: the rows.
        y: the columns; may be ``x``.
        scale: float32 scalar.
        slopes: how they are stored.
        backward: whether slopes are wanted.
        known: the products, where one panel holds them all and they have been made.
    """
    rows = x.rows.shape[0]
    adds = backward and y.gradient is not None
    height = panel_height(rows, y.rows.shape[0], y.rows.shape[1] if adds else 0)
    for first in range(0, rows, height):
        here = slice(first, first + height)
        scores = product(x.rows[here], y.rows.t()) if known is None else known
        written = None
        if backward:
            written = (
                scores if x.rows.dtype == torch.float32 else torch.empty_like(scores, dtype=x.rows.dtype)
            )
        of_rows = None if slopes.rows is None else slopes.rows[here]
        yield here, Panel(scores, written, first, scale, of_rows, slopes.factor)
        if written is None:
            continue
        if x.gradient is not None:
            add_product(x.gradient[here], written, y.rows)
        if y.gradient is not None:
            add_product(y.gradient, written.t(), x.rows[here])


def total(loss: Tensor, row_weight: Tensor | None, weight: float) -> Tensor:
    """Return the weighted sum of the rows' losses; one of weight 0 may hold anything."""
    if row_weight is None:
        return loss.sum() * weight
    return (loss.where((row_weight != 0) | loss.isfinite(), 0.0) * row_weight).sum()


def floats(like: Tensor) -> Tensor:
    """Return memory for a number a row."""
    return torch.empty(like.shape[0], dtype=torch.float32, device=like.device)
