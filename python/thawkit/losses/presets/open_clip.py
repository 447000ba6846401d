"""Stand-ins for the losses of open_clip 3 (``open_clip.loss``), in a single process."""

from __future__ import annotations

from torch import Tensor, nn

from thawkit.losses import functional as F
from thawkit.losses.presets.unsupported import only
from thawkit.ops import checks


class ClipLoss(nn.Module):
    """``open_clip.loss.ClipLoss``: CLIP's loss of features that have norm 1 already.

    Args:
        local_loss: without effect, as there in a single process.
        gather_with_grad: likewise.
        cache_labels: without effect: there are no labels to cache.
        rank: without effect.
        world_size: 1; across ranks see ``thawkit.losses.distributed``.
        use_horovod: without effect.
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
        only(1, world_size=world_size)
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
        loss = F.clip(image_features, text_features, logit_scale=logit_scale, normalize=False)
        if logit_bias is not None:
            checks.scalar("logit_bias", logit_bias)
        if isinstance(logit_bias, Tensor):
            loss = loss + 0 * logit_bias.reshape(())
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """``open_clip.loss.SigLipLoss``: SigLIP's loss of features that have norm 1 already.

    Args:
        cache_labels: without effect: there are no labels to cache.
        rank: without effect.
        world_size: 1; across ranks see ``thawkit.losses.distributed``.
        dist_impl: ``bidir``, ``shift``, ``reduce`` or ``gather``; without effect in a single process.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ):
        super().__init__()
        only(1, world_size=world_size)
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
        loss = F.siglip(
            image_features,
            text_features,
            logit_scale=logit_scale,
            logit_bias=0.0 if logit_bias is None else logit_bias,
            normalize=False,
        )
        return {"contrastive_loss": loss} if output_dict else loss
