import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from thawkit.data import load
from thawkit.errors import ThawkitError

OFFICIAL_SIZES = {"pneumoniamnist": (3882, 524, 624), "mnist": (5000, 1000, 2000)}


def write_images(folder, count, seed=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{i}{suffix}")


@pytest.mark.parametrize("name", OFFICIAL_SIZES)
def test_shipped_sets_have_their_official_parts(name):
    splits = load(name)
    assert tuple(map(len, (splits.train, splits.val, splits.test))) == OFFICIAL_SIZES[name]
    assert splits.train.image(0).shape == (3, 28, 28)
    assert (splits.test.counts() > 0).all()
    assert splits.fingerprint() == load(name).fingerprint()


def test_optdigits_is_split_stratified_by_seed():
    pytest.importorskip("sklearn")
    splits = load("optdigits", seed=1, val=0.2, test=0.3)
    sizes = np.array([len(splits.train), len(splits.val), len(splits.test)])
    assert sizes.sum() == 1797
    np.testing.assert_allclose(sizes / 1797, (0.5, 0.2, 0.3), atol=0.01)
    assert splits.train.image(0).shape == (3, 8, 8)
    assert splits.train.images.max() == 255
    assert splits.fingerprint() != load("optdigits", seed=2, val=0.2, test=0.3).fingerprint()
    assert splits.origin == {"spec": "optdigits", "seed": 1, "val": 0.2, "test": 0.3}


def test_folder_of_class_folders_is_split(tmp_path):
    write_images(tmp_path / "cat", 20)
    write_images(tmp_path / "dog" / "puppies", 10, suffix=".JPEG")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    splits = load(tmp_path)
    assert splits.classes == ("cat", "dog")
    assert [part.counts().tolist() for part in (splits.train, splits.val, splits.test)] == [
        [14, 7],
        [3, 2],
        [3, 1],
    ]
    assert load(splits.origin["spec"]).fingerprint() == splits.fingerprint()


def test_folder_with_splits_keeps_them_and_makes_the_missing_one(tmp_path):
    for split, count in (("train", 10), ("test", 4)):
        write_images(tmp_path / split / "a", count)
        write_images(tmp_path / split / "b", count, seed=1)
    splits = load(tmp_path, val=0.2)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [16, 4, 8]
    assert all(path.parts[-3] == "test" for path in splits.test.images)


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("train", "bus"):
        write_images(tmp_path / name, 6)
    assert load(tmp_path).classes == ("bus", "train")


def test_split_folders_beside_another_are_refused_rather_than_taken_for_classes(tmp_path):
    for path in ("train/a", "train/b", "test/a", "test/b", "drawings"):
        write_images(tmp_path / path, 6)
    with pytest.raises(ThawkitError, match=r"'train' holds .* 'drawings' beside it is no split") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_splits_need_a_train_folder(tmp_path):
    for path in ("val/a", "val/b", "test/a", "test/b"):
        write_images(tmp_path / path, 6)
    with pytest.raises(ThawkitError, match=r"it has test and val, but no train folder"):
        load(tmp_path)


def test_images_without_class_folders_are_unlabelled_where_classes_are_given(tmp_path):
    write_images(tmp_path, 20)
    with pytest.raises(ThawkitError, match="one folder a class is needed, at least 2; found 0"):
        load(tmp_path)
    splits = load(tmp_path, val=0.2, test=0.3, classes=["cat", "dog"])
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [10, 4, 6]
    assert [part.labels for part in parts] == [None] * 3
    assert len({path for part in parts for path in part.images}) == 20
    assert splits.classes == ("cat", "dog")


def test_npz_with_medmnist_keys(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz",
        train_images=rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8),
        train_labels=np.arange(30)[:, None] % 3,
        test_images=rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        test_labels=np.arange(6)[:, None] % 3,
        classes=np.array(["ape", "bee", "cow"]),
    )
    splits = load(tmp_path / "mine.npz", val=0.2)
    assert splits.classes == ("ape", "bee", "cow")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [24, 6, 6]


IMAGES, LABELS = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "no array 'train_images' in it; it has images"),
        ({"train_images": IMAGES}, "no array 'train_labels' in it"),
        ({"train_images": IMAGES, "train_labels": LABELS[:4]}, "6 images but 4 labels"),
        ({"train_images": IMAGES, "train_labels": LABELS * 0}, "at least 2 classes"),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES, "val_labels": LABELS + 1},
            "val: label 2 is out of range",
        ),
        ({"train_images": IMAGES * 1.0, "train_labels": LABELS}, "must be uint8"),
        ({"train_images": IMAGES, "train_labels": LABELS.astype(object)}, "without pickles"),
    ],
)
def test_npz_that_does_not_fit_says_why(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ThawkitError, match=message):
        load(tmp_path / "bad.npz")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no zip at all"])
def test_damaged_npz(tmp_path, damage):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, train_images=IMAGES, train_labels=LABELS)
    (tmp_path / "bad.npz").write_bytes(damage(buffer.getvalue()))
    with pytest.raises(ThawkitError, match=r"cannot read .*bad\.npz"):
        load(tmp_path / "bad.npz")


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(
        ThawkitError, match=r"no built-in set \(pneumoniamnist, mnist, optdigits\); did you mean mnist"
    ):
        load("minst")
    with pytest.raises(ThawkitError, match="no such folder or file"):
        load(tmp_path / "nowhere")
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(ThawkitError, match="is a file; a folder of class folders"):
        load(tmp_path / "list.txt")


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(ThawkitError, match="at least 2; found 0"):
        load(tmp_path)
    write_images(tmp_path / "only", 3)
    with pytest.raises(ThawkitError, match=r"at least 2; found 1 \(only\)"):
        load(tmp_path)
    (tmp_path / "void").mkdir()
    with pytest.raises(ThawkitError, match="void: no images in it"):
        load(tmp_path)
    write_images(tmp_path / "void", 2)
    with pytest.raises(ThawkitError, match="class 1 has 2 images, too few"):
        load(tmp_path)


def test_splits_with_other_classes(tmp_path):
    for path in ("train/a", "train/b", "test/a", "test/c"):
        write_images(tmp_path / path, 3)
    with pytest.raises(ThawkitError, match=r"classes differ from those of .*train: b, c"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) * 2 // 3], lambda b: b"", lambda b: b"\x00" * len(b)]
)
def test_a_damaged_image_is_named_before_training(tmp_path, suffix, damage):
    for name in ("a", "b"):
        write_images(tmp_path / name, 6, suffix=suffix)
    victim = tmp_path / "b" / f"4{suffix}"
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(ThawkitError, match=f"cannot read image {victim}: .+") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / name, 6)
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(ThawkitError, match=r"deep.png: it has more than 8 bits a channel"):
        load(tmp_path)


@pytest.mark.parametrize("shares", [{"val": 0.0}, {"test": 1.0}, {"val": 0.6, "test": 0.5}])
def test_shares_must_leave_something(shares):
    with pytest.raises(ThawkitError, match="leave images to train on"):
        load("mnist", **shares)


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is not None, reason="scikit-learn is installed")
def test_optdigits_without_scikit_learn_names_the_extra():
    with pytest.raises(ThawkitError, match=r"thawkit\[demo\]"):
        load("optdigits")
