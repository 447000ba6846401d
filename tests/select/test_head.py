import pytest
import torch
from torch import nn

from thawkit.errors import ThawkitError
from thawkit.select import LeNet, capture_features, create_model, head, replace_head

HEADS = {
    "torchvision:resnet18": "fc",
    "torchvision:mobilenet_v2": "classifier.1",
    "torchvision:convnext_tiny": "classifier.2",
    "torchvision:vit_b_32": "heads.head",
    "timm:mobilenetv3_small_050": "classifier",
    "timm:convnext_atto": "head.fc",
    "timm:vit_tiny_patch16_224": "head",
    "lenet": "head",
}


@pytest.mark.parametrize("name", HEADS)
def test_head_of_known_networks_is_found_replaced_and_fed(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    model = create_model(name, 7, pretrained=False)
    where, layer = head(model.module)
    assert where == HEADS[name]
    assert layer.out_features == model.num_classes == 7
    images = torch.randn(2, 3, model.preprocess.size, model.preprocess.size)
    with torch.no_grad(), capture_features(model.module) as captured:
        logits = model.module(images)
    assert logits.shape == (2, 7)
    assert [features.shape for features in captured] == [(2, layer.in_features)]
    torch.testing.assert_close(layer(captured[0]), logits)
    assert not layer._forward_pre_hooks


def test_plain_network_and_its_bias_are_kept():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)
    )
    replace_head(network, 5)
    assert head(network)[0] == "4"
    assert head(network)[1].bias is None
    assert network(torch.randn(1, 3, 4, 4)).shape == (1, 5)


def test_features_keep_their_gradient():
    network = LeNet(3)
    with capture_features(network) as captured:
        network(torch.randn(2, 3, 28, 28))
    captured[0].sum().backward()
    assert network.body[0].weight.grad.abs().sum() > 0


def test_networks_without_a_linear_head_are_refused():
    with pytest.raises(ThawkitError, match=r"ends in Conv2d \(classifier.1\); a linear head is needed"):
        create_model("torchvision:squeezenet1_0", 3, pretrained=False)


def test_networks_with_two_heads_are_refused():
    pytest.importorskip("timm")
    with pytest.raises(ThawkitError, match="several heads"):
        create_model("timm:deit_tiny_distilled_patch16_224", 3, pretrained=False)
