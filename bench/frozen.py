"""Partially-frozen training: saved bytes, peak and step time; and the one-bit ReLU against copy bandwidth.

Every row is a model and a policy. Its variants train the same parameters on the same batch, with batch
normalization in evaluation mode, and their steps (forward, cross-entropy, backward) take turns:

stock      ``requires_grad_(False)`` and evaluation-mode batch normalization, as one does by hand
frozen_bn  stock with torchvision's FrozenBatchNorm2d wherever a batch normalization trains nothing; left out
           where every one trains something
compile    stock under ``torch.compile``
thawkit    ``thawkit.freeze``

Limit of the one-bit ReLU: reading and writing every element, and the bits, at the bandwidth of a large copy.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable

import timm
import torch
import torchvision
from common import Report, copy_bandwidth, extra_bytes, parser, timed
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

import thawkit
from thawkit.ops.frozen import cpu

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": torchvision.models.resnet50,
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0"),
}
POLICIES = ("head", "last:1", "bias", "norm")


def stock_and_frozen(name: str, policy: str, images: Tensor) -> tuple[nn.Module, nn.Module]:
    """Build a frozen model and its stock twin, which trains the same in the same modes."""
    torch.manual_seed(0)
    frozen = MODELS[name]().train()
    thawkit.freeze(frozen, policy, example=images[:1])
    stock = copy.deepcopy(frozen)
    thawkit.unfreeze(stock)
    for ours, theirs in zip(frozen.modules(), stock.modules(), strict=True):
        theirs.training = ours.training
    for ours, theirs in zip(frozen.parameters(), stock.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    return stock, frozen


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
    """Bytes of the distinct storages that autograd saves, parameters, buffers and images excepted."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), images)}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for storage in held.values())


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def step() -> None:
        nn.functional.cross_entropy(model(images), labels).backward()
        model.zero_grad(set_to_none=True)

    return step


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(model(images), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()


def freezing(report: Report, name: str, policy: str, batch: int, size: int) -> None:
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    stock, frozen = stock_and_frozen(name, policy, images)
    models = {"stock": stock, "thawkit": frozen, "frozen_bn": with_frozen_batch_norm(copy.deepcopy(stock))}
    if not report.options.quick:
        models["compile"] = torch.compile(copy.deepcopy(stock))
    variants = {variant: model for variant, model in models.items() if model is not None}
    steps = {variant: training_step(model, images, labels) for variant, model in variants.items()}
    saved = {variant: saved_bytes(model, images) for variant, model in variants.items()}
    exact = gradients(stock, images, labels)
    seconds = timed(steps, report.options.rounds, limit_s=90)
    report.row(
        model=name,
        policy=policy,
        batch=batch,
        size=size,
        saved_mib={variant: round(nbytes / 2**20, 3) for variant, nbytes in saved.items()},
        peak_mib={variant: round(extra_bytes(step) / 2**20, 1) for variant, step in steps.items()},
        ms={variant: round(1e3 * s, 1) for variant, s in seconds.items()},
        over_stock={variant: round(s / seconds["stock"], 3) for variant, s in seconds.items()},
        gradient_difference=((gradients(frozen, images, labels) - exact).norm() / exact.norm()).item(),
    )


def relu(report: Report, count: int, dtype: torch.dtype, bandwidth: float) -> None:
    x, g = torch.randn(count).to(dtype), torch.randn(count).to(dtype)
    y, mask = torch.empty_like(x), torch.empty(count // 8, dtype=torch.uint8)
    seconds = timed(
        {
            "forward": lambda: cpu.forward(x, y, mask, 0.0, math.inf),
            "backward": lambda: cpu.backward(g, mask, y),
            "one read, one write": lambda: y.copy_(x),
        },
        3 * report.options.rounds,
    )
    report.row(
        kernel="packed_relu",
        size=f"{count} {str(dtype).removeprefix('torch.')}",
        ms={name: round(1e3 * s, 4) for name, s in seconds.items()},
        share_of_copy_bandwidth={
            name: round((2 * x.nbytes + mask.nbytes) / bandwidth / seconds[name], 3)
            for name in ("forward", "backward")
        },
        of_one_read_one_write={
            name: round(seconds[name] / seconds["one read, one write"], 3) for name in ("forward", "backward")
        },
    )


def main() -> None:
    options: argparse.Namespace = parser(__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    report = Report("frozen", options, notes={"copy_bandwidth_gb_s": bandwidth / 1e9})
    print(f"copy {bandwidth / 1e9:.1f} GB/s")
    for dtype in (torch.float32, torch.bfloat16):
        for count in (1 << 20, 1 << 26):
            relu(report, count, dtype, bandwidth)
    batch, size = (2, 96) if options.quick else (8, 224)
    for name in MODELS:
        for policy in POLICIES:
            freezing(report, name, policy, batch, size)
    report.write()


if __name__ == "__main__":
    main()
