"""Saved bytes and step time of partially-frozen training, and the bandwidth of the one-bit ReLU.

    python bench/frozen.py [--quick] [--threads 1] [--output bench/results]

Every row is a model and a policy. Its variants train the same parameters on the same batch with batch
normalization in evaluation mode; their steps (forward, cross-entropy, backward) take turns in one run.

stock      ``requires_grad_(False)`` and evaluation-mode batch normalization, as one does by hand
frozen_bn  stock with torchvision's FrozenBatchNorm2d (in timm's models timm's form of it) wherever the batch
           normalization trains nothing; left out where every one trains something
compile    stock under ``torch.compile``
thawkit    ``thawkit.freeze``
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torchvision
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

import thawkit
from thawkit.frozen.measure import saved_by_module
from thawkit.ops.frozen import cpu

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": torchvision.models.resnet50,
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0"),
}
POLICIES = ("head", "last:1", "bias", "norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="batch 2, 96 pixels, 2 repeats, no torch.compile"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, size, repeats = (2, 96, 2) if arguments.quick else (8, 224, 7)

    relu = list(relu_rows(1 << (18 if arguments.quick else 24), 3 * repeats))
    steps = []
    for model in MODELS:
        for policy in POLICIES:
            steps += step_rows(model, policy, batch, size, repeats, compiled=not arguments.quick)
    record = {
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "command": " ".join(["python", *sys.argv]),
        "batch": batch,
        "image": size,
        "steps": steps,
        "packed_relu": relu,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"frozen-{cpu_name().replace(' ', '-')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)


def step_rows(
    name: str, policy: str, batch: int, size: int, repeats: int, *, compiled: bool
) -> Iterator[dict[str, object]]:
    """Saved bytes and median step seconds of each variant."""
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    variants = build_variants(name, policy, images, compiled)
    saved = {variant: saved_bytes(model, images) for variant, model in variants.items()}
    steps = {variant: training_step(model, images, labels) for variant, model in variants.items()}
    seconds = interleaved(steps, repeats)
    for variant in variants:
        row = {
            "model": name,
            "policy": policy,
            "variant": variant,
            "saved_mib": round(saved[variant] / 2**20, 3),
            "step_seconds": round(seconds[variant], 4),
            "step_over_stock": round(seconds[variant] / seconds["stock"], 3),
        }
        print(row, flush=True)
        yield row


def build_variants(name: str, policy: str, images: Tensor, compiled: bool) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    frozen = MODELS[name]().train()
    thawkit.freeze(frozen, policy, example=images[:1])
    stock = copy.deepcopy(frozen)
    thawkit.unfreeze(stock)
    for ours, theirs in zip(frozen.modules(), stock.modules(), strict=True):
        theirs.training = ours.training
    for ours, theirs in zip(frozen.parameters(), stock.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    variants: dict[str, nn.Module] = {"stock": stock}
    frozen_bn = with_frozen_batch_norm(copy.deepcopy(stock))
    if frozen_bn is not None:
        variants["frozen_bn"] = frozen_bn
    if compiled:
        variants["compile"] = torch.compile(copy.deepcopy(stock))
    return variants | {"thawkit": frozen}


def with_frozen_batch_norm(model: nn.Module) -> nn.Module | None:
    """Replace the batch normalizations of which nothing trains; None if there are none such."""
    replaced = False
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, freeze_batch_norm_2d(module))
            replaced = True
    return model if replaced else None


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    evaluating = {module for module in model.modules() if not module.training}
    return saved_by_module(model, images, evaluating).total()


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def step() -> None:
        nn.functional.cross_entropy(model(images), labels).backward()
        model.zero_grad(set_to_none=True)

    return step


def relu_rows(elements: int, repeats: int) -> Iterator[dict[str, object]]:
    """The one-bit ReLU's share of copy bandwidth: the kernels move 8 1/8 bytes an element, a copy moves 8."""
    x = torch.randn(elements)
    y, g = torch.empty_like(x), torch.randn(elements)
    mask = torch.empty(elements // 8, dtype=torch.uint8)
    seconds = interleaved(
        {
            "copy": lambda: y.copy_(x),
            "forward": lambda: cpu.forward(x, y, mask, 0.0, math.inf),
            "backward": lambda: cpu.backward(g, mask, y),
            "torch.relu": lambda: torch.clamp_min(x, 0, out=y),
        },
        repeats,
    )
    for kernel in ("forward", "backward", "torch.relu"):
        moved = elements * (8 if kernel == "torch.relu" else 8.125)
        row = {
            "kernel": kernel,
            "elements": elements,
            "seconds": seconds[kernel],
            "gb_per_second": round(moved / seconds[kernel] / 1e9, 2),
            "copy_gb_per_second": round(elements * 8 / seconds["copy"] / 1e9, 2),
            "share_of_copy": round(moved / elements / 8 * seconds["copy"] / seconds[kernel], 3),
        }
        print(row, flush=True)
        yield row


def interleaved(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function, their calls taking turns after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
