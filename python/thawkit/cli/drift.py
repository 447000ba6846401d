"""Compare a batch of features with a reference: has what the model sees moved? Files hold (rows, features)
arrays; the reference can also be what DriftDetector.save wrote. Exit status 1 says that it has moved.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HELP = "test whether a batch of features has drifted from a reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "reference", metavar="REFERENCE", help=".npy array, or .npz that DriftDetector.save wrote"
    )
    parser.add_argument("batch", metavar="BATCH", help=".npy array of as many features")
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="largest p-value that counts as drift (0.05)"
    )
    parser.add_argument("--permutations", type=int, metavar="N", help="of the test (1000)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the permutations (0)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command: 0 no drift, 1 drift."""
    import json

    from thawkit.drift import DriftDetector
    from thawkit.errors import ThawkitError

    given = {
        name: getattr(args, name)
        for name in ("threshold", "permutations", "seed")
        if getattr(args, name) is not None
    }
    if args.reference.endswith(".npz"):
        if given:
            raise ThawkitError(f"--{next(iter(given))} is kept in {args.reference} and cannot be given")
        detector = DriftDetector.load(args.reference)
    else:
        detector = DriftDetector(_array(args.reference), **given)
    report = detector.check(_array(args.batch))
    print(json.dumps(report.as_dict(), indent=1) if args.json else report)
    return int(report.drifted)


def _array(path: str) -> np.ndarray:
    import numpy as np

    from thawkit.errors import ThawkitError

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ThawkitError(f"{path} must be a .npy file of numbers ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ThawkitError(f"{path} must be a .npy file of numbers, got several: {', '.join(array.files)}")
    return array
