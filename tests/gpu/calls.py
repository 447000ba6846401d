"""A call of every public operator, on tensors of any device: what runs them all goes by this table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.losses import functional as F
from thawkit.ops import frozen, pairwise


class Call(NamedTuple):
    """An operator and what it is called with."""

    operator: str
    """As :data:`thawkit.ops.OPERATORS` has it."""
    function: Callable[..., Tensor]
    """Of the inputs; makes what else it needs on their device."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the inputs that get gradients."""
    differentiable: bool = True


def _classes(x: Tensor, count: int = 4) -> Tensor:
    return torch.arange(x.shape[0], device=x.device) % count


def _bits(x: Tensor) -> Tensor:
    return (torch.arange(x.numel(), device=x.device) % 3 == 0).to(x.dtype).view_as(x)


def _triplets(z: Tensor, ref: Tensor, mining: str) -> Tensor:
    return F.triplet_margin(z, _classes(z), ref=ref, ref_labels=_classes(ref), mining=mining)


def _ramp(x: Tensor) -> Tensor:
    return torch.linspace(1, 2, x.shape[0], device=x.device)


def _sums_of_permutations(z: Tensor) -> tuple[Tensor, ...]:
    gamma = torch.full((1,), 0.05, device=z.device)
    chosen = torch.arange(9 * z.shape[0], device=z.device).view(-1, 9) % 4 < 2
    return pairwise.permutation_sums(z, gamma, chosen.byte(), z.shape[0] // 2)


_PAIRS = ((40, 24), (40, 24))
_IMAGES = ((3, 5, 8, 9),)
_RANK = {"logit_scale": 4.0}

CALLS = {
    "info_nce": Call("row_softmax", lambda q, k: F.info_nce(q, k, **_RANK), ((20, 24), (40, 24))),
    "info_nce, each row": Call(
        "row_softmax", lambda q, k: F.info_nce(q, k, reduction="none", **_RANK), ((20, 24), (40, 24))
    ),
    "supcon": Call("row_softmax", lambda z: F.supcon(z, _classes(z)), ((40, 24),)),
    "linear_cross_entropy": Call(
        "row_softmax", lambda x, w: F.linear_cross_entropy(x, w, _classes(x)), ((40, 24), (10, 24))
    ),
    "clip": Call("pair_loss", lambda x, y: F.clip(x, y, **_RANK), _PAIRS),
    "siglip": Call("pair_loss", lambda x, y: F.siglip(x, y, logit_bias=-4.0, **_RANK), _PAIRS),
    "nt_xent": Call("pair_loss", F.nt_xent, _PAIRS),
    "nt_xent_labels": Call("row_softmax", lambda z: F.nt_xent_labels(z, _classes(z)), ((40, 24),)),
    "triplet_margin": Call("margin_loss", lambda z: F.triplet_margin(z, _classes(z)), ((40, 24),)),
    **{
        f"triplet_margin, {mining}": Call(
            "margin_loss", functools.partial(_triplets, mining=mining), ((40, 24), (30, 24))
        )
        for mining in ("hard", "semihard")
    },
    "contrastive": Call("margin_loss", lambda z: F.contrastive(z, _classes(z)), ((40, 24),)),
    "mmd": Call("mmd", F.mmd, ((40, 8), (30, 8))),
    "mmd, learned bandwidths": Call(
        "mmd", lambda x, y, s: F.mmd(x, y, bandwidths=1 + s.float().square()), ((40, 8), (30, 8), (3,))
    ),
    "mmd, classes": Call(
        "mmd",
        lambda x, y: F.mmd(x, y, weights=(_ramp(x), _ramp(y)), class_conditional=(_classes(x), _classes(y))),
        ((40, 8), (30, 8)),
    ),
    "permutation_sums": Call(
        "permutation_sums", lambda z: _sums_of_permutations(z)[0], ((40, 8),), differentiable=False
    ),
    "median_squared_distance": Call(
        "median_squared_distance", pairwise.median_squared_distance, ((40, 8), (30, 8)), differentiable=False
    ),
    "top_k": Call("top_k", lambda q, g: pairwise.top_k(q, g, 3)[0], ((20, 8), (40, 8)), differentiable=False),
    "sigmoid_focal": Call(
        "sigmoid_focal", lambda x: F.sigmoid_focal_loss(x, _bits(x), reduction="mean"), ((20, 7),)
    ),
    "sigmoid_focal, each": Call("sigmoid_focal", lambda x: F.sigmoid_focal_loss(x, _bits(x)), ((20, 7),)),
    "softmax_focal": Call("softmax_focal", lambda x: F.focal_loss(x, _classes(x, 7)), ((20, 7),)),
    "packed_relu": Call("packed_relu", frozen.packed_relu, _IMAGES),
    "packed_hardsigmoid": Call("packed_relu", frozen.packed_hardsigmoid, _IMAGES),
    "packed_leaky_relu": Call("packed_relu", lambda x: frozen.packed_leaky_relu(x, 0.2), _IMAGES),
    "packed_abs": Call("packed_relu", frozen.packed_abs, _IMAGES),
    "packed_max_pool": Call("packed_max_pool", lambda x: frozen.packed_max_pool(x, 2, 3, 2, 1), _IMAGES),
    "fixed_batch_norm": Call(
        "fixed_batch_norm",
        lambda x: frozen.fixed_batch_norm(x, None, None, *torch.ones(2, 5, device=x.device), 1e-5, lower=0.0),
        _IMAGES,
    ),
    "masked_channel_sums": Call(
        "masked_channel_sums", lambda x: frozen.channel_sums(x), _IMAGES, differentiable=False
    ),
}


def inputs(call: Call, device: torch.device | str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the tensors that a call takes, the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator).to(dtype).to(device).requires_grad_(call.differentiable)
        for shape in call.shapes
    ]


def outcome(call: Call, given: list[Tensor]) -> list[Tensor]:
    """Return what a call gives, and the gradients of a weighted sum of it."""
    out = call.function(*given)
    if not call.differentiable:
        return [out]
    weight = torch.linspace(0.5, 1.5, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), given)]
