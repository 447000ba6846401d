"""Backends: the choice, how to force it, what is said when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops import dispatch
from thawkit.ops.dispatch import choose, forced_backend


def test_transforms_of_torch_func_go_by_the_reference():
    q, k = torch.randn(6, 4), torch.randn(6, 4)
    got = torch.func.grad(lambda q: F.info_nce(q, k))(q)
    q.requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(F.info_nce(q, k), q)[0])
    several = torch.func.vmap(lambda q: F.clip(q, k))(torch.randn(3, 6, 4))
    assert several.shape == (3,)
    with ops.use_backend("cpu"), pytest.raises(ThawkitError, match=r"inside a transform of torch\.func"):
        torch.func.grad(lambda q: F.info_nce(q, k))(q)


def test_cpu_kernels_are_chosen_for_float32_and_the_reference_for_float64():
    kernels = {"cpu": lambda *t: "" if t[0].dtype == torch.float32 else "is for float32"}
    assert choose("op", kernels, torch.zeros(1)) == "cpu"
    assert choose("op", kernels, torch.zeros(1).double()) == "reference"


def test_a_forced_backend_that_cannot_says_why():
    x = torch.zeros(3, 2)
    with ops.use_backend("cpu"), pytest.raises(ThawkitError, match="'cpu' was forced, but it takes float32"):
        F.info_nce(x.double(), x.double())
    if not torch.cuda.is_available():
        with (
            ops.use_backend("cuda"),
            pytest.raises(ThawkitError, match="row_softmax: backend 'cuda' was forced"),
        ):
            F.info_nce(x, x)
    with ops.use_backend("triton"), pytest.raises(ThawkitError, match=r"mmd: backend 'triton' was .*float64"):
        F.mmd(x.double(), x.double())
    with ops.use_backend("triton"), pytest.raises(ThawkitError, match=r"new: .* has no such kernel yet"):
        choose("new", {}, x)


def test_the_block_ends():
    with ops.use_backend("reference"):
        assert forced_backend() == "reference"
    assert forced_backend() is None


def test_unknown_names(monkeypatch):
    with pytest.raises(ThawkitError, match="backend must be one of"), ops.use_backend("gpu"):
        pass
    monkeypatch.setenv("THAWKIT_BACKEND", "fast")
    with pytest.raises(ThawkitError, match="THAWKIT_BACKEND must be one of"):
        F.info_nce(torch.zeros(3, 2), torch.zeros(3, 2))


def test_the_environment_forces_a_backend(monkeypatch):
    monkeypatch.setenv("THAWKIT_BACKEND", "reference")
    q = torch.randn(3, 2, requires_grad=True)
    assert "RowSoftmax" not in type(F.info_nce(q, q.detach()).grad_fn).__name__


def test_compiling_reads_the_choice_as_an_older_compiler_can(monkeypatch):
    monkeypatch.setattr(dispatch, "_OLD_COMPILER", True)
    torch._dynamo.reset()
    q, k = torch.randn(6, 4), torch.randn(6, 4)
    step = torch.compile(lambda q, k: F.info_nce(q, k), fullgraph=True, backend="eager")
    torch.testing.assert_close(step(q, k), F.info_nce(q, k))
    torch._dynamo.reset()
    with ops.use_backend("cuda"), pytest.raises(Exception, match="'cuda' was forced, but it"):
        torch.compile(lambda x: F.info_nce(x, x), fullgraph=True, backend="eager")(q)
    torch._dynamo.reset()


def test_every_instruction_set_passes_the_kernel_tests():
    """The kernels choose theirs once a process, so the other ones are tested in processes of their own."""
    from thawkit import _C

    if os.environ.get("THAWKIT_CPU_ISA"):
        pytest.skip("this is such a process")
    others = [isa for isa in _C.cpu_isas().split() if isa != _C.cpu_isa()]
    assert others, "there is always the baseline"
    for isa in others:
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "-k",
                "not compile and not opcheck",
            ]
            + [f"tests/ops/{family}" for family in ("pairwise", "test_focal.py", "frozen")],
            env=os.environ | {"THAWKIT_CPU_ISA": isa, "THAWKIT_GEMM": "own"},
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{isa}:\n{run.stdout[-3000:]}"


@pytest.mark.parametrize("wanted", ["mmx", "avx512"])
def test_an_instruction_set_that_cannot_be_had_is_named_at_first_use(wanted):
    from thawkit import _C

    if wanted in _C.cpu_isas().split():
        pytest.skip("this CPU has it")
    code = """
import sys
from thawkit.losses import functional as F
import torch
print("imported", file=sys.stderr)
for _ in range(2):
    F.mmd(torch.ones(2, 3), torch.ones(2, 3))
"""
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=os.environ | {"THAWKIT_CPU_ISA": wanted},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = run.stderr.split("imported")
    assert "THAWKIT_CPU_ISA" not in before
    assert after.count("ThawkitWarning") == 1
    assert f"THAWKIT_CPU_ISA asks for '{wanted}', but this CPU and build have baseline" in after
    assert "the baseline kernels run" in after
