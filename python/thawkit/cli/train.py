"""Fine-tune a model on your images: a folder with one sub-folder a class, an .npz file, or a built-in set.

A run that was interrupted, in whatever way, goes on when the same command is given again with --resume, and
ends with the same metrics. The run folder is what thawkit export makes a bundle of.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from thawkit.choices import CRITERIA, DEVICES, MONITORS, PRECISIONS, PROFILES, SCHEDULERS
from thawkit.cli.console import plain_console
from thawkit.errors import ThawkitError

if TYPE_CHECKING:
    from rich.console import Console

    from thawkit import FeatureCache
    from thawkit.tune import RunResult, TuneConfig

HELP = "fine-tune a model on a folder of images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", required=True, metavar="SPEC", help="folder, .npz, or pneumoniamnist, mnist, optdigits"
    )
    add_split_arguments(data)
    add_model_arguments(parser, default="efficientnet_lite0")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train",
        default="head",
        metavar="POLICY",
        help="what trains: head, last:K, norm, bias, all, surgical:first|middle|last, lisa:K, "
        "channels:FRACTION, lora:R, or a pattern on parameter names; joined with +; by epoch from 0: "
        "head@0,last:2@3",
    )
    add_training_arguments(training, augment="standard", epochs=10, learning_rate=1e-3, batch_size=32)
    training.add_argument(
        "--patience", type=int, metavar="N", help="stop after N epochs without a better --monitor"
    )
    training.add_argument(
        "--monitor",
        default="balanced_accuracy",
        choices=MONITORS,
        help="validation metric that chooses the epoch",
    )
    training.add_argument(
        "--cache",
        metavar="DIR",
        help="keep there what the network computes before all that trains: later epochs cost only the rest",
    )
    training.add_argument(
        "--cache-views",
        type=int,
        metavar="N",
        help="with --cache, random forms of each image that the epochs take in turn (default: 4)",
    )
    training.add_argument(
        "--cache-half", action="store_true", help="with --cache, keep float16, which takes half the space"
    )
    training.add_argument(
        "--cache-limit",
        type=float,
        metavar="GIB",
        help="with --cache, most that DIR may take; what was used longest ago makes room",
    )
    training.add_argument(
        "--probe",
        action="store_true",
        help="also train a linear classifier on the unchanged network, to compare",
    )
    add_output_arguments(parser)


def add_split_arguments(group: argparse._ArgumentGroup, share: float | None = 0.15) -> None:
    """Declare how data without val and test parts is split."""
    group.add_argument("--val", type=float, default=share, metavar="SHARE", help="split off for validation")
    group.add_argument("--test", type=float, default=share, metavar="SHARE", help="split off for the test")


def add_model_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare which model is trained."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=default, help="efficientnet_lite0, lenet, torchvision:NAME or timm:NAME"
    )
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="resize and crop images to a square of this side, instead of the one that the model is made for",
    )
    group.add_argument("--weights", metavar="FILE", help="local state dict to start from")
    group.add_argument("--from-scratch", action="store_true", help="start from random weights")


def add_training_arguments(
    group: argparse._ArgumentGroup, *, augment: str, epochs: int, learning_rate: float, batch_size: int
) -> None:
    """Declare what train and adapt have in common."""
    group.add_argument("--epochs", type=int, default=epochs, metavar="N", help="passes over the images")
    group.add_argument("--batch-size", type=int, default=batch_size, metavar="N", help="images a step")
    group.add_argument("--learning-rate", type=float, default=learning_rate, metavar="LR", help="at its peak")
    group.add_argument(
        "--weight-decay", type=float, default=0.01, metavar="WD", help="none on biases and norms"
    )
    group.add_argument("--scheduler", default="cosine", choices=SCHEDULERS, help="of the learning rate")
    group.add_argument("--warmup", type=float, default=0.1, metavar="SHARE", help="share of the steps")
    group.add_argument("--augment", default=augment, choices=PROFILES, help="digits has no flips")
    group.add_argument("--loss", default="cross_entropy", choices=CRITERIA, help="on the labels")
    group.add_argument(
        "--label-smoothing", type=float, default=0.0, metavar="SHARE", help="cross-entropy only"
    )
    group.add_argument("--balanced", action="store_true", help="weigh rare classes up")
    group.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of the arithmetic")
    group.add_argument("--device", default="auto", choices=DEVICES, help="auto takes CUDA if there is one")
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same run")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the run goes."""
    group = parser.add_argument_group("output")
    group.add_argument("--output", "-o", required=True, metavar="RUN", help="folder for the run")
    group.add_argument("--resume", action="store_true", help="continue the run in there, if there is one")
    group.add_argument("--overwrite", action="store_true", help="delete the run in there first")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from thawkit.data import load
    from thawkit.select import create_model
    from thawkit.tune import Supervised, check_start, fit, linear_probe

    console = plain_console()
    method = Supervised(**supervised_options(args))
    config = tune_config(args, train=args.train, patience=args.patience, monitor=args.monitor)
    check_start(config, args.output, resume=args.resume, overwrite=args.overwrite)
    cache = feature_cache(args)
    splits = load(args.data, seed=args.seed, val=args.val, test=args.test)
    console.print(
        f"{splits.name}: {len(splits.train)} training, {len(splits.val)} validation and {len(splits.test)} "
        f"test images, {len(splits.classes)} classes"
    )
    model = create_model(args.model, len(splits.classes), **model_options(args))
    probe = None
    if args.probe:
        with console.status("Linear probe: features of the unchanged network"):
            probe = linear_probe(model, splits, monitor=args.monitor, balanced=args.balanced)
    result = fit(
        model,
        splits,
        method=method,
        config=config,
        output=args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        cache=cache,
        console=console,
    )
    rows = {title: result.metrics[name] for name, title in (("val", "validation"), ("test", "test"))}
    if probe is not None:
        rows["linear probe, test"] = probe["test"]
    show(result, rows, console)
    return 0


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``create_model`` that the command line gave."""
    return {
        "pretrained": not args.from_scratch,
        "weights": args.weights,
        "image_size": args.image_size,
        "seed": args.seed,
    }


def supervised_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``Supervised`` that the command line gave."""
    return {
        "criterion": args.loss,
        "label_smoothing": args.label_smoothing,
        "class_weights": "balanced" if args.balanced else None,
    }


