"""Turn a finished run into a bundle: a folder with one ONNX model (preprocessing inside), labels, checksums,
sample images and run.py, which needs only onnxruntime, numpy and pillow. The model is compared with torch on
the run's test images, and nothing is written where they disagree.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from thawkit.cli import held_out
from thawkit.cli.console import plain_console

if TYPE_CHECKING:
    from thawkit.data import ImageDataset
    from thawkit.deploy import ExportReport

HELP = "make a bundle for a device from a finished run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="RUN", help="folder that thawkit train or thawkit adapt made")
    parser.add_argument("--output", "-o", required=True, metavar="BUNDLE", help="folder to make")
    parser.add_argument("--name", help="name of the bundle; by default that of the folder")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of a logit between torch and ONNX"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="compare on at most N test images, evenly spaced; 0: all",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    held_out.add_arguments(parser, "compare on the test images of this data instead of the run's own")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 done, 1 the model and torch disagree."""
    from rich.console import Console

    from thawkit.deploy import ParityError, export
    from thawkit.errors import ThawkitError
    from thawkit.tune import load_run

    if args.images < 0:
        raise ThawkitError(f"--images must be at least 0, got {args.images}")
    with Console(stderr=True).status("Loading the run") as status:
        source = load_run(args.source)
        trained_on = [data for data in (source.data, source.target) if data is not None]
        samples = _at_most(args.images, held_out.load_test(args, trained_on, source.classes))
        status.update(f"Exporting, and comparing with torch on {len(samples)} images")
        try:
            report = export(
                source.model.module,
                source.preprocess,
                source.classes,
                args.output,
                samples=samples,
                tolerance=args.tolerance,
                name=args.name,
                overwrite=args.overwrite,
                trained_on=trained_on,
            )
        except ParityError as error:
            print(f"thawkit export: {error}", file=sys.stderr)
            return 1
    _print(report, samples)
    return 0


def _at_most(limit: int, test: ImageDataset) -> ImageDataset:
    import numpy as np

    if not limit or len(test) <= limit:
        return test
    return test.subset(np.linspace(0, len(test) - 1, limit).round().astype(int))


def _print(report: ExportReport, samples: ImageDataset) -> None:
    from rich.table import Table

    parity = report.parity
    table = Table(title=f"Bundle {report.name}", title_justify="left", show_header=False, box=None)
    table.add_row("folder", str(report.folder))
    table.add_row("size", f"{report.bytes / 1e6:.2f} MB, model.onnx {report.model_bytes / 1e6:.2f} MB")
    table.add_row("classes", f"{len(report.classes)}: {', '.join(report.classes[:8])}")
    table.add_row(
        "parity",
        f"logits within {parity.max_difference:.1e} of torch (tolerance {parity.tolerance:.0e}), same top-1,"
        f" on {parity.images} images of {parity.sizes} sizes in batches of 1 to {parity.largest_batch}",
    )
    if parity.accuracy is not None:
        table.add_row("accuracy", f"{parity.accuracy:.1%} on {len(samples)} images of {samples.name}")
    table.add_row("time", f"{report.seconds:.0f} s")
    for note in report.notes:
        table.add_row("note", note)
    table.add_row("next", f"python {report.folder / 'run.py'} IMAGE...    thawkit verify {report.folder}")
    plain_console(soft_wrap=True).print(table)
