import numpy as np
import pytest
import torch
from PIL import Image

from thawkit.data import Preprocess, collate_images
from thawkit.errors import ThawkitError


def smooth_image(height, width, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def pillow(image, size, resize):
    width, height = image.size
    wide, tall = resize * width // min(width, height), resize * height // min(width, height)
    left, top = (wide - size) // 2, (tall - size) // 2
    resized = image.resize((wide, tall), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    ("height", "width", "size", "resize"),
    [
        (28, 28, 64, 64),
        (200, 150, 32, 36),
        (97, 331, 48, 50),
        (8, 8, 28, 28),
        (30, 41, 30, 30),
        (400, 10, 8, 9),
    ],
)
def test_agrees_with_pillow(height, width, size, resize):
    image = smooth_image(height, width, seed=height)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    ours = Preprocess(size, resize).resize_crop(pixels)[0].permute(1, 2, 0).numpy()
    assert ours.shape == (size, size, 3)
    assert np.abs(ours - pillow(image, size, resize)).max() <= 1.01


def test_normalisation_is_of_the_stated_units():
    preprocess = Preprocess(4, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.5))
    out = preprocess(torch.full((1, 3, 4, 4), 51, dtype=torch.uint8))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([0.0, -1.0, -0.8]))


def test_images_already_in_size_pass_through():
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    assert torch.equal(Preprocess(28).resize_crop(pixels), pixels.float())


def test_config_round_trip_and_state_dict_stay_clean():
    preprocess = Preprocess(24, 30, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    again = Preprocess.from_config(preprocess.config())
    pixels = torch.randint(0, 256, (1, 3, 50, 40), dtype=torch.uint8)
    assert torch.equal(preprocess(pixels), again(pixels))
    assert not preprocess.state_dict()


def test_batches_of_mixed_sizes_equal_single_images():
    preprocess = Preprocess(16)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((20, 30), (16, 16), (40, 17))]
    batch = collate_images(images, preprocess)
    for row, image in zip(batch, images, strict=True):
        assert torch.equal(row, preprocess(image[None])[0])


def test_exports_with_every_dimension_dynamic():
    dynamic = torch.export.Dim.DYNAMIC
    pixels = torch.randint(0, 256, (2, 3, 50, 40), dtype=torch.uint8)
    program = torch.export.export(
        Preprocess(24, 28), (pixels,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    other = torch.randint(0, 256, (3, 3, 33, 71), dtype=torch.uint8)
    torch.testing.assert_close(program.module()(other), Preprocess(24, 28)(other))


@pytest.mark.parametrize(
    "arguments", [{"size": 0}, {"size": 32, "resize": 30}, {"size": 8, "std": (1.0, 0.0, 1.0)}]
)
def test_impossible_settings(arguments):
    with pytest.raises(ThawkitError):
        Preprocess(**arguments)
