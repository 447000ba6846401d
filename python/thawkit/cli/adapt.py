"""Adapt a model from labelled source images to a target domain of which only the images are used.

Labels of the target, where there are any, are reported at the end and decide nothing. --baseline also trains
on the source alone with the same budget, into RUN-source-only, and shows both.
"""

from __future__ import annotations

import argparse

from thawkit.choices import KEEPS
from thawkit.cli.console import plain_console
from thawkit.cli.train import (
    add_model_arguments,
    add_output_arguments,
    add_split_arguments,
    add_training_arguments,
    model_options,
    show,
    supervised_options,
    tune_config,
)

HELP = "adapt a model to a domain without labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    data = parser.add_argument_group("data")
    what = "folder, .npz, or pneumoniamnist, mnist, optdigits"
    data.add_argument("--source", required=True, metavar="SPEC", help=f"labelled images: {what}")
    data.add_argument(
        "--target",
        required=True,
        metavar="SPEC",
        help="images of the other domain, same classes; or a folder of images without labels",
    )
    add_split_arguments(data)
    add_model_arguments(parser, default="lenet")
    training = parser.add_argument_group("training")
    training.add_argument("--method", default="dan", choices=("dan", "source-only"), help="how to adapt")
    training.add_argument(
        "--trade-off", type=float, default=1.0, metavar="W", help="weight of DAN's MMD term"
    )
    training.add_argument("--no-ramp", action="store_true", help="give the MMD term its full weight at once")
    training.add_argument("--baseline", action="store_true", help="train source-only too, and compare")
    training.add_argument("--train", default="all", metavar="POLICY", help="what trains; see thawkit train")
    training.add_argument(
        "--keep",
        default="last",
        choices=KEEPS,
        help="last epoch, or the best on the source's validation images",
    )
    add_training_arguments(training, augment="none", epochs=20, learning_rate=1e-3, batch_size=64)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from thawkit.adapt import DAN, fit_adapt
    from thawkit.data import load
    from thawkit.select import create_model
    from thawkit.tune import Method, RunResult, Supervised, check_start

    console = plain_console()
    output = Path(args.output)
    alone_output = output.resolve().parent / f"{output.resolve().name}-source-only"
    compare = args.baseline and args.method != "source-only"
    alone = Supervised(**supervised_options(args))
    adapting = DAN(args.trade_off, ramp=not args.no_ramp, **supervised_options(args))
    config = tune_config(args, train=args.train, keep=args.keep)
    for folder in (output, alone_output) if compare else (output,):
        check_start(config, folder, resume=args.resume, overwrite=args.overwrite)
    split = {"seed": args.seed, "val": args.val, "test": args.test}
    source = load(args.source, **split)
    target = load(args.target, **split, classes=source.classes)

    def train(method: Method, output: Path) -> RunResult:
        model = create_model(args.model, len(source.classes), **model_options(args))
        console.print(
            f"{source.name} ({len(source.train)} labelled images) to {target.name} "
            f"({len(target.train)} images), {type(method).__name__}"
        )
        flags = {"resume": args.resume, "overwrite": args.overwrite, "console": console}
        return fit_adapt(model, source, target, method=method, config=config, output=output, **flags)

    if target.test.labels is None:
        console.print(f"{target.name} has no labels: no accuracy on the target is reported")
    baseline = train(alone, alone_output) if compare else None
    result = train(alone if args.method == "source-only" else adapting, output)
    titles = {"val": "source validation", "test": "source test", "target": "target test"}
    rows = {title: result.metrics[name] for name, title in titles.items() if name in result.metrics}
    if baseline is not None and "target" in baseline.metrics:
        rows["target test, source-only"] = baseline.metrics["target"]
    show(result, rows, console)
    if baseline is not None and "target" in result.metrics:
        before, after = (r.metrics["target"]["accuracy"] for r in (baseline, result))
        console.print(
            f"Target accuracy: {before:.4f} source-only, {after:.4f} {args.method} ({after - before:+.4f})"
        )
    return 0
