"""Partially-frozen training: saved bytes, peak and step time, beside eager, compiled and recomputed models.

Every row is a model and a policy. Its variants train the same parameters on the same batch, with batch
normalization in evaluation mode, and their steps (forward, cross-entropy, backward) take turns:

stock       ``requires_grad_(False)`` and evaluation-mode batch normalization, as one does by hand; with
            adapters, 🤗 peft's on the same layers
channels_last  stock with weights and images channels-last, of convolutional models
frozen_bn   stock with torchvision's FrozenBatchNorm2d wherever a batch normalization trains nothing; left out
            where every one trains something
compile     stock under ``torch.compile``
checkpoint  stock with every block under ``torch.utils.checkpoint``
memsave     stock under memsave_torch (github.com/plutonium-239/memsave_torch), where that is installed; it
            saves past autograd's hooks, so what its output holds in memory counts
thawkit     ``thawkit.freeze``
thawkit_compiled  thawkit's model under ``torch.compile``

Weights are random, and batch normalizations hold the statistics of the batch, so that activations have the
size that they have in a trained model: with those of a new model they shrink to denormals.

Processes run with glibc's thresholds set (MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 64 KiB), so
that what is released leaves the process; layouts of weights count as what a step needs.

``forward_ms`` is the forward pass without gradients, of which ``freezing`` is ``torch.compile`` with
inductor's constant folding, and ``inexact`` thawkit's of a model frozen with ``exact=False``.
``peak_rss_mib`` is what one process with one variant needs at most in two steps,
over what it holds with the model built.

The trade-off rows set ``activation_memory_budget`` of the compiler's partitioner; their backward FLOPs are
those of the partitioned graph, and of the others those that torch's counter sees in float64, in which thawkit
calls no operator that the counter does not know. ``--rounds 0`` leaves their times out: bytes and FLOPs are
the same on a busy machine.

Limit of the one-bit ReLU: reading and writing every element, and the bits, at the bandwidth of a large copy.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
import torchvision
from common import Report, compiled, copy_bandwidth, extra_bytes, kept_bytes, parser, timed
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import thawkit
from thawkit.frozen import find_blocks, packs
from thawkit.frozen.lora import LoraLayer
from thawkit.ops.frozen import cpu

CLASSES = 1000


class Encoder(nn.Module):
    """BERT-base as a classifier of 128 tokens that are given as embeddings."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        self.bert = BertForSequenceClassification(BertConfig(num_labels=CLASSES))

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.bert(inputs_embeds=embeddings).logits


def vision_transformer() -> nn.Module:
    model = torchvision.models.vit_b_16()
    nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros would give no gradient below it
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": torchvision.models.resnet50,
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0"),
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
    "vit_b_16": vision_transformer,
    "bert_base": Encoder,
}
# policy -> whether torch.compile, which takes a minute, is timed as well
POLICIES: dict[str, dict[str, bool]] = {
    "resnet50": {
        "head": False,
        "last:1": False,
        "bias": True,
        "norm": True,
        "channels:0.5": False,
        "lora:8": False,
    },
    "tf_efficientnet_lite0": {"head": False, "bias": True, "norm": True},
    "mobilenet_v3_large": {"bias": True, "norm": False},
    "vit_b_16": {"head": False, "bias": True, "norm": False, "lora:8": False, "all": False},
    "bert_base": {"head": False, "bias": True, "norm": False, "lora:8": False, "all": False},
}
PROCESSES = {"resnet50": "bias", "vit_b_16": "all"}  # of which a process of its own is measured
BUDGETS = (1.0, 0.5, 0.2, 0.05)
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
PARTS = ("kernels", "steps", "processes", "trade-off")


def batch_for(name: str, batch: int, size: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, CLASSES, (batch,))
    shape = (batch, 128, 768) if name == "bert_base" else (batch, 3, size, size)
    return torch.randn(shape), labels