def feature_cache(args: argparse.Namespace) -> FeatureCache | None:
    """Return the cache of features that the command line asked for."""
    from thawkit import FeatureCache

    if args.cache is None:
        for name in ("cache_views", "cache_half", "cache_limit"):
            given = getattr(args, name)
            if given is not None and given is not False:
                raise ThawkitError(f"--{name.replace('_', '-')}: expected --cache DIR beside it, got none")
        return None
    limit = None if args.cache_limit is None else int(args.cache_limit * 2**30)
    dtype = "float16" if args.cache_half else "float32"
    views = 4 if args.cache_views is None else args.cache_views
    return FeatureCache(args.cache, views=views, dtype=dtype, max_bytes=limit)


def tune_config(args: argparse.Namespace, **others: Any) -> TuneConfig:
    """Make the settings from the arguments of :func:`add_training_arguments` and ``others``."""
    from thawkit.tune import TuneConfig

    names = ("epochs", "batch_size", "learning_rate", "weight_decay", "scheduler", "warmup", "augment")
    more = ("precision", "device", "workers", "seed")
    return TuneConfig(**{name: getattr(args, name) for name in names + more}, **others)


def show(result: RunResult, rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print metrics by title as a table, where the run is, and what to type next."""
    from rich.table import Table

    shown = [column for column in MONITORS if column in result.metrics["val"]]
    table = Table(title=f"Epoch {result.metrics['best_epoch']} ({result.metrics['selection']})")
    table.add_column("images", no_wrap=True)
    for column in shown:
        table.add_column(column.replace("_", " "), justify="right")
    for title, scores in rows.items():
        values = (f"{scores[column]:.4f}" if column in scores else "-" for column in shown)
        table.add_row(f"{title} ({scores['count']})", *values)
    console.print(table)
    console.print(f"Run:   {result.path}", soft_wrap=True)
    console.print(f"Next:  thawkit export {result.path} --output {result.path}/bundle", soft_wrap=True)
