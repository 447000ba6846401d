"""One rank of the tests of frozen models under DDP and FSDP2.

``python wrapped_ranks.py RANK FOLDER`` writes ``FOLDER/RANK.json``: for each case the traceback of what
failed, or nothing.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import thawkit
from tests.frozen.small_models import MODELS, logits_of, settle, some_inputs

PROCESSES = 2
LABELS = torch.tensor([0, 1, 2, 3])
CASES = [
    ("resnet", "bias", None),
    ("mobilenet_v3", "norm", None),  # its blocks end in a normalization
    ("functional", "lora:2", None),
    ("functional", "channels:0.5", None),
    ("functional", "all", 8),
    ("vit", "bias", None),
    ("vit", "all", 8),
    ("bert", "lora:2", None),
]


class _Checkpointed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(checkpoint(self.body, x, use_reentrant=False))


def _ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def _ddp_checkpointed(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(_Checkpointed(model), static_graph=True)


def _fsdp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for name in thawkit.frozen.find_blocks(model):
        fully_shard(model.get_submodule(name), mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _fsdp_by_layer(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for module in list(model.modules()):
        if next(module.children(), None) is None and next(module.parameters(), None) is not None:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {
    "DDP": _ddp,
    "DDP, checkpointed": _ddp_checkpointed,
    "FSDP2": _fsdp,
    "FSDP2 by layer": _fsdp_by_layer,
}


def _gradients(model: nn.Module, call: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(logits_of(call(inputs)), labels).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for n, g in found.items()}


def check(case: tuple[str, str, int | None], wrapper: str, rank: int) -> None:
    """The gradients of two ranks are the mean of what one process finds on each half of the batch."""
    family, policy, act_bits = case
    torch.manual_seed(0)
    model, inputs = MODELS[family](), some_inputs(family)
    settle(model, inputs)
    thawkit.freeze(model, policy, example=inputs, act_bits=act_bits)
    model.eval()
    halves = [slice(0, 2), slice(2, 4)]
    alone = [_gradients(model, model, inputs[half], LABELS[half]) for half in halves]
    sharded = copy.deepcopy(model)
    wrapped = WRAPPERS[wrapper](sharded)
    # A layer that is a unit of its own does not see that attention keeps its input, and rounds that as well.
    tolerance = 1e-4 if act_bits is None or wrapper != "FSDP2 by layer" else 0.02
    for _ in range(2):
        found = _gradients(sharded, wrapped, inputs[halves[rank]], LABELS[halves[rank]])
        assert found.keys() == alone[0].keys()
        for name, gradient in found.items():
            expected = (alone[0][name] + alone[1][name]) / 2
            assert (gradient - expected).norm() <= tolerance * expected.norm() + 1e-6, name


def main(rank: int, folder: Path) -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=120)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timeout)
    results = {}
    for case in CASES:
        for wrapper in WRAPPERS:
            try:
                check(case, wrapper, rank)
                results[f"{case} {wrapper}"] = ""
            except Exception:
                results[f"{case} {wrapper}"] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(results))
    os._exit(0)  # without waiting for the other


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
