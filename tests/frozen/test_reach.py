"""What is silently useless or silently costs is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import thawkit
from thawkit.errors import ThawkitWarning
from thawkit.frozen import check_optimizer, parameter_groups


class _Model(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.how = how

    def forward(self, x: Tensor) -> object:
        if self.how == "reentrant":
            return self.head(checkpoint(self.body, x, use_reentrant=True))
        if self.how == "no_grad":
            with torch.no_grad():
                return self.head(self.body(x))
        return {"logits": self.head(self.body(x)), "features": x}


def test_nothing_gets_a_gradient() -> None:
    with pytest.warns(ThawkitWarning, match="no gradient reaches anything that trains"):
        thawkit.freeze(_Model("no_grad"), "head", example=torch.zeros(2, 4))
    with pytest.warns(ThawkitWarning, match="no gradient reaches anything that trains"):
        thawkit.freeze(_Model("plain"), "unused.*", example=torch.zeros(2, 4))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_some_get_none(build) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ThawkitWarning)
        report = thawkit.freeze(_Model("plain"), "all", example=torch.zeros(2, 4))
        assert report.notes == ("no gradient reaches unused.weight, unused.bias",)
        report = thawkit.freeze(_Model("plain"), "lora:2", example=torch.zeros(2, 4))
        assert report.notes == ("no gradient reaches unused.lora_A, unused.lora_B",)
        assert thawkit.freeze(_Model("reentrant"), "all", example=torch.zeros(2, 4)).notes[0].startswith("no")
        grad = torch.zeros(2, 4, requires_grad=True)
        assert thawkit.freeze(_Model("reentrant"), "all", example=grad).notes == ()  # cannot be told
        assert thawkit.freeze(build("resnet18"), "bias", example=torch.zeros(2, 3, 32, 32)).notes == ()


def test_batch_normalizations_that_go_by_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.warns(ThawkitWarning, match=r"1 batch normalizations without running stat.*'1'"):
        thawkit.freeze(model, "norm")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_adapters_under_checkpointing_of_an_input_without_gradient_do_not_train() -> None:
    """The reentrant kind passes a gradient on only if its input needs one, which a frozen stem's does not."""
    report = thawkit.freeze(_Model("reentrant"), "lora:2", example=torch.zeros(2, 4))
    assert any("body.lora_A, body.lora_B" in note for note in report.notes)
    body = thawkit.freeze(_Model("reentrant"), "lora:2:body", example=torch.zeros(2, 4, requires_grad=True))
    assert not any("body.lora_A" in note for note in body.notes)


def test_optimizers_that_move_too_much_or_too_little(build) -> None:
    model = build("small_cnn")
    images = torch.randn(2, 3, 8, 8)
    model(images).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    thawkit.freeze(model, "channels:0.5", example=images)
    with pytest.warns(ThawkitWarning) as said:
        check_optimizer(model, optimizer)
    messages = [str(warning.message) for warning in said]
    assert len(messages) == 2
    assert (
        "have a gradient left over and would move, 7 of them by weight decay as well, as '0.weight'"
        in messages[0]
    )
    assert "2 tensors that train are not in it, as '0.weight_channels'" in messages[1]
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_optimizer(model, torch.optim.SGD(parameter_groups(model, 0.1), 0.1))
        model.zero_grad()
        check_optimizer(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1))
