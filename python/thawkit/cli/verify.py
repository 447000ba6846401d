"""Check a bundle: manifest, checksums, missing and unknown files, that the model loads, and that it gives the
logits of its sample images that torch gave at export. With --data also its accuracy and latency.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from thawkit.cli import held_out
from thawkit.cli.console import plain_console

if TYPE_CHECKING:
    from thawkit.deploy import VerifyReport

HELP = "check a bundle, and measure it on data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that thawkit export made")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what onnxruntime runs on")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 means one a core")
    held_out.add_arguments(parser, "measure accuracy and latency on the test images of this data")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 all is well, 1 the samples give other logits."""
    from rich.console import Console

    from thawkit.deploy import ParityError, verify
    from thawkit.errors import ThawkitError

    if args.threads < 0:
        raise ThawkitError(f"--threads must be at least 0, got {args.threads}")
    with Console(stderr=True).status("Checking the bundle") as status:
        dataset = None
        if args.data is not None:
            from thawkit.deploy import Bundle

            trained_on = Bundle(args.bundle).manifest.get("trained_on", [])
            dataset = held_out.load_test(args, trained_on)
            status.update(f"Checking the bundle, and running it on {len(dataset)} images")
        try:
            report = verify(args.bundle, dataset=dataset, device=args.device, threads=args.threads)
        except ParityError as error:
            print(f"thawkit verify: {error}", file=sys.stderr)
            return 1
    _print(report)
    return 0


def _print(report: VerifyReport) -> None:
    from rich.table import Table

    table = Table(title=f"Bundle {report.name} is sound", title_justify="left", show_header=False, box=None)
    table.add_row("files", f"{report.files} as in the manifest, {report.bytes / 1e6:.2f} MB")
    table.add_row("classes", f"{len(report.classes)}: {', '.join(report.classes[:8])}")
    table.add_row(
        "samples",
        f"{report.samples} give the logits of torch within {report.max_difference:.1e}"
        f" (tolerance {report.tolerance:.0e})",
    )
    if report.dataset is not None:
        data = report.dataset
        table.add_row("accuracy", f"{data.accuracy:.1%} on {data.images} images of {data.name}")
        table.add_row("latency", f"p50 {data.p50_ms:.2f} ms, p95 {data.p95_ms:.2f} ms, one image at a time")
    plain_console(soft_wrap=True).print(table)
