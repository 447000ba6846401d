"""What is proved of the kernels without a GPU, once more on one: CUDA C++ and Triton, against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu import device
from tests.gpu_proof.cuda_checks import CHECKS, KERNELS
from tests.gpu_proof.cuda_checks.registry import Check
from tests.gpu_proof.cuda_host import Host
from thawkit.ops import _library, unavailable

pytest.importorskip("triton")

from tests.gpu_proof.families import FAMILIES
from tests.gpu_proof.ladder import record
from tests.gpu_proof.triton_checks import interpreter
from tests.gpu_proof.triton_checks.family import faults


def _needs(backend: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not torch.cuda.is_available() or bool(unavailable(backend)),
        reason=f"runs on a GPU: backend {backend!r} {unavailable(backend) or 'needs a CUDA device'}",
    )


def _checks(kernel: str) -> Iterator[Check]:
    """Those that run a whole grid: choosing blocks of one is for the CPU."""
    return (check for check in CHECKS if check.kernel == kernel and not check.name.startswith("past_two"))


def _check(check: Check, module: object, copies: device.Copies, **options: object) -> None:
    # a check's own order of threads and blocks is the device's here
    check(lambda **_: device.running(module, copies, **options))


@pytest.mark.gpu
@_needs("cuda")
@pytest.mark.parametrize("kernel", KERNELS)
def test_cuda_kernels_pass_their_checks(kernel):
    from thawkit import _C

    for check in _checks(kernel):
        _check(check, _C, device.Copies(torch.device("cuda"), _library.pointer))
    record(f"cuda/{kernel}", 6)


@pytest.mark.gpu
@_needs("triton")
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_triton_kernels_solve_their_problems(family):
    kernels, wrong = family.load(), {}
    for name, problem in family.problems.items():
        with device.MadeOn(torch.device("cuda")):
            if found := faults(problem(kernels)):
                wrong[name] = found
    assert not wrong
    record(family.rung, 6)


def test_checks_with_copies_are_the_same_checks(cuda_host: Host):
    """Where there is no GPU, the CUDA sources built for the CPU stand for one, which copies are sent to."""
    copies = device.Copies(torch.device("cpu"), cuda_host._pointer)
    for kernel in KERNELS:
        check = next(_checks(kernel))
        with cuda_host.running():
            _check(check, cuda_host.module, copies, stream=cuda_host.stream)


def test_a_copy_lies_as_its_tensor_does(monkeypatch):
    given = torch.arange(40.0)[1:].as_strided((3, 4), (9, 2))
    copies = device.Copies(torch.device("cpu"), lambda there: there.data_ptr())
    address = copies.pointer(given)
    assert address != given.data_ptr()
    assert (address - given.data_ptr()) % 256 == 0
    ((_, there),) = copies._pairs.values()
    there.zero_()
    assert given.any()
    copies.back()
    assert not given.any()


@interpreter.required()
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_problems_can_be_made_on_a_device(family):
    """That a family's problems say nothing of the device, so that a GPU gets the same: tried with the CPU."""
    pytest.importorskip("triton", minversion="3.8")  # whose interpreter is mended here
    problem = next(iter(family.problems.values()))
    with interpreter.checked(), device.MadeOn(torch.device("cpu")):
        assert not faults(problem(family.load()))
