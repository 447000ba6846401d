"""The demo from its first step to its last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from thawkit.data import Splits
from thawkit.deploy import runtime
from thawkit.recipes.demo import bundle, digits, folder, machine, report, summary, xrays
from thawkit.recipes.demo.checks import Check, checks
from thawkit.recipes.demo.settings import FULL, QUICK, Settings
from thawkit.tune import load_run

STAGES = 6


@dataclass(frozen=True)
class DemoResult:
    """A finished demo.

    Attributes:
        folder: where everything lies.
        report: the HTML page.
        values: the content of ``demo.json``, from which the page is made.
        checks: the promises, kept or not.
        quick: whether this was the quick form, whose accuracies promise nothing.
    """

    folder: Path
    report: Path
    values: dict[str, Any]
    checks: tuple[Check, ...]
    quick: bool

    @property
    def failed(self) -> tuple[Check, ...]:
        """The broken promises; the quick form promises only that the bundle agrees with torch."""
        return tuple(check for check in (self.checks[-1:] if self.quick else self.checks) if not check.passed)


def run(
    output: str | Path = "thawkit-demo", *, quick: bool = False, seed: int = 0, console: Console | None = None
) -> DemoResult:
    """Walk the whole path and leave run folders, a bundle, ``demo.json`` and ``report.html`` in ``output``.

    Args:
        output: a new or empty folder, or one that an earlier demo wrote, which is replaced.
        quick: the same steps on fewer images, for a smoke test; its accuracies mean nothing.
        seed: of the fine-tuning, and the first of the seeds of the digits.
        console: where progress goes; standard output when not given.

    Raises:
        ThawkitError: ``output`` is in use; as a ParityError: the bundle's logits are not torch's.
        MissingDependencyError: the extra ``demo`` is not installed.
    """
    runtime.require()
    place = folder.prepare(output)
    start = time.perf_counter()
    walk = _Walk(place, QUICK if quick else FULL, seed, console or Console())
    with walk.stage("The data"):
        images = xrays.load_xrays(walk.settings, seed)
        source, target = digits.load_digits(walk.settings, seed)
        summary.show_data([images, source, target], walk.console)
    values: dict[str, Any] = {
        "quick": quick,
        "seed": seed,
        "command": machine.command(output, quick, seed),
        "machine": machine.describe(),
        "settings": asdict(walk.settings),
        "xray": {"data": xrays.describe_data(images), **walk.xrays(images)},
        "digits": walk.digits(source, target),
        "bundle": walk.bundle(images),
    }
    values["stages"] = walk.stages
    values["seconds"] = time.perf_counter() - start
    values["finished"] = time.strftime("%Y-%m-%d %H:%M")
    found = tuple(checks(values))
    values["checks"] = [asdict(check) for check in found]
    values = folder.write_result(place, values)
    page = place / folder.REPORT
    page.write_text(report.render(values), encoding="utf-8")
    result = DemoResult(place, page, values, found, quick)
    summary.show(result, walk.console)
    return result


@dataclass
class _Walk:
    """The stages, and how long each took."""

    place: Path
    settings: Settings
    seed: int
    console: Console
    stages: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print a heading, and keep the time."""
        self.console.print()
        self.console.rule(f"[bold]{len(self.stages) + 1}/{STAGES}  {name}", align="left")
        start = time.perf_counter()
        yield
        self.stages.append({"name": name, "seconds": time.perf_counter() - start})

    def xrays(self, images: Splits) -> dict[str, Any]:
        """Probe, then fine-tune."""
        with self.stage("X-rays: linear probe"):
            with self.console.status("features of the frozen network, and logistic regression on them"):
                probe = xrays.probe(images, self.settings, self.seed)
            summary.show_scores("linear probe", probe, self.console)
        with self.stage("X-rays: fine-tuning"):
            plan_text, plan = xrays.freeze_plan(images, self.settings, self.seed)
            self.console.print(f"One training step of {plan['images']} X-rays:", highlight=False)
            self.console.print(plan_text, highlight=False, markup=False)
            self.console.print()
            run = xrays.fine_tune(images, self.settings, self.seed, self.place / folder.XRAY, self.console)
            summary.show_scores("fine-tuned", run.metrics, self.console)
            samples = xrays.samples(run.model, images.test, self.seed)
        return {
            "probe": probe,
            "freeze": plan,
            "tuned": run.metrics,
            "history": run.history,
            "samples": samples,
        }

    def digits(self, source: Splits, target: Splits) -> dict[str, Any]:
        """Train source-only and DAN with every seed."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with (
            self.stage("Digits: source-only and DAN"),
            Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as bar,
        ):
            task = bar.add_task("training", total=2 * self.settings.digit_seeds)

            def on_run(row: dict[str, Any]) -> None:
                bar.advance(task)
                summary.show_digit_run(row, self.console)

            trained = digits.train(
                source, target, self.settings, self.seed, self.place / folder.DIGITS, on_run
            )
        described = {"source": xrays.describe_data(source), "target": xrays.describe_data(target)}
        return {**described, **trained}

    def bundle(self, images: Splits) -> dict[str, Any]:
        """Make the bundle from the run folder, as ``thawkit export`` does, and run it elsewhere."""
        output = self.place / folder.BUNDLE
        with self.stage("Bundle: export and verify"), self.console.status("exporting to ONNX") as status:
            tuned = load_run(self.place / folder.XRAY)
            figures = bundle.export_and_verify(tuned, images.test, output)
            status.update("timing torch")
            figures.update(bundle.torch_latency(tuned, images.test, self.settings.latency_images))
            summary.show_bundle(figures, self.console)
        with self.stage("Bundle: run in a process of its own"), self.console.status("running run.py"):
            figures["elsewhere"] = bundle.run_elsewhere(tuned, images.test, output)
            summary.show_elsewhere(figures["elsewhere"], self.console)
        return figures
