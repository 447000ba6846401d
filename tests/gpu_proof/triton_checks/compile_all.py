"""Compile every configuration of every family for some architectures and print what came out, as JSON.

``python -m tests.gpu_proof.triton_checks.compile_all 87 89:ptx 80:ttgir`` in a process of its own, in which
kernels are not interpreted. An architecture with a stage is compiled from there on, from what the first one's
kernel is at that stage.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.triton_checks.cubin import Binary, resources
from tests.gpu_proof.triton_checks.fake_driver import compiling_for

# how a stage's text names an architecture, if it does
_NAMED = {"ttgir": '"cuda:{}"', "ptx": ".target sm_{}"}
_PLACE = re.compile(r"^#loc.*|\bloc\((?:[^()]|\([^()]*\))*\)", re.MULTILINE)
_OPTIONS = ("num_warps", "num_ctas", "num_stages", "maxnreg")


def _retargeted(text: str, stage: str, old: int, new: int) -> str:
    if stage not in _NAMED:
        return text
    name = _NAMED[stage]
    assert text.count(name.format(old)) == 1
    return text.replace(name.format(old), name.format(new))


def _code(text: str) -> str:
    """Return the text without names of files: a kernel in Triton's cache has those of another day."""
    return _PLACE.sub("", text.partition("\t.file")[0])


def _compiled(launch: Callable[[ModuleType], None], kernels: ModuleType, architecture: int) -> list[Any]:
    with compiling_for(architecture) as compiled:
        launch(kernels)
    return compiled


def _continued(kernel: Any, stage: str, old: int, new: int) -> Binary:
    """Compile a kernel from a stage on for another architecture."""
    target, text = GPUTarget("cuda", new, 32), _retargeted(kernel.asm[stage], stage, old, new)
    if stage == "ptx":
        return _binary(kernel)._replace(cubin=CUDABackend(target).make_cubin(text, {}, kernel.metadata, new))
    options = {name: getattr(kernel.metadata, name) for name in _OPTIONS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kernel.name}.{stage}"
        path.write_text(text)
        return _binary(triton.compile(str(path), target=target, options=options))


def _binary(kernel: Any) -> Binary:
    return Binary(kernel.asm["cubin"], kernel.metadata.num_warps, kernel.metadata.shared)


def _shares(kernel: Any, alone: Any, stage: str, old: int, new: int) -> bool:
    """Whether a kernel that was compiled for the new architecture alone is the same at that stage."""
    return _code(_retargeted(kernel.asm[stage], stage, old, new)) == _code(alone.asm[stage])


def compile_all(first: int, others: Mapping[int, str]) -> dict[int, dict[str, dict[str, Any]]]:
    """Return the resources by architecture and by ``family: configuration: kernel number``.

    Of each family, one configuration is compiled for every architecture from the start, to see that the
    first one's kernels are the same up to the stage from which others go on.
    """
    found: dict[int, dict[str, Binary]] = {architecture: {} for architecture in (first, *others)}
    for family in FAMILIES.values():
        kernels = family.load()
        for order, (name, launch) in enumerate(family.configurations.items()):
            compiled = _compiled(launch, kernels, first)
            of = {first: [_binary(kernel) for kernel in compiled]}
            for other, stage in others.items():
                if order > 0:
                    of[other] = [_continued(kernel, stage, first, other) for kernel in compiled]
                    continue
                alone = _compiled(launch, kernels, other)
                alike = all(_shares(*pair, stage, first, other) for pair in zip(compiled, alone, strict=True))
                assert alike, f"sm_{other} needs a {stage} of its own: {family.name}, {name}"
                of[other] = [_binary(kernel) for kernel in alone]
            for architecture, binaries in of.items():
                for number, binary in enumerate(binaries):
                    found[architecture][f"{family.name}: {name}: {compiled[number].name} {number}"] = binary
    return {architecture: resources(kernels, architecture) for architecture, kernels in found.items()}


if __name__ == "__main__":
    first, *rest = sys.argv[1:]
    stages = dict(other.split(":") for other in rest)
    print(json.dumps(compile_all(int(first), {int(other): stage for other, stage in stages.items()})))
