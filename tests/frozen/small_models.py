"""Small models of many families, for images of 32 pixels and sequences of up to 16 of 20 tokens."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)


class Tagger(nn.Module):
    """A recurrent network, of which nothing is rewritten but its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(20, 8), nn.LSTM(8, 12, 2, batch_first=True, dropout=0.2)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify the last of ``tokens``, ``(N, T)``."""
        return self.head(self.norm(self.rnn(self.embed(tokens))[0][:, -1]))


def resnet() -> nn.Module:
    """A ResNet of bottlenecks, one a stage."""
    return ResNet(Bottleneck, (1, 1, 1, 1), num_classes=5, channels=(8, 16, 24, 32), stem_width=8)


def mobilenet_v3() -> nn.Module:
    """A MobileNetV3 of three blocks."""
    blocks = [(16, 3, 16, 16, True, "RE"), (16, 3, 40, 24, False, "RE"), (24, 5, 48, 24, True, "HS")]
    return MobileNetV3([InvertedResidualConfig(*block, 2, 1, 1.0) for block in blocks], 64, num_classes=5)


def lite0() -> nn.Module:
    """The first two stages of EfficientNet-Lite0's seven."""
    model = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    model.blocks, model.conv_head = model.blocks[:2], nn.Conv2d(24, 1280, 1, bias=False)
    return model


def vit() -> nn.Module:
    """A vision transformer of two blocks."""
    return VisionTransformer(32, 8, num_classes=5, embed_dim=32, depth=2, num_heads=2)


def convnext() -> nn.Module:
    """A ConvNeXt of a block a stage."""
    return ConvNeXt(num_classes=5, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))


def bert() -> nn.Module:
    """A classifier on BERT with two layers."""
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, num_labels=5, **sizes)
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    """A classifier on GPT-2 with two layers."""
    sizes = {"vocab_size": 20, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "use_cache": False}
    return GPT2ForSequenceClassification(GPT2Config(num_labels=5, **sizes, **special))


class _Dense(nn.Module):
    """Two convolutions, the second of which joins its input to its result."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(torch.cat([x, self.bn2(self.conv2(y))], 1), inplace=True)


class Functional(nn.Module):
    """A convolutional network that calls functions for everything without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(_Dense(4, 4), _Dense(8, 8))
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Classify ``images``, ``(N, 3, H, W)``."""
        x = F.max_pool2d(self.blocks(F.relu(self.stem(images))), 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def settle(model: nn.Module, inputs: Tensor) -> None:
    """Give batch normalizations the statistics of a batch, as those of a trained model have them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model.train()(inputs)


def some_inputs(family: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Four images, or four sequences of nine tokens."""
    if family in ("bert", "gpt2", "lstm"):
        return torch.randint(1, 20, (4, 9))
    return torch.randn(4, 3, 32, 32, dtype=dtype)


def logits_of(output: object) -> Tensor:
    """The logits in a model's output."""
    return getattr(output, "logits", output)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet,
    "mobilenet_v3": mobilenet_v3,
    "lite0": lite0,
    "functional": Functional,
    "vit": vit,
    "convnext": convnext,
    "bert": bert,
    "gpt2": gpt2,
    "lstm": Tagger,
}
