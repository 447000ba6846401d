"""What :func:`thawkit.freeze` did, and what it saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from thawkit.frozen.cache import FeatureCache
from thawkit.frozen.layers import Rewritten
from thawkit.frozen.structure import is_leaf, is_norm_layer

_NAMED = 6  # how many of the modules left as they were the table names


@dataclass(frozen=True)
class Row:
    """One kind of layer.

    Attributes:
        kind: class name of the stock layer, or ``Block (own code)`` for what runs in a larger module's
            own ``forward``.
        modules: how many there are.
        rewritten: how many of them save less now.
        trainable: trainable parameters that they hold.
        saved_bytes_before: bytes that autograd keeps for their backward in stock form; None if not measured.
        saved_bytes: the same, rewritten.
    """

    kind: str
    modules: int
    rewritten: int
    trainable: int
    saved_bytes_before: int | None
    saved_bytes: int | None


@dataclass(frozen=True)
class FreezeReport:
    """What trains and what a training step saves for the backward pass. ``print(report)`` shows a table.

    Attributes:
        train: the policy.
        trainable: number of trainable parameters.
        total: number of parameters.
        fixed_statistics: number of batch normalizations that keep their running statistics.
        rows: one for each kind of layer that trains, saves something or was rewritten.
        example: what was measured on, in words; empty if nothing was measured.
        saved_bytes_before: activation bytes that a forward saves in stock form with the same parameters
            training; None if not measured. Parameters, buffers and the example itself do not count.
        saved_bytes: the same, rewritten.
        eager: names and bytes of the modules left in stock form that save something although nothing of
            their own trains, largest first; empty if not measured.
        notes: layers that the policy means and cannot reach, and where the feature cache cuts, in words.
        cache: makes of a data set one of features; None where none was asked for.
    """

    train: str
    trainable: int
    total: int
    fixed_statistics: int
    rows: tuple[Row, ...]
    example: str
    saved_bytes_before: int | None
    saved_bytes: int | None
    eager: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()
    cache: FeatureCache | None = None

    def __str__(self) -> str:
        lines = [
            f"thawkit.freeze: train={self.train!r} trains {self.trainable:,} of {self.total:,} parameters "
            f"({100 * self.trainable / max(self.total, 1):.2f} %)"
        ]
        if self.fixed_statistics:
            lines.append(f"{self.fixed_statistics} batch normalizations stay in evaluation mode")
        if self.saved_bytes is None or self.saved_bytes_before is None:
            lines.append("bytes saved for backward: not measured; pass example= to measure")
        else:
            lines.append(
                f"saved for backward: {_size(self.saved_bytes_before)} -> {_size(self.saved_bytes)}"
                f"{_ratio(self.saved_bytes_before, self.saved_bytes)}, measured on {self.example}"
            )
        lines += ["", *self._table()]
        if self.eager and self.trainable < self.total:
            named = ", ".join(f"{name} ({_size(size)})" for name, size in self.eager[:_NAMED])
            more = len(self.eager) - _NAMED
            lines += ["", f"left as eager: {named}" + (f" and {more} more" if more > 0 else "")]
        return "\n".join([*lines, *self.notes])

    def _table(self) -> list[str]:
        header = ("layer", "count", "rewritten", "trainable", "before", "now")
        cells = [
            (
                row.kind,
                f"{row.modules}",
                f"{row.rewritten or ''}",
                f"{row.trainable:,}" if row.trainable else "",
                _size(row.saved_bytes_before),
                _size(row.saved_bytes),
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
        aligned = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
        return [aligned.format(*line) for line in [header, *cells]]


def _size(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB" if size else "0"


def _ratio(before: int, after: int) -> str:
    return f" ({before / after:.1f}x less)" if 0 < after < before else ""


def make_report(
    model: nn.Module,
    train: str,
    fixed_statistics: int,
    rewritten: set[str],
    example: str,
    before: Counter[str] | None,
    after: Counter[str] | None,
    notes: Sequence[str] = (),
) -> FreezeReport:
    """Gather the report from a frozen model and the saved bytes by module name, None where not measured."""
    counts: dict[str, Counter[str]] = {}
    eager: Counter[str] = Counter()
    for name, module in model.named_modules():
        trainable = sum(p.numel() for p in module.parameters(recurse=False) if p.requires_grad)
        row = counts.setdefault(_kind(module), Counter())
        row.update(modules=1, rewritten=int(name in rewritten), trainable=trainable)
        if before is not None and after is not None:
            row.update(before=before[name], after=after[name])
            if after[name] and not trainable and name not in rewritten:
                eager[name or type(module).__name__] = after[name]
    rows = tuple(
        Row(
            kind,
            row["modules"],
            row["rewritten"],
            row["trainable"],
            None if before is None else row["before"],
            None if after is None else row["after"],
        )
        for kind, row in counts.items()
        if row["rewritten"] or row["trainable"] or row["before"] or row["after"]
    )
    return FreezeReport(
        train=train,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        # The trainable channels of a weight are in the weight as well.
        total=sum(p.numel() for name, p in model.named_parameters() if not name.endswith(".weight_channels")),
        fixed_statistics=fixed_statistics,
        rows=tuple(sorted(rows, key=lambda row: -(row.saved_bytes_before or 0))),
        example=example,
        saved_bytes_before=None if before is None else before.total(),
        saved_bytes=None if after is None else after.total(),
        eager=tuple(eager.most_common()),
        notes=tuple(notes),
    )


def _kind(module: nn.Module) -> str:
    name = (module.stock if isinstance(module, Rewritten) else type(module)).__name__
    return name if is_norm_layer(module) or is_leaf(module) else f"{name} (own code)"
