"""What :func:`thawkit.freeze` did, and what it saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import nn

from thawkit.errors import ThawkitError
from thawkit.frozen.cache import FeatureCache
from thawkit.frozen.fidelity import Fidelity
from thawkit.frozen.forecast import Forecast, Forecaster
from thawkit.frozen.layers import Rewritten
from thawkit.frozen.structure import is_leaf, is_norm_layer
from thawkit.frozen.table import aligned, in_words, listed

_NAMED = 6  # how many of the modules left as they were the table names
_SAME = 0.98  # what is not less than that share of the bytes is no saving


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
        notes: in words, layers that the policy means and cannot reach, parameters that no gradient reaches,
            what else costs without being asked for, and where the feature cache cuts.
        minimum_bytes: bytes that the gradients need without recomputation, see
            :class:`thawkit.frozen.WasteReport`; None if not measured, and where channels of weights train.
        inexact_bytes: those of them that something else than the gradient of a weight matrix needs:
            normalizations, GELU, attention. Fewer bits an element would be inexact.
        packed_bytes: bytes of the second copies of frozen weights, folded and laid out for speed, after a
            forward of the example; a backward pass at most doubles them. They are made when first needed and
            dropped by ``unfreeze``; :func:`thawkit.frozen.packed_bytes` says what they take at the moment.
            None on machines where this gains nothing, and where nothing is laid out therefore.
        exact_bytes: what a lossy freeze (``act_bits``) would save without rounding; else None.
        fidelity: of a lossy freeze (``act_bits``), how near its gradient is to the exact one; else None.
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
    minimum_bytes: int | None = None
    inexact_bytes: int = 0
    packed_bytes: int | None = 0
    exact_bytes: int | None = None
    fidelity: Fidelity | None = None
    cache: FeatureCache | None = None
    _forecaster: Forecaster | None = field(default=None, compare=False, repr=False)

    @property
    def saves_nothing(self) -> bool:
        """Whether the recipe needs what the stock model saves, so that there is nothing to save exactly."""
        if None in (self.saved_bytes, self.saved_bytes_before, self.minimum_bytes):
            return False
        needed = min(self.saved_bytes or 0, self.minimum_bytes or 0)
        return needed >= _SAME * (self.saved_bytes_before or 0) > 0

    def forecast(self, batch_size: int) -> Forecast:
        """Forecast what a training step with a batch of another size saves, module by module.

        The first call runs the model on the example cut down, or repeated, to batches of 2 and 3; every
        tensor with the example's batch in its first dimension counts as part of the batch. The lines through
        the bytes are held against the report's own measurement.

        Raises:
            ThawkitError: nothing was measured, the model is gone or frozen otherwise by now, or the bytes do
                not grow with the batch, as where the batch is not the first dimension.
        """
        return self._source().forecast(batch_size)

    def largest_batch(self, memory_bytes: int, *, optimizer_states: int = 2) -> int:
        """Size of the largest batch whose training step fits in so much memory; 0 if none does.

        Counts the batch itself, parameters and buffers, second copies of frozen weights, optimizer states of
        what trains, and the most bytes that torch's allocator holds at once in forward and backward: what
        autograd saves, what lives while a layer runs, and gradients, of which ``zero_grad()`` has left none.
        The first call runs steps with batches of 2 and 3, and lines through what they hold at each moment
        tell the rest; where 48 fit, one of 24 tells what larger batches take besides. Not counted are the
        loss, what oneDNN or cuDNN allocate on their own, what the allocator keeps of what was freed, and the
        program: leave room for them.

        Args:
            memory_bytes: for the model and a step.
            optimizer_states: numbers that the optimizer keeps for each one that trains: 2 for Adam, 1 for SGD
                with momentum.

        Raises:
            ThawkitError: as :meth:`forecast`, or the model is on the meta device or uses reentrant
                checkpoints.
        """
        return self._source().largest_batch(memory_bytes, optimizer_states)

    def as_dict(self) -> dict[str, Any]:
        """Everything measured, JSON-able."""
        left = {"cache", "_forecaster"}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left}
        if self.fidelity is not None:
            values["fidelity"] = asdict(self.fidelity)
        return {**values, "rows": [asdict(row) for row in self.rows], "saves_nothing": self.saves_nothing}

    def _source(self) -> Forecaster:
        if self._forecaster is None:
            raise ThawkitError("report: nothing was measured; freeze with example= to forecast")
        return self._forecaster

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
                f"saved for backward: {in_words(self.saved_bytes_before)} -> {in_words(self.saved_bytes)}"
                f"{_ratio(self.saved_bytes_before, self.saved_bytes)}, {self.example}"
            )
        lines += self._remarks()
        if self.fidelity is not None:
            lines += str(self.fidelity).splitlines()
        lines += ["", *self._table()]
        if self.eager and self.trainable < self.total:
            named = [f"{name} ({in_words(size)})" for name, size in self.eager]
            lines += ["", f"left as eager: {listed(named, _NAMED)}"]
        return "\n".join([*lines, *self.notes])

    def _remarks(self) -> list[str]:
        lines = []
        if self.minimum_bytes is not None:
            lines.append(f"exact minimum without recomputation: {in_words(self.minimum_bytes)}")
        if self.saves_nothing and self.inexact_bytes > (self.minimum_bytes or 0) / 2:
            lines.append(
                "there is no exact saving for this recipe: its normalizations, activations and attention "
                f"need {in_words(self.inexact_bytes)} as they are; act_bits=8, 4 or 2 keeps that in fewer "
                "bits, with gradients that are no longer exact"
            )
        if self.exact_bytes is not None and self.saved_bytes is not None:
            lines.append(
                f"rounding leaves {in_words(self.saved_bytes)} of {in_words(self.exact_bytes)} that would be "
                f"saved exactly{_ratio(self.exact_bytes, self.saved_bytes)}"
            )
        if self.packed_bytes is None:
            lines.append("frozen weights are not laid out anew: torch's oneDNN operators do not run here")
        elif self.packed_bytes:
            lines.append(
                f"second copies of frozen weights, for speed: {in_words(self.packed_bytes)} in a forward, at "
                "most twice that in training"
            )
        return lines

    def _table(self) -> list[str]:
        header = ("layer", "count", "rewritten", "trainable", "before", "now")
        cells = [
            (
                row.kind,
                f"{row.modules}",
                f"{row.rewritten or ''}",
                f"{row.trainable:,}" if row.trainable else "",
                in_words(row.saved_bytes_before),
                in_words(row.saved_bytes),
            )
            for row in self.rows
        ]
        return aligned([header, *cells], left=1)


def _ratio(before: int, after: int) -> str:
    return f" ({before / after:.1f}x less)" if 0 < after < before else ""


def extrapolated(reports: Sequence[FreezeReport], sizes: Sequence[int], size: int) -> FreezeReport:
    """The report for a batch of ``size``, from two of one model and policy for batches of two ``sizes``."""
    first, second = reports

    def at(a: int | None, b: int | None) -> int | None:
        if a is None or b is None:
            return None
        return max(0, round(a + (b - a) / (sizes[1] - sizes[0]) * (size - sizes[0])))

    def both(a: object, b: object, *names: str) -> dict[str, Any]:
        return {name: at(getattr(a, name), getattr(b, name)) for name in names}

    rows = {row.kind: row for row in second.rows}
    named = dict(second.eager)
    counted = ("saved_bytes_before", "saved_bytes")
    return replace(
        first,
        rows=tuple(replace(row, **both(row, rows.get(row.kind, row), *counted)) for row in first.rows),
        eager=tuple((name, at(nbytes, named.get(name, nbytes)) or 0) for name, nbytes in first.eager),
        example=f"forecast for a batch of {size}",
        **both(first, second, *counted, "minimum_bytes", "inexact_bytes", "exact_bytes"),
    )


def make_report(
    model: nn.Module,
    train: str,
    fixed_statistics: int,
    rewritten: set[str],
    example: str,
    before: Counter[str] | None,
    after: Counter[str] | None,
    notes: Sequence[str] = (),
    **others: Any,
) -> FreezeReport:
    """Gather the report from a frozen model and the saved bytes by module name, None where not measured.

    ``others`` are attributes of the report as they are.
    """
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
        **others,
    )


def _kind(module: nn.Module) -> str:
    name = (module.stock if isinstance(module, Rewritten) else type(module)).__name__
    return name if is_norm_layer(module) or is_leaf(module) else f"{name} (own code)"
