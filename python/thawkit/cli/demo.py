"""Walk the whole path on real data that comes with thawkit, with nothing to download.

An ImageNet network is fine-tuned, partially frozen, on chest X-rays and compared with a linear probe; digits
of one handwriting are adapted to another without its labels; the X-ray model is exported, verified, and run
from its bundle in a process of its own. It ends with a one-page report, report.html in the output folder.
Exit status 1 says that one of the demo's checks failed.
"""

from __future__ import annotations

import argparse
import sys

HELP = "see everything work on real data, in a few minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--quick", action="store_true", help="the same steps on fewer images; its accuracies mean nothing"
    )
    parser.add_argument(
        "--output",
        "-o",
        default="thawkit-demo",
        metavar="DIR",
        help="folder to make; one that an earlier demo wrote is replaced",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same run")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 all checks passed, 1 one failed."""
    from thawkit.errors import ThawkitError

    if args.seed < 0:
        raise ThawkitError(f"--seed must be at least 0, got {args.seed}")

    from thawkit.deploy import ParityError
    from thawkit.recipes.demo import run as run_demo

    try:
        result = run_demo(args.output, quick=args.quick, seed=args.seed)
    except ParityError as error:
        print(f"thawkit demo: check failed: {error}", file=sys.stderr)
        return 1
    for check in result.failed:
        print(f"thawkit demo: check failed: {check.name}: {check.text}", file=sys.stderr)
    return 1 if result.failed else 0
