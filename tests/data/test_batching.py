import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from thawkit.data import PROFILES, Augment, EpochSampler, ImageDataset, Preprocess, TrainingView
from thawkit.errors import ThawkitError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 10, 10), dtype=np.uint8)
SOURCE = ImageDataset(IMAGES, np.arange(12) % 3, "abc")
TARGET = ImageDataset(IMAGES[:5, :8, :8], None, "abc")


@pytest.mark.parametrize("profile", [p for p in PROFILES if p != "none"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(profile):
    image = SOURCE.image(0)
    first = Augment(profile, seed=5)(image, 3, 7)
    assert first.shape == image.shape
    assert first.dtype == torch.uint8
    torch.manual_seed(99)
    augment = Augment(profile, seed=5)
    augment(image, 0, 0)
    assert torch.equal(augment(image, 3, 7), first)
    others = [
        augment(image, 4, 7),
        augment(image, 3, 8),
        augment(image, 3, 7, stream=1),
        Augment(profile)(image, 3, 7),
    ]
    assert not any(torch.equal(other, first) for other in others)


def test_augmentation_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Augment("standard")(SOURCE.image(0), 0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_digits_are_never_flipped():
    half = torch.zeros(3, 20, 20, dtype=torch.uint8)
    half[..., :6] = 255
    for index in range(40):
        image = Augment("digits")(half, 0, index).float()
        assert image[..., :10].mean() > image[..., 10:].mean()


def test_unknown_profile_lists_the_known():
    with pytest.raises(ThawkitError, match="none, standard, digits"):
        Augment("mixup")


def test_orders_differ_by_epoch_and_need_no_history():
    sampler = EpochSampler(12, 5, seed=1)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(row for _, row, _ in epochs[-1]) == list(range(12))
    assert epochs[0] != epochs[1]
    fresh = EpochSampler(12, 5, seed=1)
    fresh.set_epoch(2)
    assert list(fresh) == epochs[2]


def test_target_rows_cycle_through_all_of_the_target():
    sampler = EpochSampler(12, 5, seed=1)
    rows = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        rows += [target for _, _, target in sampler]
    for start in range(0, 60, 5):
        assert sorted(rows[start : start + 5]) == list(range(5))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_both_domains_and_do_not_depend_on_workers(workers):
    view = TrainingView(SOURCE, Preprocess(14), Augment("standard"), TARGET)
    loader = DataLoader(
        view, batch_size=4, sampler=EpochSampler(12, 5), collate_fn=view.collate, num_workers=workers
    )
    batches = list(loader)
    assert len(batches) == 3
    keys = list(EpochSampler(12, 5))
    for batch, rows in zip(batches, (keys[:4], keys[4:8], keys[8:]), strict=True):
        assert batch["pixel_values"].shape == batch["target_pixel_values"].shape == (4, 3, 14, 14)
        assert batch["labels"].tolist() == [SOURCE.labels[row] for _, row, _ in rows]
        expected = view.collate([view[key] for key in rows])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["target_pixel_values"], expected["target_pixel_values"])
