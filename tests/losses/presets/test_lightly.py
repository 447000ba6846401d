"""lightly's NTXentLoss and its stand-in."""

from __future__ import annotations

import pytest
import torch

from tests.losses import oracle
from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.lightly import NTXentLoss

SIZES = [(1, 3), (2, 8), (17, 40), (70, 33)]


def batch(rows, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out0 = torch.randn(rows, features, generator=generator)
    return out0, out0 + 0.5 * torch.randn(rows, features, generator=generator)


@pytest.fixture(scope="module")
def lightly():
    return peers.library("lightly.loss")


def test_arguments(lightly):
    peers.assert_same_arguments(NTXentLoss.__init__, lightly.NTXentLoss.__init__)
    peers.assert_same_arguments(NTXentLoss.forward, lightly.NTXentLoss.forward)
    for size in (0, (4, 3)):
        ours, theirs = NTXentLoss(memory_bank_size=size), lightly.NTXentLoss(memory_bank_size=size)
        assert ours.state_dict() == theirs.state_dict() == {}
        assert {n for n, _ in ours.named_buffers()} == {n for n, _ in theirs.named_buffers()}


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("size", SIZES)
def test_simclr(lightly, size, temperature):
    def of(loss):
        return lambda out0, out1, temperature: loss(temperature)(out0, out1)

    peers.assert_same(of(NTXentLoss), of(lightly.NTXentLoss), *batch(*size), torch.tensor(temperature))


def test_defaults(lightly):
    peers.assert_same(NTXentLoss(), lightly.NTXentLoss(), *batch(9, 12))


@pytest.mark.parametrize(("rows", "size"), [(1, 19), (3, 19), (3, 18), (8, 19), (20, 19)])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_memory_bank_over_several_steps(lightly, rows, size, temperature):
    losses = []
    for loss in (NTXentLoss, lightly.NTXentLoss):
        torch.manual_seed(3)
        losses.append(loss(temperature, memory_bank_size=(size, 12)))
    assert torch.equal(losses[0].memory_bank.bank, losses[1].memory_bank.bank)
    for step in range(8):
        got, expected = (oracle.values_and_gradients(loss, *batch(rows, 12, step)) for loss in losses)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(*(loss.memory_bank.bank for loss in losses), rtol=0, atol=0)
        assert int(losses[0].memory_bank.bank_ptr) == int(losses[1].memory_bank.bank_ptr)


def test_memory_bank_in_float64(lightly):
    torch.manual_seed(3)
    theirs, ours = (
        loss(0.2, memory_bank_size=[19, 12]).double() for loss in (lightly.NTXentLoss, NTXentLoss)
    )
    ours.memory_bank.bank.copy_(theirs.memory_bank.bank)
    inputs = [x.double() for x in batch(5, 12)]
    got, expected = (oracle.values_and_gradients(loss, *inputs) for loss in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gathering_in_a_single_process_changes_nothing():
    for size in (0, (19, 12)):
        losses = []
        for gathers in (False, True):
            torch.manual_seed(3)
            loss = NTXentLoss(memory_bank_size=size, gather_distributed=gathers)
            losses.append(oracle.values_and_gradients(loss, *batch(5, 12)))
        torch.testing.assert_close(*losses)


def test_memory_bank_stays_where_nothing_trains():
    loss = NTXentLoss(memory_bank_size=(19, 12))
    before = loss.memory_bank.bank.clone()
    loss(*batch(5, 12))
    assert torch.equal(loss.memory_bank.bank, before)
    assert int(loss.memory_bank.bank_ptr) == 0


def test_temperature_is_learned():
    for size in (0, (19, 12)):
        loss = NTXentLoss(torch.nn.Parameter(torch.tensor(0.5)), memory_bank_size=size)
        loss(*batch(5, 12)).backward()
        assert loss.temperature.grad is not None


@pytest.mark.parametrize("size", [5, -1, (5,), (5, -2), (1, 2, 3)])
def test_memory_bank_of_no_such_size(size):
    with pytest.raises(ThawkitError, match=r"memory_bank_size must be 0 or \(rows, features\)"):
        NTXentLoss(memory_bank_size=size)


def test_bad_arguments():
    with pytest.raises(ThawkitError, match="temperature must be positive"):
        NTXentLoss(0.0)
    with pytest.raises(ThawkitError, match="features of the memory bank, 12, got 8"):
        NTXentLoss(memory_bank_size=(4, 12))(*batch(5, 8))
    with pytest.raises(ThawkitError, match="out1 must have the shape of out0"):
        NTXentLoss(memory_bank_size=(4, 12))(torch.zeros(3, 12), torch.zeros(4, 12))
