"""Stand-in for sentence-transformers' ``MultipleNegativesRankingLoss`` (release 6.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses import distributed as across_ranks
from thawkit.losses import functional as F
from thawkit.losses.distributed.ranks import prepared
from thawkit.losses.presets import own_rows
from thawkit.ops import checks
from thawkit.ops.pairwise.ranking import check_ranking_options

SIMILARITIES = ("cos_sim", "dot_score")


class MultipleNegativesRankingLoss(nn.Module):
    """sentence-transformers' ``MultipleNegativesRankingLoss``, for its trainer or on embeddings.

    See :func:`thawkit.losses.functional.multiple_negatives_ranking`.

    Args:
        model: called with the features of a column, it returns a dictionary with its ``sentence_embedding``.
        scale: inverse temperature; a parameter is learned with the model.
        similarity_fct: ``cos_sim`` or ``dot_score`` of ``sentence_transformers.util``, or their names.
        gather_across_devices: candidates are those of all ranks, by :mod:`thawkit.losses.distributed`, and
            the loss is the mean of this rank's queries.
        directions: which similarities the softmax goes over.
        partition_mode: ``joint`` or ``per_direction``.
        hardness_mode: None, ``in_batch_negatives``, ``hard_negatives`` or ``all_negatives``.
        hardness_strength: at least 0.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: Tensor | float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] | str = "cos_sim",
        gather_across_devices: bool = False,
        directions: tuple[str, ...] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
    ):
        super().__init__()
        checks.positive_scalar("scale", scale)
        check_ranking_options(directions, partition_mode, hardness_mode, hardness_strength)
        self.model = model
        self.scale = scale
        self.similarity = _name(similarity_fct)
        self.gather_across_devices = gather_across_devices
        self.directions = tuple(directions)
        self.partition_mode = partition_mode
        self.hardness_mode = hardness_mode
        self.hardness_strength = hardness_strength

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of columns of features: queries, their documents, any hard negatives.

        Each column has a forward pass of its own; sentence-transformers may join those of the documents.
        """
        embeddings = [self.model(column)["sentence_embedding"] for column in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Return the loss of columns of embeddings (N, D); ``labels`` are not used."""
        mode = "gather" if self.gather_across_devices else None
        queries, documents = prepared(None, mode, lambda: _queries_and_documents(embeddings))
        options: dict[str, Any] = {
            "logit_scale": self.scale,
            "normalize": self.similarity == "cos_sim",
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
        }
        if not self.gather_across_devices:
            return F.multiple_negatives_ranking(queries, documents, **options)
        rows = across_ranks.multiple_negatives_ranking(queries, documents, reduction="none", **options)
        return own_rows.mean(rows)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the arguments, for model cards."""
        return {
            "scale": self.scale,
            "similarity_fct": self.similarity,
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
        }

    @property
    def temperature(self) -> Tensor | float:
        """Inverse of the scale."""
        return 1.0 / self.scale


def _queries_and_documents(embeddings: list[Tensor]) -> tuple[Tensor, Tensor]:
    if len(embeddings) < 2:
        raise ThawkitError(f"embeddings must be of two columns or more, got {len(embeddings)}")
    for i, column in enumerate(embeddings[1:], 1):
        if column.shape != embeddings[0].shape:
            raise ThawkitError(
                f"embeddings[{i}] must have the shape of embeddings[0], {tuple(embeddings[0].shape)}, "
                f"got {tuple(column.shape)}"
            )
    return embeddings[0], torch.cat(embeddings[1:])


def _name(similarity_fct: object) -> str:
    module = getattr(similarity_fct, "__module__", "")
    name = similarity_fct if isinstance(similarity_fct, str) else getattr(similarity_fct, "__name__", "")
    known = isinstance(similarity_fct, str) or module.split(".")[0] == "sentence_transformers"
    if known and name in SIMILARITIES:
        return str(name)
    raise ThawkitError(
        "similarity_fct must be cos_sim or dot_score of sentence_transformers.util, or their names, "
        f"got {similarity_fct!r}"
    )
