from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import thawkit
from thawkit.frozen import functional
from thawkit.frozen.extension import Extended
from thawkit.frozen.layers import FrozenBatchNorm, Rewritten
from thawkit.ops.frozen import onednn


def _small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "small_cnn": _small_cnn,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.5),
    "lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=5),
}


@pytest.fixture(autouse=True)
def _packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay frozen matrices out anew on CPUs where that gains nothing, too."""
    monkeypatch.setattr(onednn, "products_gain", lambda: True)


@pytest.fixture(scope="session")
def build() -> Callable[[str], nn.Module]:
    """Build a model by name, the same at every call, with batch normalizations that are no identities."""

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        model = _MODELS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        return model

    return build


@pytest.fixture(scope="session")
def stock() -> Callable[[nn.Module], nn.Module]:
    """Copy a frozen model into stock modules that train the same, in the same modes."""

    def stock(frozen: nn.Module) -> nn.Module:
        model = copy.deepcopy(frozen)
        thawkit.unfreeze(model)
        for ours, theirs in zip(frozen.parameters(), model.parameters(), strict=True):
            theirs.requires_grad_(ours.requires_grad)
        for ours, theirs in zip(frozen.modules(), model.modules(), strict=True):
            theirs.training = ours.training
            assert type(theirs).__module__.partition(".")[0] != "thawkit"
            assert not isinstance(theirs, FrozenBatchNorm)
        return model

    return stock


@pytest.fixture(scope="session")
def stock_form() -> Callable[[nn.Module], nn.Module]:
    """Copy a frozen model and give what is rewritten torch's own class; adapters and channels stay."""

    def stock_form(frozen: nn.Module) -> nn.Module:
        model = copy.deepcopy(frozen)
        for module in model.modules():
            functional.release(module)
            if isinstance(module, Rewritten) and not isinstance(module, Extended):
                fixed = isinstance(module, FrozenBatchNorm)
                module.__class__ = module.stock
                if fixed:
                    module.training = False
        return model

    return stock_form


@pytest.fixture(scope="session")
def gradients() -> Callable[[nn.Module, Tensor], dict[str, Tensor]]:
    """Logits and the gradient of a loss in each trainable parameter, the dropout masks being the same."""

    def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(1)
        trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
        logits = model(images)
        loss = torch.logsumexp(logits.flatten(1).to(torch.float64), 1).sum() - logits[:, 0].sum()
        found = torch.autograd.grad(loss, list(trains.values()))
        return {"logits": logits.detach(), **dict(zip(trains, found, strict=True))}

    return gradients
