import numpy as np
import pytest
import torch
from PIL import Image

from thawkit.data import ImageDataset
from thawkit.errors import ThawkitError

GREY = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)


def test_grey_images_are_repeated_over_channels():
    dataset = ImageDataset(GREY, [0, 1, 0, 1], ["a", "b"])
    image = dataset.image(2)
    assert image.shape == (3, 5, 6)
    assert image.dtype == torch.uint8
    assert all(torch.equal(channel, torch.from_numpy(GREY[2])) for channel in image)
    assert dataset[3][1] == 1


def test_colour_arrays_and_files_agree(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 7, 9, 3), dtype=np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, array in zip(files, pixels, strict=True):
        Image.fromarray(array).save(file)
    in_memory, on_disk = (ImageDataset(source, None, ["a", "b"]) for source in (pixels, files))
    for i in range(3):
        assert torch.equal(in_memory.image(i), on_disk.image(i))
        assert torch.equal(on_disk.image(i), torch.from_numpy(pixels[i]).permute(2, 0, 1))
    assert on_disk[0][1] == -1


def test_upright_by_exif(tmp_path):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: show the picture rotated by 270 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    dataset = ImageDataset([tmp_path / "turned.png"], None, ["a", "b"])
    expected = torch.from_numpy(np.array(image.transpose(Image.Transpose.ROTATE_270)))
    assert torch.equal(dataset.image(0)[0], expected)


def test_subset_keeps_order_and_labels():
    part = ImageDataset(GREY, [0, 1, 2, 3], "abcd").subset([3, 1])
    assert part.labels.tolist() == [3, 1]
    assert torch.equal(part.image(0)[0], torch.from_numpy(GREY[3]))
    assert part.counts().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "other",
    [
        ImageDataset(GREY, [0, 1, 1, 1], ["a", "b"]),
        ImageDataset(GREY[::-1], [0, 1, 0, 1], ["a", "b"]),
        ImageDataset(GREY, [0, 1, 0, 1], ["a", "c"]),
        ImageDataset(GREY, None, ["a", "b"]),
        ImageDataset(GREY.reshape(4, 6, 5), [0, 1, 0, 1], ["a", "b"]),
    ],
)
def test_fingerprint_sees_labels_pixels_classes_and_shape(other):
    dataset = ImageDataset(GREY, [0, 1, 0, 1], ["a", "b"])
    assert dataset.fingerprint() == ImageDataset(GREY.copy(), [0, 1, 0, 1], ["a", "b"]).fingerprint()
    assert dataset.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GREY.astype(float), [0] * 4, "must be uint8"),
        (GREY[0], [0] * 5, "must be uint8"),
        (GREY, [0, 1, 0], "4 images but 3 labels"),
        (GREY, [0, 1, 2, 0], r"label 2 is out of range, 2 classes have 0 to 1"),
        (GREY, [0, 1, -1, 0], "label -1 is out of range"),
        (GREY, [0.0, 1.0, 0.0, 1.0], "must be integers"),
        (GREY, np.zeros((4, 2), int), "must be integers"),
    ],
)
def test_wrong_arrays_are_refused_with_the_reason(images, labels, message):
    with pytest.raises(ThawkitError, match=message):
        ImageDataset(images, labels, ["a", "b"], "mine")
