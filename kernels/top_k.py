"""The largest similarities of each row, in Triton: which columns of a panel of products can be among them.

The k best columns lie in the k groups of neighbouring columns whose best ones are best: any other column has
k before it. So a panel is read once for the best of each group, and a few groups of it once more. What is
compared are keys, integers in the order of the similarities and, of equal ones, of the gallery, so that
selecting the largest in any order selects the right ones.
"""

# Triton reads annotations at run time, so they are not postponed here.
import torch
import triton
import triton.language as tl
from thawkit.kernels.launch import given
from thawkit.kernels.top_k_scores import NONE, Scores

_COLUMNS = 1024  # of a row at a time

_NONE = tl.constexpr(NONE)
_NO_ORDER = tl.constexpr(-0x80000000)  # below that of -inf


@triton.jit
def _order(score, own, other, EUCLIDEAN: tl.constexpr):
    """Return integers in the order of the similarities, of which one that is not a number has none."""
    if EUCLIDEAN:
        # from squared lengths that are finite
        score = 2.0 * score - own - other + ((own - own) + (other - other))
        score = tl.where(score > 0.0, 0.0, score)
    score = tl.where(score == 0.0, 0.0, score)  # -0 is 0
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), _NO_ORDER)


@triton.jit
def _key(order, number):
    return tl.where(
        order == _NO_ORDER, _NONE, (order.to(tl.int64) << 32) | (0x7FFFFFFF - number).to(tl.int64)
    )


@triton.jit
def _best_of_groups(
    S, Norms, ColumnNorms, Excluded, Keys, first, columns, groups, s_stride, keys_stride,
    EUCLIDEAN: tl.constexpr, EXCLUDES: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    here = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    score = tl.load(S + here * s_stride + column, mask=inside, other=float("nan"))
    own = 0.0
    other = 0.0
    if EUCLIDEAN:
        own = tl.load(Norms + here)
        other = tl.load(ColumnNorms + column, mask=inside, other=0.0)
    order = _order(score, own, other, EUCLIDEAN)
    if EXCLUDES:
        order = tl.where(first + column == tl.load(Excluded + here), _NO_ORDER, order)
    best = tl.max(tl.reshape(order, (BLOCK // GROUP, GROUP)), 1)
    group = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    tl.store(Keys + here * keys_stride + group, _key(best, group), mask=group < groups)


@triton.jit
def _keys_of_groups(
    S, Norms, ColumnNorms, Excluded, Groups, Keys, first, columns, groups, s_stride, groups_stride,
    keys_stride, EUCLIDEAN: tl.constexpr, EXCLUDES: tl.constexpr, CHOSEN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys of all columns of some groups, or of the first ones."""
    here = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    present = place < groups
    group = place
    if CHOSEN:
        key = tl.load(Groups + here * groups_stride + place, mask=present, other=_NONE)
        group = tl.where(key == _NONE, -1, 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32))
    within = tl.arange(0, GROUP)[None, :]
    column = tl.maximum(group, 0)[:, None] * GROUP + within
    inside = (present & (group >= 0))[:, None] & (column < columns)
    score = tl.load(S + here * s_stride + column, mask=inside, other=float("nan"))
    own = 0.0
    other = 0.0
    if EUCLIDEAN:
        own = tl.load(Norms + here)
        other = tl.load(ColumnNorms + column, mask=inside, other=0.0)
    order = _order(score, own, other, EUCLIDEAN)
    if EXCLUDES:
        order = tl.where(first + column == tl.load(Excluded + here), _NO_ORDER, order)
    out = Keys + here * keys_stride + place[:, None] * GROUP + within
    tl.store(out, _key(order, first + column), mask=present[:, None] & (within >= 0))


def _extras(scores: Scores) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    s = scores.products
    return given(scores.norms, s), given(scores.column_norms, s), given(scores.excluded, s)


def best_of_groups(scores: Scores, group: int, keys: torch.Tensor) -> None:
    """Write the best key of each ``group``, a power of 2, of columns (R, groups), by the group's number."""
    s = scores.products
    if s.numel() == 0:
        return
    block = max(_COLUMNS, group)
    _best_of_groups[(s.shape[0], triton.cdiv(s.shape[1], block))](
        s, *_extras(scores), keys, scores.first, s.shape[1], keys.shape[1], s.stride(0), keys.stride(0),
        EUCLIDEAN=scores.norms is not None, EXCLUDES=scores.excluded is not None, GROUP=group, BLOCK=block,
    )  # fmt: skip


def keys_of_groups(scores: Scores, group: int, groups: torch.Tensor | None, keys: torch.Tensor) -> None:
    """Write the keys of all columns of the groups whose keys are given (R, chosen), of all groups where None.

    The keys (R, chosen * group) of what is no column are ``NONE``.
    """
    s, count = scores.products, keys.shape[1] // group
    if keys.numel() == 0:
        return
    block = max(_COLUMNS, group)
    chosen = keys if groups is None else groups
    _keys_of_groups[(s.shape[0], triton.cdiv(count * group, block))](
        s, *_extras(scores), chosen, keys, scores.first, s.shape[1], count, s.stride(0), chosen.stride(0),
        keys.stride(0), EUCLIDEAN=scores.norms is not None, EXCLUDES=scores.excluded is not None,
        CHOSEN=groups is not None, GROUP=group, BLOCK=block,
    )  # fmt: skip
