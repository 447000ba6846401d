"""The test images that export and verify run on, split off as they were when the model was trained.

With another seed or other shares, a folder that has to be split would give training images as test images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thawkit.cli.train import add_split_arguments
from thawkit.errors import ThawkitError

if TYPE_CHECKING:
    from thawkit.data import ImageDataset

_SPLIT = ("seed", "val", "test")


def add_arguments(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declare which data, and how they are split."""
    group = parser.add_argument_group("data", "The split is by default that of the training run.")
    group.add_argument("--data", metavar="SPEC", help=purpose)
    group.add_argument("--seed", type=int, metavar="N", help="of the split, where the data has no test part")
    add_split_arguments(group, share=None)


def load_test(
    args: argparse.Namespace, trained_on: Sequence[Mapping[str, Any]], classes: Sequence[str] | None = None
) -> ImageDataset:
    """Return the test part of ``--data``; warn in one line where it is not what the model was tested on.

    Args:
        args: the arguments of :func:`add_arguments`.
        trained_on: the model's source and, if it was adapted, its target, as
            :class:`thawkit.tune.Run` holds them; the last one has the defaults.
        classes: as for :func:`thawkit.data.load`.
    """
    from thawkit.data import load

    recorded = trained_on[-1] if trained_on else {}
    spec = args.data or recorded.get("spec")
    if spec is None:
        raise ThawkitError("the run does not say where its data are: name a folder or file with --data")
    given = {name: getattr(args, name) for name in _SPLIT if getattr(args, name) is not None}
    split = {name: recorded[name] for name in _SPLIT if name in recorded} | given
    splits = load(spec, **split, classes=classes)
    if trained_on and splits.fingerprint() not in [record.get("fingerprint") for record in trained_on]:
        print(
            f"thawkit {args.command}: warning: {spec} is not the data of the training run, or not split as "
            "there; its test images may have been trained on",
            file=sys.stderr,
        )
    return splits.test
