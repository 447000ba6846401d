"""The kernels of MMD, of all pairs of rows and of given ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.ops.pairwise.reference.distances import squared_distances

OF_DISTANCES = ("rbf", "laplace", "imq", "energy")
OF_PRODUCTS = ("linear", "poly")
KERNELS = OF_DISTANCES + OF_PRODUCTS
SCALED = ("rbf", "laplace", "imq")  # those with bandwidths, over which they add up


class Kernel(NamedTuple):
    """A kernel and its numbers.

    With q_b = 1 / s_b^2 and d the Euclidean distance: ``rbf`` is ``sum_b exp(-q_b d^2 / 2)``, ``laplace``
    ``sum_b exp(-sqrt(q_b) d)``, ``imq`` ``sum_b 1 / (1 + q_b d^2)``, ``energy`` ``-d``, ``linear`` ``<u, v>``
    and ``poly`` ``(<u, v> / D + offset)^degree``.
    """

    name: str
    relative: bool = False  # q is in units of the inverse mean squared distance
    doubling: bool = False  # q_b = q_0 2^b
    degree: int = 1
    offset: float = 0.0


def of_squares(kernel: Kernel, rates: Tensor | None, squares: Tensor, least: Tensor | float) -> Tensor:
    """Return the kernel of squared distances; one of no more than ``least`` counts as 0 and has no slope."""
    if kernel.name in ("laplace", "energy"):
        apart = ~(squares <= least)  # true where not a number
        distances = squares.where(apart, 1).sqrt().where(apart, 0)
        if kernel.name == "energy":
            return -distances
    assert rates is not None
    value = torch.zeros_like(squares)
    for rate in rates.to(squares.dtype).unbind():
        if kernel.name == "rbf":
            value = value + torch.exp(-(rate / 2) * squares)
        elif kernel.name == "laplace":
            value = value + torch.exp(-rate.sqrt() * distances)
        else:
            value = value + 1 / (1 + rate * squares)
    return value


def of_products(kernel: Kernel, products: Tensor, features: int) -> Tensor:
    """Return the kernel of inner products."""
    return products if kernel.name == "linear" else (products / features + kernel.offset) ** kernel.degree


def matrix(kernel: Kernel, rates: Tensor | None, u: Tensor, v: Tensor) -> Tensor:
    """(N, M) values for rows (N, D) and (M, D), which kernels of distances want near the origin.

    Squared distances of no more than rounding leaves of two equal rows are 0 where the slope is that of their
    root, as in :func:`~thawkit.ops.pairwise.reference.distances.euclidean_distances`.
    """
    if kernel.name in OF_PRODUCTS:
        return of_products(kernel, u @ v.t(), u.shape[1])
    norms = (u.square().sum(1, keepdim=True) + v.square().sum(1)).detach()
    return of_squares(kernel, rates, squared_distances(u, v), 8 * torch.finfo(u.dtype).eps * norms)


def of_pairs(kernel: Kernel, rates: Tensor | None, u: Tensor, v: Tensor) -> Tensor:
    """(N,) values for rows (N, D) and (N, D), each with its counterpart."""
    if kernel.name in OF_PRODUCTS:
        return of_products(kernel, (u * v).sum(-1), u.shape[-1])
    return of_squares(kernel, rates, (u - v).square().sum(-1), 0.0)
