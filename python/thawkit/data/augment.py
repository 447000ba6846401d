"""Random changes to training images that depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from thawkit.choices import PROFILES
from thawkit.errors import ThawkitError


def _standard() -> list[nn.Module]:
    return [
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation=_BILINEAR),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
    ]


def _digits() -> list[nn.Module]:
    return [
        v2.RandomAffine(
            degrees=12, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=8, interpolation=_BILINEAR
        )
    ]


_BILINEAR = v2.InterpolationMode.BILINEAR
_MAKERS: dict[str, Callable[[], list[nn.Module]]] = {"none": list, "standard": _standard, "digits": _digits}


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Augment:
    """Augment a uint8 image (3, H, W), keeping its size, as a pure function of (seed, epoch, index).

    That makes a resumed run see the images an uninterrupted one would have seen, with any number of workers.
    The global random state is left as it was.

    Args:
        profile: one of :data:`PROFILES`, or a torchvision v2 transform of uint8 images that keeps their size.
        seed: changes all draws.
    """

    def __init__(self, profile: str | nn.Module = "standard", seed: int = 0) -> None:
        if isinstance(profile, str) and profile not in PROFILES:
            raise ThawkitError(f"augment: unknown profile {profile!r}; known: {', '.join(PROFILES)}")
        transforms = _MAKERS[profile]() if isinstance(profile, str) else [profile]
        self.transform = v2.Compose(transforms) if transforms else None
        self.profile = profile
        self.seed = seed

    def __call__(self, image: Tensor, epoch: int, index: int, stream: int = 0) -> Tensor:
        """Return the augmented image, uint8 (3, H, W); ``stream`` tells two data sets apart."""
        if self.transform is None:
            return image
        # torch.random.fork_rng and torch.manual_seed also visit every accelerator: ten times the cost.
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index, stream))
            return self.transform(image)
        finally:
            torch.set_rng_state(state)
