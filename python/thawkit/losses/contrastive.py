"""Contrastive losses as modules."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import distributed as across_ranks
from thawkit.losses import functional as F
from thawkit.losses.base import Loss
from thawkit.losses.distributed.ranks import prepared
from thawkit.losses.functional.scale import check_maximum
from thawkit.ops import checks


class _Contrastive(Loss):
    """What the losses have in common: rows to normalise, a reduction, and ranks that may hold other rows."""

    def __init__(
        self, normalize: bool, reduction: str, distributed: str | None, group: dist.ProcessGroup | None
    ):
        super().__init__()
        checks.boolean("normalize", normalize)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        if distributed is not None:
            checks.one_of("distributed", distributed, across_ranks.MODES)
        elif group is not None:
            raise ThawkitError("group must come with distributed='gather' or 'ring', got distributed=None")
        self.normalize = normalize
        self.reduction = reduction
        self.distributed = distributed
        self.group = group

    def _function(self, name: str) -> Callable[..., Tensor]:
        options = {"normalize": self.normalize, "reduction": self.reduction}
        if self.distributed is None:
            return functools.partial(getattr(F, name), **options)
        function = getattr(across_ranks, name)
        return functools.partial(function, mode=self.distributed, group=self.group, **options)


class InfoNCELoss(_Contrastive):
    """InfoNCE of queries against keys; see :func:`thawkit.losses.functional.info_nce`.

    Args:
        temperature: divides the similarities; an ``nn.Parameter`` is learned with the model.
        normalize: use cosine similarities.
        reduction: ``none``, ``mean`` or ``sum``.
        in_batch: the keys of other rows are negatives, besides those that are given.
        distributed: ``gather`` or ``ring``: the batch is that of all ranks, as in
            :mod:`thawkit.losses.distributed`. None: it is this process's.
        group: the ranks of the batch; None: all.
        false_negative_margin: keys more similar to a query than its positive by more than this are no
            negatives.
        hard_negative_beta: above 0, similar negatives weigh more.
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.07,
        normalize: bool = True,
        reduction: str = "mean",
        in_batch: bool = True,
        distributed: str | None = None,
        group: dist.ProcessGroup | None = None,
        false_negative_margin: float | None = None,
        hard_negative_beta: float = 0.0,
    ):
        super().__init__(normalize, reduction, distributed, group)
        checks.positive_scalar("temperature", temperature)
        checks.boolean("in_batch", in_batch)
        if false_negative_margin is not None:
            checks.finite("false_negative_margin", false_negative_margin)
        checks.finite("hard_negative_beta", hard_negative_beta)
        if hard_negative_beta < 0:
            raise ThawkitError(f"hard_negative_beta must be at least 0, got {hard_negative_beta}")
        self.temperature = temperature
        self.in_batch = in_batch
        self.false_negative_margin = false_negative_margin
        self.hard_negative_beta = hard_negative_beta

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        negatives: Tensor | None = None,
        labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``q`` (N, D) against ``k`` (M, D), ``k[i]`` being the positive of ``q[i]``.

        Further negatives are (M, D), for all rows, or (N, M, D), for each row its own. ``labels`` (M,) say
        which keys are no negatives of one another, ``sample_weight`` (N,) how much a row counts.
        """
        return self._function("info_nce")(
            q,
            k,
            negatives=negatives,
            in_batch=self.in_batch,
            logit_scale=prepared(self.group, self.distributed, self._logit_scale),
            labels=labels,
            sample_weight=sample_weight,
            false_negative_margin=self.false_negative_margin,
            hard_negative_beta=self.hard_negative_beta,
        )

    def _logit_scale(self) -> Tensor | float:
        checks.positive_scalar("temperature", self.temperature)  # it may have been learned
        return 1 / self.temperature


class _ImageText(_Contrastive):
    """Losses of pairs whose scale, given with each call, may have a bound."""

    def __init__(
        self,
        normalize: bool = True,
        reduction: str = "mean",
        distributed: str | None = None,
        group: dist.ProcessGroup | None = None,
        max_logit_scale: float | None = None,
    ):
        super().__init__(normalize, reduction, distributed, group)
        if max_logit_scale is not None:
            check_maximum("max_logit_scale", max_logit_scale)
        self.max_logit_scale = max_logit_scale

    def _bounded(self, logit_scale: Tensor | float) -> Tensor | float:
        maximum = self.max_logit_scale
        if maximum is None:
            return logit_scale

        def bounded() -> Tensor | float:
            if isinstance(logit_scale, Tensor):
                return F.clamp_logit_scale(logit_scale, maximum)
            checks.finite("logit_scale", logit_scale)
            return min(logit_scale, maximum)

        return prepared(self.group, self.distributed, bounded)


class ClipLoss(_ImageText):
    """CLIP's symmetric loss; see :func:`thawkit.losses.functional.clip`.

    Args:
        normalize: divide each row by its Euclidean norm first; rows that have norm 1 may skip it.
        reduction: ``none``, ``mean`` or ``sum``.
        distributed: ``gather`` or ``ring``: the batch is that of all ranks, as in
            :mod:`thawkit.losses.distributed`. None: it is this process's.
        group: the ranks of the batch; None: all.
        max_logit_scale: bound of a learned scale, as in :func:`thawkit.losses.functional.clamp_logit_scale`.
    """

    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
        """Return the loss of ``image`` and ``text``, both (N, D), at the inverse temperature given."""
        return self._function("clip")(image, text, logit_scale=self._bounded(logit_scale))


class SigLipLoss(_ImageText):
    """SigLIP's sigmoid loss of all pairs; see :func:`thawkit.losses.functional.siglip`.

    Args:
        normalize: divide each row by its Euclidean norm first; rows that have norm 1 may skip it.
        reduction: ``none``, ``mean`` or ``sum``.
        distributed: ``gather`` or ``ring``: the batch is that of all ranks, as in
            :mod:`thawkit.losses.distributed`. None: it is this process's.
        group: the ranks of the batch; None: all.
        max_logit_scale: bound of a learned scale, as in :func:`thawkit.losses.functional.clamp_logit_scale`.
    """

    def forward(
        self, image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
    ) -> Tensor:
        """Return the loss of ``image`` and ``text``, both (N, D), at the scale and bias given."""
        scale = self._bounded(logit_scale)
        return self._function("siglip")(image, text, logit_scale=scale, logit_bias=logit_bias)


class NTXentLoss(_Contrastive):
    """SimCLR's loss of two views; see :func:`thawkit.losses.functional.nt_xent`.

    Args:
        temperature: divides the similarities; an ``nn.Parameter`` is learned with the model.
        normalize: use cosine similarities.
        reduction: ``none``, ``mean`` or ``sum``.
        distributed: ``gather`` or ``ring``: the batch is that of all ranks, as in
            :mod:`thawkit.losses.distributed`. None: it is this process's.
        group: the ranks of the batch; None: all.
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.5,
        normalize: bool = True,
        reduction: str = "mean",
        distributed: str | None = None,
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__(normalize, reduction, distributed, group)
        checks.positive_scalar("temperature", temperature)
        self.temperature = temperature

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss of the views ``z1`` and ``z2``, both (N, D)."""
        return self._function("nt_xent")(z1, z2, temperature=self.temperature)


class SupConLoss(_Contrastive):
    """Supervised contrastive loss; see :func:`thawkit.losses.functional.supcon`.

    Args:
        temperature: divides the similarities; an ``nn.Parameter`` is learned with the model.
        variant: ``out`` or ``in``, where the mean over positives stands.
        normalize: use cosine similarities.
        reduction: ``none``, ``mean`` or ``sum``.
        distributed: ``gather`` or ``ring``: the batch is that of all ranks, as in
            :mod:`thawkit.losses.distributed`. None: it is this process's.
        group: the ranks of the batch; None: all.
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.1,
        variant: str = "out",
        normalize: bool = True,
        reduction: str = "mean",
        distributed: str | None = None,
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__(normalize, reduction, distributed, group)
        checks.positive_scalar("temperature", temperature)
        checks.one_of("variant", variant, ("out", "in"))
        self.temperature = temperature
        self.variant = variant

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of ``embeddings`` (N, D) of the classes ``labels``, (N,) or 0/1 (N, L)."""
        return self._function("supcon")(
            embeddings, labels, temperature=self.temperature, variant=self.variant
        )


class NegativeQueue(nn.Module):
    """The latest keys of earlier batches, as further negatives (MoCo, He et al. 2020, sec. 3.2).

    Its content and position are buffers, so they go into ``state_dict`` and to other devices with the model::

        loss = F.info_nce(q, k, negatives=queue.negatives())
        queue.enqueue(k)

    Args:
        size: the most keys kept.
        features: length of a key.
        dtype: of the keys kept.
    """

    rows: Tensor
    written: Tensor

    def __init__(self, size: int, features: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        checks.integer("size", size, 1)
        checks.integer("features", features, 1)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ThawkitError(f"dtype must be a floating-point type, got {dtype}")
        self.register_buffer("rows", torch.zeros(size, features, dtype=dtype))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Tensor:
        """Return a copy of the keys kept, (at most ``size``, features), in no particular order."""
        return self.rows[: int(self.written)].clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Keep ``keys`` (N, features) in the place of the oldest ones; of more than ``size`` keys the last.

        Raises:
            ThawkitError: ``keys`` have another shape than (N, features).
        """
        checks.matrix("keys", keys)
        size, features = self.rows.shape
        if keys.shape[1] != features:
            raise ThawkitError(f"keys must have shape (N, {features}), got {tuple(keys.shape)}")
        start = int(self.written) + max(0, keys.shape[0] - size)
        keys = keys[-size:]
        places = (start + torch.arange(keys.shape[0], device=self.rows.device)) % size
        self.rows[places] = keys.to(self.rows)
        self.written.fill_(start + keys.shape[0])
