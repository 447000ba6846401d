"""The positives of the supervised contrastive loss: which pairs they are, and sums over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import lifted, product
from thawkit.ops.pairwise.ref import common_classes
from thawkit.ops.pairwise.reference import shared_labels


class Positives(NamedTuple):
    """Sums over each row's positives, in O(N D) for labels."""

    weight: Tensor
    """(N,) sums of their weights."""
    rows: Tensor
    """(N, D) sums of the positives, weighed."""
    classes: tuple[Tensor, Tensor] | None = None
    """Those of the embeddings and of the rows they are compared with, int32, where a row has one class."""

    def without(self, weight: Tensor, rows: Tensor) -> Positives:
        """Return what is left without one row each, of that weight."""
        return self._replace(weight=self.weight - weight, rows=self.rows - weight[:, None] * rows)


_CHUNK = 1 << 22  # weights of pairs at once


class Pairs(NamedTuple):
    """What says how much a row of (N, D) embeddings and one of (M, D) others weigh as a pair.

    Either labels, those of the others being the same where ``ref_labels`` is None, or a matrix (B, C) of
    weights, that of rows i and j standing at ``[i % B, j % C]``.
    """

    labels: Tensor | None
    ref_labels: Tensor | None
    pair_weight: Tensor | None

    @property
    def by_class(self) -> bool:
        """Whether each row has one label, so that a pair weighs 1 or 0."""
        return self.labels is not None and self.labels.dim() == 1

    def matrix(self, embeddings: Tensor, others: Tensor) -> Tensor:
        """Return the (N, M) weights."""
        if self.labels is None:
            assert self.pair_weight is not None
            views = _views(embeddings, others, self.pair_weight)
            return self.pair_weight.detach().repeat(*views)
        labels = self.labels
        if labels.dim() == 2:
            labels = labels.to(lifted(embeddings).dtype)
        return shared_labels(labels, labels if self.ref_labels is None else self.ref_labels.to(labels.dtype))

    def positives(self, embeddings: Tensor, others: Tensor, own: int | None) -> Positives:
        """Return the sums over the rows' positives, without row i + own of the others for row i."""
        others = others.float()
        n = embeddings.shape[0]
        if self.labels is None:
            return self._weighed(embeddings, others, own)
        if self.by_class:
            mine, theirs = common_classes(self.labels, self.ref_labels)
            classes = n + (0 if self.ref_labels is None else others.shape[0])
            counts = others.new_zeros(classes).index_add(0, theirs, others.new_ones(others.shape[0]))
            sums = others.new_zeros(classes, others.shape[1]).index_add(0, theirs, others)
            found = Positives(counts[mine], sums[mine], (mine.to(torch.int32), theirs.to(torch.int32)))
            if own is not None:
                itself = (mine == theirs[own : own + n]).float()
        else:
            labels = self.labels.float()
            ref_labels = labels if self.ref_labels is None else self.ref_labels.float()
            found = Positives(labels @ ref_labels.sum(0), product(labels, product(ref_labels.t(), others)))
            if own is not None:
                itself = (labels * ref_labels[own : own + n]).sum(1)
        return found if own is None else found.without(itself, others[own : own + n])

    def heaviest(self, embeddings: Tensor, others: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
        """Return the number of a positive of the largest weight of each row, -1 for none, and that weight."""
        n, m = embeddings.shape[0], others.shape[0]
        row = torch.arange(n, device=embeddings.device)
        itself = torch.full_like(row, -1) if own is None else row + own
        if self.labels is not None and self.by_class:
            mine, theirs = common_classes(self.labels, self.ref_labels)
            number = torch.arange(m, device=mine.device)
            none = torch.full((n + m,), m, device=mine.device)
            first = none.scatter_reduce(0, theirs, number, "amin")
            second = none.scatter_reduce(0, theirs, number.where(number != first[theirs], m), "amin")
            found = first[mine].where(first[mine] != itself, second[mine])
            return found.where(found < m, -1), (found < m).float()
        weights, numbers = [], []
        for rows in row.split(max(1, _CHUNK // max(m, 1))) if m else ():
            weight = self._some(rows, embeddings, others).masked_fill(
                itself[rows, None] == torch.arange(m, device=row.device), 0
            )
            heaviest = weight.max(dim=1)
            weights.append(heaviest.values)
            numbers.append(heaviest.indices)
        if not weights:
            return torch.full_like(row, -1), row.float() * 0
        weight = torch.cat(weights)
        return torch.cat(numbers).where(weight > 0, -1), weight

    def _some(self, rows: Tensor, embeddings: Tensor, others: Tensor) -> Tensor:
        """(R, M) weights of some rows' pairs."""
        if self.labels is None:
            assert self.pair_weight is not None
            _, views = _views(embeddings, others, self.pair_weight)
            return self.pair_weight.detach().float()[rows % self.pair_weight.shape[0]].repeat(1, views)
        labels = self.labels.float()
        return labels[rows] @ (labels if self.ref_labels is None else self.ref_labels.float()).t()

    def _weighed(self, embeddings: Tensor, others: Tensor, own: int | None) -> Positives:
        """The sums by ``pair_weight``. A row's own weight is never in them: taking it out again would leave
        its rounding, which may be larger than all other weights.
        """
        assert self.pair_weight is not None
        weight = self.pair_weight.detach().float()
        views, other_views = _views(embeddings, others, weight)
        c = weight.shape[1]
        sums = others.reshape(other_views, c, others.shape[1]).sum(0)
        if own is None or not c:
            return Positives(
                (weight.sum(1) * other_views).repeat(views), product(weight, sums).repeat(views, 1)
            )
        if weight.shape[0] % c:  # else all views of a row have the same column of their own
            weight, views = weight.repeat(views, 1), 1
        row = torch.arange(weight.shape[0], device=weight.device)
        column = (row + own) % c
        itself = weight[row, column]
        weight = weight.index_put((row, column), weight.new_zeros(()))
        total, rows = weight.sum(1).repeat(views), product(weight, sums).repeat(views, 1)
        if other_views == 1:
            return Positives(total, rows)
        itself = itself.repeat(views)
        twins = sums[column].repeat(views, 1) - others[own : own + embeddings.shape[0]]  # of the other views
        return Positives(total * other_views + itself * (other_views - 1), rows + itself[:, None] * twins)


def _views(embeddings: Tensor, others: Tensor, pair_weight: Tensor) -> tuple[int, int]:
    b, c = pair_weight.shape
    return embeddings.shape[0] // max(b, 1), others.shape[0] // max(c, 1)


def checked_pairs(
    embeddings: Tensor,
    ref: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    pair_weight: Tensor | None,
) -> Pairs:
    """Require labels of all rows, or weights of their pairs.

    Raises:
        ThawkitError: both or neither are given, or they do not fit the rows.
    """
    if (labels is None) == (pair_weight is None):
        came = "neither" if labels is None else "both"
        raise ThawkitError(f"either labels or pair_weight must be given, got {came}")
    if labels is None:
        if ref_labels is not None:
            raise ThawkitError("ref_labels must come with labels, got pair_weight")
        _check_pair_weight(pair_weight, embeddings, embeddings if ref is None else ref)
        return Pairs(None, None, pair_weight)
    check_labels(labels, embeddings)
    if (ref is None) != (ref_labels is None):
        given, missing = ("ref", "ref_labels") if ref_labels is None else ("ref_labels", "ref")
        raise ThawkitError(f"{missing} must come with {given}, got None")
    if ref is not None and ref_labels is not None:
        check_labels(ref_labels, ref, "ref_labels", "ref")
        if labels.shape[1:] != ref_labels.shape[1:]:
            raise ThawkitError(
                f"ref_labels must have as many columns as labels, {tuple(labels.shape)}, "
                f"got {tuple(ref_labels.shape)}"
            )
    return Pairs(labels, ref_labels, None)


def check_labels(
    labels: Tensor, embeddings: Tensor, name: str = "labels", rows_name: str = "embeddings"
) -> None:
    """Require (N,) integers or an (N, L) matrix of zeros and ones, for (N, D) embeddings."""
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        checks.labels(name, labels, rows_name, embeddings)
        return
    if labels.shape[0] != embeddings.shape[0]:
        raise ThawkitError(
            f"{name} must have shape ({embeddings.shape[0]},) or ({embeddings.shape[0]}, L), "
            f"got {tuple(labels.shape)}"
        )
    if labels.is_complex():
        raise ThawkitError(f"{name} of shape (N, L) must hold zeros and ones, got {labels.dtype}")
    checks.same_device(name, labels, rows_name, embeddings)
    if checks.readable(labels) and not bool(((labels == 0) | (labels == 1)).all()):
        raise ThawkitError(f"{name} of shape (N, L) must hold zeros and ones only")


def _check_pair_weight(pair_weight: object, embeddings: Tensor, others: Tensor) -> None:
    if not isinstance(pair_weight, Tensor):
        raise ThawkitError(f"pair_weight must be a tensor, got {type(pair_weight).__name__}")
    if pair_weight.is_complex():
        raise ThawkitError(f"pair_weight must hold real numbers, got {pair_weight.dtype}")
    rows = embeddings.shape[0], others.shape[0]
    if pair_weight.dim() != 2 or any(
        n % size if size else n for n, size in zip(rows, pair_weight.shape, strict=True)
    ):
        raise ThawkitError(
            f"pair_weight must be a matrix whose numbers of rows and columns divide {rows[0]} and {rows[1]}, "
            f"got {tuple(pair_weight.shape)}"
        )
    checks.same_device("pair_weight", pair_weight, "embeddings", embeddings)
    checks.not_negative("pair_weight", pair_weight)
