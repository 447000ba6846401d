"""What the demo says in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from thawkit.data import Splits

if TYPE_CHECKING:
    from thawkit.recipes.demo.walk import DemoResult

METHOD_NAMES = {"source_only": "source-only", "dan": "DAN"}


def show_data(sets: Sequence[Splits], console: Console) -> None:
    """Print one line a data set."""
    for splits in sets:
        console.print(
            f"{splits.name}: {len(splits.train)} training, {len(splits.val)} validation, "
            f"{len(splits.test)} test images; {len(splits.classes)} classes",
            highlight=False,
        )


def show_scores(name: str, metrics: dict[str, Any], console: Console) -> None:
    """Print a classifier's test scores in one line."""
    test = metrics["test"]
    console.print(
        f"[bold]{name}[/bold] on {test['count']} test images: accuracy {test['accuracy']:.3f}, "
        f"balanced accuracy {test['balanced_accuracy']:.3f}, AUROC {test['auroc']:.3f}",
        highlight=False,
    )


def show_digit_run(row: dict[str, Any], console: Console) -> None:
    """Print one line for one trained digits model."""
    console.print(
        f"seed {row['seed']}  {METHOD_NAMES[row['method']]:<11}  "
        f"target accuracy {row['target_accuracy']:.3f}  source accuracy {row['source_accuracy']:.3f}  "
        f"{row['seconds']:.1f} s",
        highlight=False,
    )


def show_bundle(figures: dict[str, Any], console: Console) -> None:
    """Print the bundle's size, agreement and speed."""
    console.print(
        f"model.onnx {figures['onnx_bytes'] / 1e6:.1f} MB, {figures['files']} files verified; logits within "
        f"{figures['export_difference']:.1e} of torch on {figures['export_images']} images\n"
        f"one image, median: onnxruntime {figures['onnxruntime_p50_ms']:.2f} ms, "
        f"torch {figures['torch_p50_ms']:.2f} ms",
        highlight=False,
    )


def show_elsewhere(figures: dict[str, Any], console: Console) -> None:
    """Print how the bundle did in a process of its own."""
    console.print(
        f"{figures['images']} test images in {figures['seconds']:.1f} s: logits within "
        f"{figures['max_difference']:.1e} of torch, top-1 the same on {figures['same_top1']}",
        highlight=False,
    )


def show(result: DemoResult, console: Console) -> None:
    """Print the checks, the time, and where the report is."""
    table = Table(title="thawkit demo", title_justify="left", show_lines=True)
    table.add_column("check")
    table.add_column("", justify="center")
    table.add_column("measured")
    for check in result.checks:
        word = "[green]passed[/green]" if check.passed else "[red]FAILED[/red]"
        if result.quick and check is not result.checks[-1]:
            word = "not judged"
        table.add_row(check.name, word, check.text)
    console.print()
    console.print(table, highlight=False)
    if result.quick:
        console.print("Quick form: too few images and epochs for accuracies to mean anything.")
    console.print(f"Time:   {result.values['seconds']:.0f} s", highlight=False)
    for title, path in (("Bundle", result.folder / "bundle"), ("Report", result.report)):
        console.print(f"{title}: {path}", highlight=False, soft_wrap=True, markup=False, emoji=False)
