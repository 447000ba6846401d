"""What is silently useless or silently costs is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import thawkit
from thawkit.errors import ThawkitWarning


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
