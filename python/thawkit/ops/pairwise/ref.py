"""Labelled rows to compare embeddings with, other than the embeddings themselves: checks, common classes."""

from __future__ import annotations

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops import checks
from thawkit.ops.pairwise.common import numbered


def check_ref(embeddings: Tensor, ref: Tensor | None, ref_labels: Tensor | None) -> None:
    """Require neither, or rows that fit ``embeddings`` and one label for each."""
    if (ref is None) != (ref_labels is None):
        given, missing = ("ref", "ref_labels") if ref_labels is None else ("ref_labels", "ref")
        raise ThawkitError(f"{missing} must come with {given}, got None")
    if ref is None or ref_labels is None:
        return
    check_ref_rows(embeddings, ref)
    checks.labels("ref_labels", ref_labels, "ref", ref)


def check_ref_rows(embeddings: Tensor, ref: Tensor, name: str = "ref") -> None:
    """Require a matrix of the device, dtype and number of columns of ``embeddings``."""
    checks.matrix(name, ref)
    checks.same_device(name, ref, "embeddings", embeddings)
    checks.same_features(name, ref, "embeddings", embeddings)
    if ref.dtype != embeddings.dtype:
        raise ThawkitError(f"{name} must have the dtype of embeddings, {embeddings.dtype}, got {ref.dtype}")


def own_offset(own: int | None, embeddings: Tensor, ref: Tensor | None) -> int | None:
    """Return where the embeddings stand in the rows that they are compared with; None: they do not.

    Without ``ref`` they are these rows; with it, row i of the embeddings is row ``own + i`` of it.
    """
    if ref is None:
        if own is not None:
            raise ThawkitError(f"own says where the embeddings are in ref, which is None, got own={own!r}")
        return 0
    last = ref.shape[0] - embeddings.shape[0]
    if own is not None and not (isinstance(own, int) and 0 <= own <= last):
        raise ThawkitError(
            f"own must be the first of {embeddings.shape[0]} rows of ref, which has {ref.shape[0]}, "
            f"got {own!r}"
        )
    return own


def common_classes(labels: Tensor, ref_labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return numbers of the classes of both, from 0 to below the number of all labels."""
    if ref_labels is None:
        numbers = numbered(labels)
        return numbers, numbers
    numbers = numbered(torch.cat((labels, ref_labels)))
    return numbers[: labels.shape[0]], numbers[labels.shape[0] :]
