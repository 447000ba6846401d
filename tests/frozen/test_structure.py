"""Heads and blocks of a zoo of classifiers, built without weights and without memory."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import thawkit
from thawkit.errors import ThawkitError
from thawkit.frozen import find_blocks, find_head
from thawkit.frozen.structure import head_parts, is_norm_layer

_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
_TEXT = _SMALL | {"vocab_size": 50, "pad_token_id": 0}


def _huggingface(kind: str, **config: object) -> nn.Module:
    config_class = {"Roberta": "RobertaConfig", "GPT2": "GPT2Config"}.get(kind.split("For")[0])
    name = config_class or kind.split("For")[0] + "Config"
    return getattr(transformers, kind)(getattr(transformers, name)(**config))


ZOO = [
    ("torchvision:resnet18", "fc", 8, "layer4.1"),
    ("torchvision:mobilenet_v2", "classifier.1", 17, "features.17"),
    ("torchvision:mobilenet_v3_small", "classifier.3", 11, "features.11"),
    ("torchvision:efficientnet_b0", "classifier.1", 16, "features.7.0"),
    ("torchvision:vit_b_16", "heads.head", 12, "encoder.layers.encoder_layer_11"),
    ("torchvision:swin_t", "head", 12, "features.7.1"),
    ("torchvision:convnext_tiny", "classifier.2", 18, "features.7.2"),
    ("torchvision:densenet121", "classifier", 58, "features.denseblock4.denselayer16"),
    ("torchvision:shufflenet_v2_x1_0", "fc", 16, "stage4.3"),
    ("torchvision:squeezenet1_1", "classifier.1", 8, "features.12"),
    ("torchvision:googlenet", "fc", 9, "inception5b"),
    ("torchvision:vgg11", "classifier.6", 10, "classifier.3"),
    ("timm:tf_efficientnet_lite0", "classifier", 16, "blocks.6.0"),
    ("timm:resnet18", "fc", 8, "layer4.1"),
    ("timm:resnetv2_50", "head.fc", 16, "stages.3.blocks.2"),
    ("timm:regnety_002", "head.fc", 13, "s4.b7"),
    ("timm:convnext_atto", "head.fc", 12, "stages.3.blocks.1"),
    ("timm:swin_tiny_patch4_window7_224", "head.fc", 12, "layers.3.blocks.1"),
    ("timm:vit_tiny_patch16_224", "head", 12, "blocks.11"),
    ("timm:deit_tiny_distilled_patch16_224", "head", 12, "blocks.11"),
    ("timm:mobilenetv3_small_100", "classifier", 11, "blocks.4.2"),
    ("ViTForImageClassification", "classifier", 3, "vit.layers.2"),
    ("BertForSequenceClassification", "classifier", 3, "bert.encoder.layer.2"),
    ("RobertaForSequenceClassification", "classifier.out_proj", 3, "roberta.encoder.layer.2"),
    ("GPT2ForSequenceClassification", "score", 3, "transformer.h.2"),
    ("ResNetForImageClassification", "classifier.1", 4, "resnet.encoder.stages.1.layers.1"),
]
_CONFIGS = {
    "ViTForImageClassification": _SMALL,
    "BertForSequenceClassification": _TEXT,
    "RobertaForSequenceClassification": _TEXT,
    "GPT2ForSequenceClassification": {
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 2,
        "vocab_size": 50,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "ResNetForImageClassification": {"hidden_sizes": [16, 32], "depths": [2, 2], "embedding_size": 8},
}


def _build(name: str) -> nn.Module:
    library, _, architecture = name.rpartition(":")
    if not library:
        return _huggingface(architecture, **_CONFIGS[architecture])
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(architecture)
        extra = {"init_weights": False} if architecture in ("googlenet", "vgg11") else {}
        return getattr(torchvision.models, architecture)(**extra)


@pytest.mark.parametrize(("name", "head", "blocks", "last"), ZOO, ids=[row[0] for row in ZOO])
def test_zoo(name: str, head: str, blocks: int, last: str) -> None:
    model = _build(name)
    found = find_blocks(model)
    assert find_head(model) == (head, model.get_submodule(head))
    assert (len(found), found[-1]) == (blocks, last)

    for policy in ("head", "last:2", "norm", "bias"):
        thawkit.freeze(model, policy)
        training = {n for n, p in model.named_parameters() if p.requires_grad}
        assert all(p.requires_grad for p in model.get_submodule(head).parameters()), policy
        assert 0 < len(training) < len(list(model.parameters())), policy
        if policy == "last:2":
            assert all(p.requires_grad for p in model.get_submodule(found[-2]).parameters())
            assert not any(p.requires_grad for p in model.get_submodule(found[0]).parameters())


def test_every_part_of_a_new_head_trains() -> None:
    bert = _build("RobertaForSequenceClassification")
    assert head_parts(bert) == ["classifier"]
    thawkit.freeze(bert, "head")
    trains = {n.rpartition(".")[0] for n, p in bert.named_parameters() if p.requires_grad}
    assert trains == {"classifier.dense", "classifier.out_proj"}

    with torch.device("meta"):
        distilled = timm.create_model("deit_tiny_distilled_patch16_224")
    thawkit.freeze(distilled, "head")
    assert {n.split(".")[0] for n, p in distilled.named_parameters() if p.requires_grad} == {
        "head",
        "head_dist",
    }


def test_plain_network_counts_layers() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(4, 8),
        nn.Linear(8, 2),
    )
    assert find_head(model)[0] == "4"
    assert find_blocks(model) == ["0.0", "1.0", "3"]


def test_model_without_a_head() -> None:
    with pytest.raises(ThawkitError, match=r"head.*VisionTransformer has none"):
        find_head(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1))
    with pytest.raises(ThawkitError, match="Sequential has none"):
        thawkit.freeze(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "head")


def _mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 16), *between, nn.ReLU(), nn.Linear(16, 5))


def test_a_network_in_the_place_of_the_head_is_new_as_a_whole() -> None:
    model = torchvision.models.resnet18()
    model.fc = _mlp(nn.BatchNorm1d(16))
    assert find_head(model) == ("fc.3", model.fc[3])
    assert len(find_blocks(model)) == 8
    report = thawkit.freeze(model, "head")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"fc.{n}" for n, _ in model.fc.named_parameters()
    }
    assert model.train().fc[1].training
    assert not model.bn1.training
    assert not any("stay frozen" in note for note in report.notes)


def test_of_a_classifier_only_batch_normalizations_tell_that_it_is_new() -> None:
    """torchvision's VGG has three linear layers there, of which two are pretrained."""
    with torch.device("meta"):
        model = torchvision.models.vgg11(init_weights=False)
    (note,) = thawkit.freeze(model, "head").notes
    assert "the weights of classifier.0, classifier.3 before it stay frozen" in note
    assert "let 'classifier.*' train" in note
    assert thawkit.freeze(model, "head+classifier.*").notes == ()
    assert thawkit.freeze(model, "*.bias").notes == ()
    model.classifier = _mlp(nn.BatchNorm1d(16))
    assert head_parts(model) == ["classifier"]


