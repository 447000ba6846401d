"""The losses as functions."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops import focal as _focal
from thawkit.ops import pairwise as _pairwise
from thawkit.ops.focal import reference as _focal_reference

__all__ = ["clip", "focal_loss", "info_nce", "mmd", "sigmoid_focal_loss"]


def info_nce(
    q: Tensor,
    k: Tensor,
    *,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018): each query against its own key and all others.

    The matrix of similarities is never stored, and with ``reduction="mean"`` or ``"sum"`` the gradients are
    ready when the loss is. A frozen side costs no gradient product.

    Args:
        q: (N, D) queries, e.g. embeddings of one view.
        k: (M, D) keys, M >= N; ``k[i]`` is the positive of ``q[i]``, keys past N are extra negatives.
        logit_scale: inverse temperature; a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first, which makes the similarity a cosine.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    return _pairwise.info_nce(q, k, logit_scale, normalize=normalize, reduction=reduction)


def clip(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """CLIP's loss (Radford et al. 2021, fig. 3): InfoNCE in both directions, averaged.

    The two directions are two passes of the pairwise engine so far, which do not share their similarities.

    Args:
        image: (N, D) embeddings.
        text: (N, D) embeddings; ``text[i]`` belongs to ``image[i]``.
        logit_scale: inverse temperature (CLIP's ``logit_scale.exp()``); a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first; rows that have norm 1 may skip it.
        reduction: ``none`` gives (N,) losses, one for each pair, ``mean`` and ``sum`` a scalar.

    Returns:
        Scalar or (N,) loss: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    checks.matrix("image", image)
    checks.matrix("text", text)
    checks.same_device("text", text, "image", image)
    if image.shape != text.shape:
        raise ThawkitError(
            f"text must have the shape of image, {tuple(image.shape)}, got {tuple(text.shape)}"
        )
    if image.dtype != text.dtype:
        raise ThawkitError(f"text must have the dtype of image, {image.dtype}, got {text.dtype}")
    to_text = info_nce(image, text, logit_scale=logit_scale, normalize=normalize, reduction=reduction)
    to_image = info_nce(text, image, logit_scale=logit_scale, normalize=normalize, reduction=reduction)
    return (to_text + to_image) / 2


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), a drop-in for ``torchvision.ops.sigmoid_focal_loss``.

    Args:
        inputs: logits of any shape.
        targets: the same shape, numbers in [0, 1].
        alpha: weight of the positive class in [0, 1]; negative: no class weights.
        gamma: focusing exponent, at least 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        Elementwise losses, or a scalar (float32 for half-precision inputs).

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit.
    """
    return _focal.sigmoid_focal(inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss, softmax form: ``alpha_y (1 - p_y)^gamma (-log p_y)``. In plain PyTorch so far, not fused.

    Args:
        logits: (N, C) or (N, C, ...), class axis 1.
        target: int64 class indices (N, ...).
        gamma: focusing exponent, at least 0; 0 is cross-entropy.
        alpha: (C,) class weights. The mean divides by the number of targets, not by their weights.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        Scalar, or losses of the shape of ``target``.

    Raises:
        ThawkitError: types, shapes, dtypes or devices do not fit, a class index is out of range.
    """
    checks.floating("logits", logits)
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        came = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise ThawkitError(f"target must be a tensor of int64 class indices, got {came}")
    if logits.dim() < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ThawkitError(
            f"target must have the shape of logits {tuple(logits.shape)} without axis 1, "
            f"got {tuple(target.shape)}"
        )
    checks.same_device("target", target, "logits", logits)
    checks.finite("gamma", gamma)
    if gamma < 0:
        raise ThawkitError(f"gamma must be at least 0, got {gamma}")
    checks.reduced("logits", target.numel(), reduction)
    classes = logits.shape[1]
    if (
        target.numel()
        and logits.device.type == "cpu"
        and not 0 <= int(target.min()) <= int(target.max()) < classes
    ):
        raise ThawkitError(
            f"target must hold class indices 0 to {classes - 1}, "
            f"got {int(target.min())} to {int(target.max())}"
        )
    if alpha is not None:
        if not isinstance(alpha, Tensor):
            raise ThawkitError(
                f"alpha must be a tensor of {classes} class weights, got {type(alpha).__name__}"
            )
        if alpha.shape != (classes,):
            raise ThawkitError(f"alpha must have shape ({classes},), got {tuple(alpha.shape)}")
        checks.same_device("alpha", alpha, "logits", logits)
    loss = _focal_reference.focal(logits, target, alpha, gamma)
    return loss if reduction == "none" else getattr(loss, reduction)()


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "rbf",
    bandwidths: Tensor | tuple[float, int] | str = "mean",
    estimator: str = "biased",
) -> Tensor:
    """Squared maximum mean discrepancy between two samples (Gretton et al. 2012), a sum over RBF kernels.

    ``k(u, v) = sum_b exp(-|u - v|^2 / (2 s_b^2))``. No matrix of pairs is stored, only the upper triangle
    of pairs is computed, and the gradient is ready with the value.

    Args:
        x: (N, D) sample, e.g. features of the source domain.
        y: (M, D) sample of the target domain; M need not be N.
        kernel: ``rbf``.
        bandwidths: a (B,) tensor of s_b > 0; or ``(multiplier, count)``: s_b^2 is the mean squared distance
            of all pairs times ``multiplier`` to the powers centred on 0, without a gradient, as the
            domain-adaptation literature has it (Long et al. 2015); ``"mean"`` is ``(2.0, 5)``.
        estimator: ``biased`` (V-statistic, negative by rounding at most) or ``unbiased`` (U-statistic, which
            can be negative).

    Returns:
        Scalar: float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: shapes, dtypes or devices do not fit, a sample is too small, an unknown name.
    """
    checks.one_of("kernel", kernel, ("rbf",))
    checks.one_of("estimator", estimator, ("biased", "unbiased"))
    checks.matrix("x", x)
    if isinstance(bandwidths, Tensor):
        if bandwidths.device.type == "cpu" and not bool((bandwidths.isfinite() & (bandwidths > 0)).all()):
            raise ThawkitError(f"bandwidths must be positive and finite, got {bandwidths.tolist()}")
        gamma, relative, doubling = 0.5 / bandwidths.square(), False, False
    else:
        multiplier, count = _multiplier_and_count(bandwidths)
        exponents = range(count - 1 - count // 2, -1 - count // 2, -1)
        gamma = torch.tensor([0.5 / multiplier**e for e in exponents], dtype=torch.float64, device=x.device)
        relative = True
        # Each squaring doubles the relative rounding error of the one exponential that they start from.
        doubling = multiplier == 2.0 and count <= 8
    unbiased = estimator == "unbiased"
    return _pairwise.mmd(x, y, gamma, relative=relative, doubling=doubling, unbiased=unbiased)


def _multiplier_and_count(bandwidths: object) -> tuple[float, int]:
    if bandwidths == "mean":
        return 2.0, 5
    if isinstance(bandwidths, tuple) and len(bandwidths) == 2:
        multiplier, count = bandwidths
        numbers = isinstance(count, int) and isinstance(multiplier, int | float)
        if numbers and 1 <= count <= 60 and 1 < multiplier <= 2.0 ** (100 / count):
            return float(multiplier), count
    raise ThawkitError(
        "bandwidths must be 'mean', a tensor of positive numbers, or (multiplier, count) "
        "with multiplier > 1, 1 <= count <= 60 and multiplier**count <= 2**100 (float32 ends there), "
        f"got {bandwidths!r}"
    )