def stock_and_frozen(
    name: str, policy: str, images: Tensor, copies: bool = True
) -> tuple[nn.Module, nn.Module]:
    """Build a frozen model and its stock twin, which trains the same in the same modes."""
    torch.manual_seed(0)
    frozen = MODELS[name]().train()
    calibrate(frozen, images)
    for module in frozen.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that the variants compute the same
    thawkit.freeze(frozen, policy, example=images[:1], copies=copies)
    stock = copy.deepcopy(frozen)
    thawkit.unfreeze(stock)
    if policy.startswith("lora:"):
        return with_peft(stock, frozen), frozen
    trains = {n.removesuffix("_channels") for n, p in frozen.named_parameters() if p.requires_grad}
    modes = {n: m.training for n, m in frozen.named_modules()}
    for n, module in stock.named_modules():
        module.training = modes[n]
    for n, parameter in stock.named_parameters():
        parameter.requires_grad_(n in trains)
    return stock, frozen


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Let batch normalizations hold the statistics of the batch."""
    norms = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            model(images)
    for norm, momentum in norms.items():
        norm.momentum = momentum


def with_peft(stock: nn.Module, frozen: nn.Module) -> nn.Module:
    """Give the stock model 🤗 peft's adapters where the frozen one has thawkit's, with the same numbers."""
    from peft import LoraConfig, get_peft_model

    adapters = {name: m for name, m in frozen.named_modules() if isinstance(m, LoraLayer)}
    rank = len(next(iter(adapters.values())).lora_A)
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(adapters))
    model = get_peft_model(stock, config)
    for name, adapter in adapters.items():
        layer = stock.get_submodule(name)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(adapter.lora_A)
    trains = {name for name, p in frozen.named_parameters() if p.requires_grad}
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_("lora_" in name or name in trains)
    for module in stock.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def with_memory_saving(stock: nn.Module, images: Tensor, labels: Tensor) -> nn.Module | None:
    """Let memsave_torch rewrite a convolutional model.

    None where it is not installed, or where what it makes fails (its dropout does) or trains something else
    (it takes timm's normalizations, which hold an activation, for plain ones).
    """
    try:
        from memsave_torch.nn import convert_to_memory_saving
    except ImportError:
        return None
    model = convert_to_memory_saving(copy.deepcopy(stock))
    exact = gradients(stock, images, labels)
    try:
        found = gradients(model, images, labels)
    except (RuntimeError, TypeError):
        return None
    return model if (found - exact).norm() < 0.05 * exact.norm() else None


def with_frozen_batch_norm(model: nn.Module) -> nn.Module | None:
    """Replace the batch normalizations of which nothing trains; None if there are none such."""
    replaced = False
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, freeze_batch_norm_2d(module))
            replaced = True
    return model if replaced else None


def with_checkpoints(model: nn.Module) -> nn.Module:
    """Let every block recompute what it would save."""
    for name in find_blocks(model):
        block = model.get_submodule(name)
        block.forward = _recomputing(block.forward)
    return model


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


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


def forward_only(model: nn.Module, images: Tensor) -> Callable[[], Any]:
    def forward() -> Tensor:
        with torch.no_grad():
            return model(images)

    return forward


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """All gradients but those of single channels, which the variants hold in different shapes.

    Of adapters those of B: its names are sorted, for peft wraps layers in modules of its own.
    """
    named = sorted((n.removeprefix("base_model.model."), p) for n, p in model.named_parameters())
    parameters = [p for n, p in named if p.requires_grad and (p.dim() == 1 or "lora_B" in n)]
    loss = nn.functional.cross_entropy(model(images), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()


def freezing(report: Report, name: str, policy: str, compiles: bool, batch: int, size: int) -> None:
    images, labels = batch_for(name, batch, size)
    stock, frozen = stock_and_frozen(name, policy, images)
    models = {"stock": stock, "thawkit": frozen, "frozen_bn": with_frozen_batch_norm(copy.deepcopy(stock))}
    if policy in ("head", "bias", "norm") and name not in ("vit_b_16", "bert_base"):
        models["channels_last"] = copy.deepcopy(stock).to(memory_format=torch.channels_last)
    if policy != "head":
        models["checkpoint"] = with_checkpoints(copy.deepcopy(stock))
    if policy in ("bias", "norm") and name not in ("vit_b_16", "bert_base"):
        models["memsave"] = with_memory_saving(stock, images, labels)
    if compiles and not report.options.quick:
        models["compile"] = compiled(copy.deepcopy(stock))
        models["thawkit_compiled"] = compiled(copy.deepcopy(frozen))
    variants = {variant: model for variant, model in models.items() if model is not None}
    last = images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
    inputs = {variant: last if variant == "channels_last" else images for variant in variants}
    steps = {variant: training_step(model, inputs[variant], labels) for variant, model in variants.items()}
    saved = {variant: saved_bytes(model, images) for variant, model in variants.items()}
    if "memsave" in variants:
        saved["memsave"] = kept_bytes(lambda: variants["memsave"](images))
    seconds = timed(steps, report.options.rounds, limit_s=60)
    forwards = {
        v: forward_only(variants[v], inputs[v])
        for v in ("stock", "thawkit", "channels_last")
        if v in variants
    }
    if policy == "head" and not report.options.quick:
        forwards["freezing"] = folded(copy.deepcopy(stock), images)
        inexact = copy.deepcopy(stock)
        thawkit.freeze(inexact, policy, example=images[:1], exact=False)
        forwards["inexact"] = forward_only(inexact, images)
    forward_seconds = timed(forwards, report.options.rounds, limit_s=20)
    exact = gradients(stock, images, labels)
    report.row(
        model=name,
        policy=policy,
        batch=batch,
        size=size,
        saved_mib={variant: round(nbytes / 2**20, 3) for variant, nbytes in saved.items()},
        peak_mib={variant: round(extra_bytes(steps[variant]) / 2**20, 1) for variant in ("stock", "thawkit")},
        ms={variant: round(1e3 * s, 1) for variant, s in seconds.items()},
        over_stock={variant: round(s / seconds["stock"], 3) for variant, s in seconds.items()},
        forward_ms={variant: round(1e3 * s, 1) for variant, s in forward_seconds.items()},
        gradient_difference=((gradients(frozen, images, labels) - exact).norm() / exact.norm()).item(),
    )


def release_models() -> None:
    """Let go of models in cycles, and of those the compiler keeps: few of ViT's size fill memory."""
    torch.compiler.reset()
    gc.collect()


def folded(model: nn.Module, images: Tensor) -> Callable[[], Any]:
    """The forward pass as inductor compiles it with its weights as constants."""
    import torch._inductor.config as inductor

    model = model.eval()
    with inductor.patch(freezing=True):
        forward = forward_only(compiled(model), images)
        forward()
    return forward


def trade_off(report: Report, name: str, policy: str, batch: int, size: int) -> None:
    """Saved bytes, backward FLOPs and time where the compiler, or checkpoints, recompute."""
    import torch._functorch.config as functorch

    images, labels = batch_for(name, batch, size)
    stock, frozen = stock_and_frozen(name, policy, images)
    checkpoints = with_checkpoints(copy.deepcopy(stock))
    plain = {"stock": stock, "checkpoint": checkpoints, "thawkit": frozen}
    steps = {variant: training_step(model, images, labels) for variant, model in plain.items()}
    rounds = report.options.rounds
    seconds = timed(steps, rounds) if rounds else {}
    for variant, model in plain.items():
        saved = saved_bytes(model, images)
        # a copy of the checkpointed model would run the blocks of the original
        flops = backward_flops(
            with_checkpoints(copy.deepcopy(stock).double())
            if variant == "checkpoint"
            else copy.deepcopy(model).double(),
            images.double(),
            labels,
        )
        trade_off_row(report, name, policy, variant, saved, flops, seconds.get(variant))
    for budget in BUDGETS:
        with functorch.patch(activation_memory_budget=budget):
            flops = partitioned_flops(copy.deepcopy(stock), images, labels)
            model = compiled(copy.deepcopy(stock))
            step = training_step(model, images, labels)
            saved = saved_bytes(model, images)
            took = timed({"compile": step}, rounds)["compile"] if rounds else None
        trade_off_row(report, name, policy, f"compile {budget}", saved, flops, took)


def trade_off_row(
    report: Report, name: str, policy: str, variant: str, saved: int, flops: int, seconds: float | None
) -> None:
    report.row(
        trade_off=name,
        policy=policy,
        variant=variant,
        saved_mib=round(saved / 2**20, 3),
        backward_gflop=round(flops / 1e9, 2),
        **({} if seconds is None else {"ms": round(1e3 * seconds, 1)}),
    )


def backward_flops(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    loss = nn.functional.cross_entropy(model(images), labels)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


def partitioned_flops(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """FLOPs of the backward graph that the compiler's partitioner makes, not compiled any further."""
    import torch._inductor.lowering  # for its decompositions, which look it up
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._guards import detect_fake_mode
    from torch._inductor.decomposition import select_decomp_table

    flops = []

    def count(graph: Any, inputs: Any) -> Any:
        mode = detect_fake_mode(inputs)  # the graph's constants are real tensors
        with patch.object(mode, "allow_non_fake_inputs", True), FlopCounterMode(display=False) as counter:
            graph(*inputs)
        flops.append(counter.get_total_flops())
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
        bw_compiler=count,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    torch._dynamo.reset()
    nn.functional.cross_entropy(torch.compile(model, backend=backend)(images), labels).backward()
    return sum(flops)


def peak_rss(report: Report, name: str, policy: str, batch: int, size: int) -> None:
    """What a process needs at most, one for each variant, and the batch at which that would be 8 GB."""
    peaks: dict[str, float] = {}
    largest: dict[str, int] = {}
    for variant in ("stock", "thawkit", "thawkit, copies=False"):
        small, large = (
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--child", name, policy, variant, str(n), str(size)],
                    check=True,
                    capture_output=True,
                    text=True,
                    env=os.environ | dict.fromkeys(ALLOCATOR, "65536"),
                ).stdout
            )
            for n in (batch, 2 * batch)
        )
        peaks[variant] = round((small["peak"] - small["built"]) / 2**20, 1)
        each = (large["peak"] - small["peak"]) / batch
        largest[variant] = int(batch + (8e9 - small["peak"]) / each)
    report.row(
        process=name,
        policy=policy,
        batch=batch,
        size=size,
        peak_rss_mib=peaks,
        largest_batch_in_8_gb_by_extrapolation=largest,
    )


def child(name: str, policy: str, variant: str, batch: int, size: int) -> None:
    images, labels = batch_for(name, batch, size)
    stock, frozen = stock_and_frozen(name, policy, images, copies=variant == "thawkit")
    model = stock if variant == "stock" else frozen
    del stock, frozen
    training_step(model, images[:1], labels[:1])()  # what the program sets up at first use
    for module in model.modules():
        packs.forget(module)
    built = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    for _ in range(2):
        training_step(model, images, labels)()
    print(json.dumps({"built": built, "peak": _status("VmHWM")}))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def relu(report: Report, count: int, dtype: torch.dtype, bandwidth: float) -> None:
    x, g = torch.randn(count).to(dtype), torch.randn(count).to(dtype)
    y, mask = torch.empty_like(x), torch.empty(count // 8, dtype=torch.uint8)
    seconds = timed(
        {
            "forward": lambda: cpu.pack("relu", x, y, mask, 0.0, math.inf),
            "backward": lambda: cpu.masked("pass", g, mask, y, 1.0, 0.0),
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
    if "--child" in sys.argv:
        name, policy, variant, *numbers = sys.argv[sys.argv.index("--child") + 1 :]
        return child(name, policy, variant, *map(int, numbers))
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments.add_argument("--policies", nargs="+", default=None, help="those of each model's that are named")
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options: argparse.Namespace = arguments.parse_args()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    report = Report("frozen", options, notes={"copy_bandwidth_gb_s": bandwidth / 1e9})
    print(f"copy {bandwidth / 1e9:.1f} GB/s")
    for dtype in (torch.float32, torch.bfloat16) if "kernels" in options.parts else ():
        for count in (1 << 20, 1 << 26):
            relu(report, count, dtype, bandwidth)
    batch, size = (2, 64) if options.quick else (8, 224)
    try:
        for name in options.models:
            for policy, compiles in POLICIES[name].items() if "steps" in options.parts else ():
                if options.policies is not None and policy not in options.policies:
                    continue
                freezing(report, name, policy, compiles, batch, 224 if name == "vit_b_16" else size)
                release_models()
        for name, policy in PROCESSES.items():
            if name in options.models and "processes" in options.parts and not options.quick:
                peak_rss(report, name, policy, batch, size)
        if "resnet50" in options.models and "trade-off" in options.parts and not options.quick:
            trade_off(report, "resnet50", "bias", batch, size)
    finally:
        report.write()


if __name__ == "__main__":
    main()