def test_a_head_after_a_backbone_in_sequence() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 512, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert head_parts(nn.Sequential(backbone, _mlp(nn.BatchNorm1d(16)))) == ["1"]
    model = nn.Sequential(backbone, _mlp())
    assert head_parts(model) == ["1.2"]
    assert "let '1.*' train" in thawkit.freeze(model, "head").notes[0]
    assert thawkit.freeze(nn.Sequential(_mlp()), "head").notes == ()  # a whole model, and no head after one


def test_every_normalization_of_timm_is_one() -> None:
    modules = (timm.layers.norm, timm.layers.norm_act, timm.layers.filter_response_norm, timm.layers.evo_norm)
    kinds = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__
    }
    assert len(kinds) > 30
    for kind in kinds - {timm.layers.norm_act.FrozenBatchNormAct2d}:
        assert is_norm_layer(kind(32)), kind.__name__
    for other in (timm.layers.ConvNormAct(3, 8), timm.layers.ClassifierHead(8, 2), nn.Linear(2, 2)):
        assert not is_norm_layer(other)


def test_norm_trains_what_comes_with_an_activation_and_names_what_it_leaves() -> None:
    model = timm.create_model("resnetv2_50d_evos", num_classes=2)
    report = thawkit.freeze(model, "norm")
    assert all(p.requires_grad for n, p in model.named_parameters() if ".norm" in n)
    assert report.notes == ()

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(4))

    layers = nn.ModuleDict({"norm1": Affine(), "fc": nn.Linear(4, 2)})
    (note,) = thawkit.freeze(layers, "norm").notes
    assert note == "norm does not reach norm1: not known to be normalizations"


def test_a_head_of_one_layer_with_its_normalization_is_new_and_a_body_is_no_head() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3))

    class Net(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.backbone, self.fc = backbone, head

    for head in (
        nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)),
    ):
        assert head_parts(Net(head)) == ["fc"]

    class Tabular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 8)
            layers = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())]
            self.body = nn.Sequential(*layers, nn.Linear(8, 2))

    assert head_parts(Tabular()) == ["body.18"]
