"""One call from a labelled source and an unlabelled target to an adapted run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from thawkit.adapt.dan import DAN
from thawkit.data import Splits
from thawkit.select import Model
from thawkit.tune import Method, RunResult, TuneConfig, fit


def fit_adapt(
    model: Model,
    source: Splits,
    target: Splits,
    *,
    method: Method | None = None,
    config: TuneConfig | None = None,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Train on the source's labels and the target's images, and leave a run folder at ``output``.

    Target labels are never used to train or to choose: the weights kept are those of the last epoch
    (``keep="last"``, the default here) or of the epoch that was best on the *source's* val images
    (``keep="best"``, which tends to pick an epoch before the adaptation has taken hold). Where the target has
    labels, ``metrics["target"]`` reports its test images and the history its val images; nothing reads them.

    Source-only training under the same budget is ``method=Supervised()``: the same loop, steps and order.

    Args:
        model: trained in place.
        source: labelled images; an epoch is one pass over its training part.
        target: images of the other domain, with the same classes; its training part is cycled through.
        method: :class:`DAN` when not given.
        config: as for :func:`thawkit.tune.fit`; when not given, everything trains and the last epoch is kept.
        output, resume, overwrite, console: as for :func:`thawkit.tune.fit`.

    Raises:
        ThawkitError: as :func:`thawkit.tune.fit`.
    """
    return fit(
        model,
        source,
        target=target,
        method=method or DAN(),
        config=config or TuneConfig(train="all", keep="last"),
        output=output,
        resume=resume,
        overwrite=overwrite,
        console=console,
    )
