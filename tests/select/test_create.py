import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from thawkit.data import read_image
from thawkit.errors import MissingDependencyError, ThawkitError
from thawkit.select import create_model, head
from thawkit.select.weights import efficientnet_lite0_file, match_in_order, read_weights


@pytest.fixture(scope="module")
def lite0_weights():
    pytest.importorskip("timm")
    try:
        return read_weights(efficientnet_lite0_file())
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_lite0_takes_every_pretrained_tensor_but_the_head(lite0_weights):
    model = create_model("efficientnet_lite0", 5)
    state = model.module.state_dict()
    assert len(state) == len(lite0_weights)
    theirs, ours = list(lite0_weights.items()), list(state.items())
    for (their_name, value), (name, own) in zip(theirs, ours, strict=True):
        assert name.startswith("classifier.") or torch.equal(value, own), (their_name, name)
    assert state["classifier.weight"].shape == (5, 1280)
    assert (model.preprocess.size, model.preprocess.resize) == (224, 256)
    white, black = (torch.full((1, 3, 8, 8), v, dtype=torch.uint8) for v in (255, 0))
    torch.testing.assert_close(model.preprocess(white)[0, 0, 0, 0], torch.tensor(1.0))
    torch.testing.assert_close(model.preprocess(black)[0, 0, 0, 0], torch.tensor(-127 / 128))


PHOTOS = {"cat.bmp": "Egyptian cat", "hot_dog.jpg": "hotdog", "parrot.jpg": "macaw", "bird.bmp": "chickadee"}


@pytest.mark.skipif("THAWKIT_DATA" not in os.environ, reason="THAWKIT_DATA does not say where the photos are")
@pytest.mark.parametrize("file", PHOTOS)
def test_lite0_knows_what_is_on_the_photos(lite0_weights, file):
    import timm

    folder = Path(os.environ["THAWKIT_DATA"]) / "photos"
    if not (folder / file).is_file():
        pytest.skip(f"no {file} in {folder}")
    names = (folder / "imagenet_labels.txt").read_text().splitlines()[1:]  # the first is "background"
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(match_in_order(lite0_weights, network))
    preprocess = create_model("efficientnet_lite0", 2, pretrained=False).preprocess
    with torch.inference_mode():
        best = int(network(preprocess(read_image(folder / file)[None])).argmax())
    assert PHOTOS[file] in names[best]


def test_matching_in_order_checks_shapes_and_number():
    network = create_model("lenet", 4).module
    state = network.state_dict()
    renamed = {f"other.{i}": value for i, value in enumerate(state.values())}
    assert list(match_in_order(renamed, network)) == list(state)
    with pytest.raises(ThawkitError, match="15 tensors for a network of 16"):
        match_in_order({k: v for k, v in renamed.items() if k != "other.0"}, network)
    with pytest.raises(ThawkitError, match=r"other.0 \(7,\) does not fit body.0.weight"):
        match_in_order({**renamed, "other.0": torch.zeros(7)}, network)


@pytest.mark.parametrize("name", ["lenet", "torchvision:resnet18"])
def test_spec_builds_the_same_architecture(name):
    model = create_model(name, 6, pretrained=False, image_size=None if name == "lenet" else 96)
    again = create_model(**json.loads(json.dumps(model.spec)), pretrained=False)
    again.module.load_state_dict(model.module.state_dict())
    assert again.preprocess.config() == model.preprocess.config()
    images = torch.randn(1, 3, model.preprocess.size, model.preprocess.size)
    with torch.inference_mode():
        assert torch.equal(model.module(images), again.module(images))


def test_seed_decides_new_layers_and_nothing_else_draws():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, same, other = (create_model("lenet", 3, seed=seed).module for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(head(one)[1].weight, head(same)[1].weight)
    assert not torch.equal(head(one)[1].weight, head(other)[1].weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_own_weights_with_another_number_of_classes(tmp_path, suffix):
    state = create_model("lenet", 9, seed=4).module.state_dict()
    file = tmp_path / f"mine{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    module = create_model("lenet", 3, weights=file).module
    assert torch.equal(module.body[0].weight, state["body.0.weight"])
    assert module.head.weight.shape == (3, 128)
    same_head = create_model("lenet", 9, weights=file).module
    assert torch.equal(same_head.head.weight, state["head.weight"])


def test_weights_that_do_not_fit(tmp_path):
    state = create_model("lenet", 3).module.state_dict()
    cases = {
        "lacks": ({k: v for k, v in state.items() if k != "body.0.weight"}, "lacks body.0.weight"),
        "extra": ({**state, "tail": torch.zeros(1)}, "has tail"),
        "shape": ({**state, "body.0.weight": torch.zeros(2)}, r"body.0.weight is \(2,\)"),
    }
    for name, (content, message) in cases.items():
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(ThawkitError, match=message):
            create_model("lenet", 3, weights=tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ThawkitError, match="cannot read"):
        create_model("lenet", 3, weights=tmp_path / "broken.pth")
    with pytest.raises(ThawkitError, match="no such file"):
        create_model("lenet", 3, weights=tmp_path / "none.pth")


def test_code_in_a_weights_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"body.0.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ThawkitError, match="cannot read"):
        create_model("lenet", 3, weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "unknown model 'resnet'; known: efficientnet_lite0, lenet"),
        ("torchvision:resnet19", "no classification model 'resnet19'; did you mean resnet18"),
        ("torchvision:fcn_resnet50", "no classification model"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ThawkitError, match=message):
        create_model(name, 3)


def test_impossible_sizes():
    with pytest.raises(ThawkitError, match="at least 2"):
        create_model("lenet", 1)
    for size in (0, -5, 100_000):
        with pytest.raises(ThawkitError, match=f"image_size must be from 1 to 2048, got {size}"):
            create_model("torchvision:resnet18", 3, pretrained=False, image_size=size)
    with pytest.raises(ThawkitError, match="28×28"):
        create_model("lenet", 3, image_size=64)
