"""Show what thawkit.freeze would save for a model and a policy, before any training: what trains, the bytes
that a step keeps for its backward pass in stock form and rewritten, the exact minimum, and the largest batch.
The weights are random, since bytes do not depend on them, and nothing is downloaded.
"""

from __future__ import annotations

import argparse

HELP = "what freezing part of a model would save, before any training"

_SIZES = 2, 3  # batches that are measured; the others lie on the lines through their bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="efficientnet_lite0, lenet, torchvision:NAME or timm:NAME"
    )
    parser.add_argument(
        "--train",
        default="head",
        metavar="POLICY",
        help="what trains: head, last:K, norm, bias, all, surgical:first|middle|last, channels:FRACTION, "
        "lora:R, or a pattern on parameter names; joined with +",
    )
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images a step")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side of the images; by default the model's own"
    )
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="outputs of the new head")
    parser.add_argument("--memory", type=float, default=8, metavar="GIB", help="for the largest batch")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    import torch

    from thawkit.errors import ThawkitError, one_line
    from thawkit.frozen import freeze
    from thawkit.frozen.measure import ExampleError
    from thawkit.frozen.report import extrapolated
    from thawkit.select import create_model

    if args.batch < 1:
        raise ThawkitError(f"--batch must be at least 1, got {args.batch}")
    if not 0 < args.memory < float("inf"):
        raise ThawkitError(f"--memory must be a number of GiB above 0, got {args.memory}")
    model = create_model(args.model, args.classes, pretrained=False, image_size=args.image_size)
    side = model.preprocess.size
    images = torch.zeros(_SIZES[1], 3, side, side)
    try:
        reports = [freeze(model.module, args.train, example=images[:size]) for size in _SIZES]
    except ExampleError as error:
        raise ThawkitError(
            f"{args.model} does not take images of {side}x{side}: {one_line(error.__cause__ or error)}"
        ) from error
    report = extrapolated(reports, _SIZES, args.batch)
    by_module = reports[-1].forecast(args.batch).by_module
    largest = reports[-1].largest_batch(int(args.memory * 2**30))
    if args.json:
        print(
            json.dumps(
                {
                    "model": args.model,
                    "batch_size": args.batch,
                    "image_size": side,
                    **report.as_dict(),
                    "by_module": by_module,
                    "memory_bytes": int(args.memory * 2**30),
                    "largest_batch": largest,
                },
                indent=1,
            )
        )
        return 0
    print(f"{args.model}, random weights, images of {side}x{side}")
    print(report)
    print(
        f"\nlargest batch in {args.memory:g} GiB: {largest}, with Adam, by the live tensors at the peak of a "
        "step; leave room for the program and the allocator"
    )
    return 0
