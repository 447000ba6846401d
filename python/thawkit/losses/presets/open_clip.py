"""Stand-ins for the losses of open_clip 3 (``open_clip.loss``), in one process or several.

With ``world_size`` above 1 they go by :mod:`thawkit.losses.distributed`, over the default process group, and
give each rank the value and the gradients that open_clip's give it; ranks may have batches of any size. The
gradients of ``logit_scale`` and ``logit_bias`` are averages over the ranks at once, as they are there behind
DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import distributed as across_ranks
from thawkit.losses import functional as F
from thawkit.losses.distributed.ranks import prepared
from thawkit.losses.presets import own_rows
from thawkit.losses.presets.unsupported import only
from thawkit.ops import checks
from thawkit.ops.pairwise.common import with_gradient_times


class ClipLoss(nn.Module):
    """``open_clip.loss.ClipLoss``: CLIP's loss of features that have norm 1 already.

    Args:
        local_loss: the loss of this rank's rows, instead of the whole batch's.
        gather_with_grad: features have a gradient from the other ranks' rows too. Without it they have what
            open_clip leaves of it: of the whole batch's loss ``1 / world_size`` of what is averaged over the
            ranks, of a local one that of the rows themselves as queries.
        cache_labels: without effect: there are no labels to cache.
        rank: this process's, of ``world_size``.
        world_size: number of processes.
        use_horovod: without effect in a single process; refused in several.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ):
        super().__init__()
        if world_size > 1:
            only(False, use_horovod=use_horovod)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of features (N, D), or with ``output_dict`` a dictionary of it.

        A bias of all logits leaves the softmax as it is: its gradient is 0.
        """

        def check() -> None:
            checks.floating("image_features", image_features)
            checks.floating("text_features", text_features)
            if logit_bias is not None:
                checks.scalar("logit_bias", logit_bias)

        _checked(self.rank, self.world_size, check)
        loss = self._loss(image_features, text_features, logit_scale)
        if isinstance(logit_bias, Tensor):
            loss = loss + (0 * logit_bias.reshape(())).to(loss.dtype)
        return {"contrastive_loss": loss} if output_dict else loss

    def _loss(self, image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
        options: dict[str, Any] = {"logit_scale": logit_scale, "normalize": False}
        if self.world_size == 1:
            return F.clip(image, text, **options)
        if self.local_loss and not self.gather_with_grad:
            pairs = (image, text.detach()), (text, image.detach())
            to_text, to_image = (
                own_rows.mean(across_ranks.info_nce(q, k, reduction="none", **options)) for q, k in pairs
            )
            return (to_text + to_image) / 2
        if self.local_loss:
            return own_rows.mean(across_ranks.clip(image, text, reduction="none", **options))
        if not self.gather_with_grad:
            image, text = (with_gradient_times(x, 1 / self.world_size) for x in (image, text))
        return across_ranks.clip(image, text, **options)


class SigLipLoss(nn.Module):
    """``open_clip.loss.SigLipLoss``: SigLIP's loss of features that have norm 1 already.

    Args:
        cache_labels: without effect: there are no labels to cache.
        rank: this process's, of ``world_size``.
        world_size: number of processes. The loss is that of this rank's images, and all ranks' texts.
        dist_impl: ``bidir`` or ``shift``: texts are passed round; ``reduce`` or ``gather``: are gathered.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ):
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"
        checks.one_of("dist_impl", self.dist_impl, ("bidir", "shift", "reduce", "gather"))

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of features (N, D), or with ``output_dict`` a dictionary of it."""
        options: dict[str, Any] = {
            "logit_scale": logit_scale,
            "logit_bias": 0.0 if logit_bias is None else logit_bias,
            "normalize": False,
        }
        _checked(self.rank, self.world_size, lambda: None)
        if self.world_size == 1:
            loss = F.siglip(image_features, text_features, **options)
        else:
            mode = "ring" if self.dist_impl in ("bidir", "shift") else "gather"
            rows = across_ranks.siglip(image_features, text_features, reduction="none", mode=mode, **options)
            loss = own_rows.mean(rows)
        return {"contrastive_loss": loss} if output_dict else loss


def _checked(rank: int, world_size: int, check: Callable[[], None]) -> None:
    """Check a rank's place and arguments, in several processes so that all of them raise."""

    def both() -> None:
        if world_size != 1:
            _check_place(rank, world_size)
        check()

    prepared(None, None if world_size == 1 else "gather", both)


def _check_place(rank: int, world_size: int) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ThawkitError(
            f"world_size={world_size} needs torch.distributed to be initialized, which it is not"
        )
    place = dist.get_rank(), dist.get_world_size()
    if (rank, world_size) != place:
        raise ThawkitError(
            f"rank and world_size must be those of the default process group, {place[0]} and {place[1]}, "
            f"got {rank} and {world_size}"
        )
