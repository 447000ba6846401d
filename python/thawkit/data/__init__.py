"""Images in, batches out: built-in sets, folders and ``.npz`` files, splits, augmentation, preprocessing."""

from thawkit.choices import PROFILES
from thawkit.data.augment import Augment
from thawkit.data.batching import EpochSampler, TrainingView, collate_images
from thawkit.data.builtin import BUILTIN
from thawkit.data.dataset import ImageDataset, Splits
from thawkit.data.files import read_image
from thawkit.data.load import load
from thawkit.data.preprocess import Preprocess
from thawkit.data.split import stratified_split

__all__ = [
    "BUILTIN",
    "PROFILES",
    "Augment",
    "EpochSampler",
    "ImageDataset",
    "Preprocess",
    "Splits",
    "TrainingView",
    "collate_images",
    "load",
    "read_image",
    "stratified_split",
]
