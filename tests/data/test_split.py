import numpy as np
import pytest

from thawkit.data import stratified_split
from thawkit.errors import ThawkitError


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.5, 0.5), (0.9, 0.1, 0.0), (1.0,)])
def test_every_row_once_and_every_class_in_proportion(fractions):
    labels = np.repeat([0, 1, 2], [200, 60, 20])
    np.random.default_rng(1).shuffle(labels)
    parts = stratified_split(labels, fractions, seed=3)
    assert len(parts) == len(fractions)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(280))
    for part, fraction in zip(parts, fractions, strict=True):
        counts = np.bincount(labels[part], minlength=3)
        assert np.abs(counts - fraction * np.array([200, 60, 20])).max() <= 1


def test_small_classes_reach_every_part():
    labels = np.repeat([0, 1], [97, 3])
    for part in stratified_split(labels, (0.8, 0.1, 0.1)):
        assert set(labels[part]) == {0, 1}


def test_seed_decides():
    labels = np.arange(100) % 4
    first, again, other = (stratified_split(labels, (0.5, 0.5), seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("labels", "fractions", "message"),
    [
        ([0, 1, 0, 1], (0.5, 0.6), "add up to 1"),
        ([0, 1, 0, 1], (1.5, -0.5), "add up to 1"),
        ([0, 0, 0, 1], (0.5, 0.5), "class 1 has 1 images, too few to put one in each of 2"),
    ],
)
def test_bad_input_says_what_is_wrong(labels, fractions, message):
    with pytest.raises(ThawkitError, match=message):
        stratified_split(labels, fractions)
