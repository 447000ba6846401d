"""CLIP, SigLIP and NT-Xent across ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from thawkit.losses import functional as F
from thawkit.losses.distributed.exchange import gather, replicated, total
from thawkit.losses.distributed.ranks import UNTRACED, Ranks, meet
from thawkit.losses.distributed.ring import row_terms, total_of_sums
from thawkit.losses.distributed.softmax import cross_entropy
from thawkit.losses.distributed.terms import Keys, Term, Turn, Weight
from thawkit.ops import checks
from thawkit.ops.pairwise.common import full_precision, lifted, summand
from thawkit.ops.pairwise.siglip import siglip_with_some


@torch.compiler.disable(reason=UNTRACED)
def clip(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float = 1 / 0.07,
    normalize: bool = True,
    reduction: str = "mean",
    mode: str = "gather",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """CLIP's loss of the pairs of all ranks; see :func:`thawkit.losses.functional.clip`.

    Args:
        image: (N, D) embeddings of this rank.
        text: (N, D) embeddings of this rank; ``text[i]`` belongs to ``image[i]``.
        logit_scale: inverse temperature, the same on all ranks; a tensor gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``mean`` or ``sum`` over the pairs of all ranks; ``none``: (N,) losses of this rank's.
        mode: ``gather`` or ``ring``.
        group: the ranks; None: all.

    Returns:
        Scalar, or (N,): float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: some rank's arguments do not fit, or not those of the others.
    """
    ranks = Ranks.of(group, mode)
    if ranks is None:
        return F.clip(image, text, logit_scale=logit_scale, normalize=normalize, reduction=reduction)

    def check() -> None:
        checks.matrix("image", image)
        checks.twin("text", text, "image", image)
        checks.scalar("logit_scale", logit_scale)
        checks.boolean("normalize", normalize)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)

    options = {"normalize": normalize, "reduction": reduction}
    tensors, numbers = {"image": image, "text": text}, {"logit_scale": logit_scale}
    (rows,) = meet(ranks, "clip", tensors, numbers, options, ["image"], check)
    checks.reduced("image", rows.total, reduction)
    with full_precision(image):
        scale = replicated(checks.one_number("logit_scale", logit_scale, image), ranks)
        factor = summand(reduction, rows.total)
        weight = None if factor is None else factor / 2
        to_text, to_image = (
            cross_entropy(q, keys, scale, rows, normalize=normalize, weight=weight)
            for q, keys in ((image, text), (text, image))
        )
        return (to_text + to_image) / 2 if weight is None else total(to_text + to_image, ranks)


@torch.compiler.disable(reason=UNTRACED)
def siglip(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: Tensor | float = 10.0,
    logit_bias: Tensor | float = -10.0,
    normalize: bool = True,
    reduction: str = "mean",
    mode: str = "gather",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """SigLIP's loss of the pairs of all ranks; see :func:`thawkit.losses.functional.siglip`.

    Args:
        image: (N, D) embeddings of this rank.
        text: (N, D) embeddings of this rank; ``text[i]`` belongs to ``image[i]``.
        logit_scale: multiplies the similarities, the same on all ranks; a tensor gets a gradient.
        logit_bias: added to them, likewise.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``sum`` over the images of all ranks, ``mean``: that over their number; ``none``: (N,)
            losses of this rank's images.
        mode: ``gather`` or ``ring``.
        group: the ranks; None: all.

    Returns:
        Scalar, or (N,): float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: some rank's arguments do not fit, or not those of the others.
    """
    ranks = Ranks.of(group, mode)
    if ranks is None:
        return F.siglip(
            image,
            text,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            normalize=normalize,
            reduction=reduction,
        )

    def check() -> None:
        checks.matrix("image", image)
        checks.twin("text", text, "image", image)
        checks.scalar("logit_scale", logit_scale)
        checks.scalar("logit_bias", logit_bias)
        checks.boolean("normalize", normalize)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)

    options = {"normalize": normalize, "reduction": reduction}
    tensors = {"image": image, "text": text}
    numbers = {"logit_scale": logit_scale, "logit_bias": logit_bias}
    (rows,) = meet(ranks, "siglip", tensors, numbers, options, ["image"], check)
    checks.reduced("image", rows.total, reduction)
    weight = summand(reduction, rows.total)

    def of(image: Tensor, texts: Keys, scalars: tuple[Tensor, ...], weight: Weight) -> Tensor:
        factor = weight if isinstance(weight, float) else None
        loss = siglip_with_some(
            image, texts.rows, *scalars, offset=texts.own, normalize=normalize, weight=factor
        )
        return (loss * weight).sum() if isinstance(weight, Tensor) else loss

    with full_precision(image):
        scale = replicated(checks.one_number("logit_scale", logit_scale, image), ranks)
        bias = replicated(checks.one_number("logit_bias", logit_bias, image), ranks)
        turn = Turn(rows, (Term(of, log_sum=False),))
        if ranks.mode == "gather":
            loss = of(image, Keys(gather(text, rows), None, rows.before), (scale, bias), weight)
        elif weight is None:
            (loss,) = row_terms(image, text, (scale, bias), turn)
        else:
            loss = total_of_sums(image, text, (scale, bias), turn, weight)
        return loss if weight is None else total(loss, ranks)


@torch.compiler.disable(reason=UNTRACED)
def nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: Tensor | float = 0.5,
    normalize: bool = True,
    reduction: str = "mean",
    mode: str = "gather",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """NT-Xent of the samples of all ranks; see :func:`thawkit.losses.functional.nt_xent`.

    Args:
        z1: (N, D) embeddings of one view of this rank's samples.
        z2: (N, D) embeddings of the other view.
        temperature: positive, the same on all ranks; a tensor of one element gets a gradient.
        normalize: divide each row by its Euclidean norm first.
        reduction: ``mean`` or ``sum`` over the rows of all ranks; ``none``: (2N,) losses of this rank's, in
            the order of ``cat(z1, z2)``.
        mode: ``gather`` or ``ring``.
        group: the ranks; None: all.

    Returns:
        Scalar, or (2N,): float64 for float64 inputs, else float32.

    Raises:
        ThawkitError: some rank's arguments do not fit, or not those of the others.
    """
    ranks = Ranks.of(group, mode)
    if ranks is None:
        return F.nt_xent(z1, z2, temperature=temperature, normalize=normalize, reduction=reduction)

    def check() -> None:
        checks.matrix("z1", z1)
        checks.twin("z2", z2, "z1", z1)
        checks.positive_scalar("temperature", temperature)
        checks.boolean("normalize", normalize)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)

    options = {"normalize": normalize, "reduction": reduction}
    tensors, numbers = {"z1": z1, "z2": z2}, {"temperature": temperature}
    (samples,) = meet(ranks, "nt_xent", tensors, numbers, options, ["z1"], check)
    checks.reduced("z1", samples.total, reduction)
    with full_precision(z1):
        scale = 1 / lifted(replicated(checks.one_number("temperature", temperature, z1), ranks))
        rows = samples.times(2)
        z = torch.cat((z1, z2))
        partner = torch.arange(rows.own, device=z.device).roll(samples.own)
        weight = summand(reduction, rows.total)
        loss = cross_entropy(
            z, z, scale, rows, normalize=normalize, weight=weight, partner=partner, others=True
        )
        return loss if weight is None else total(loss, ranks)
