"""The one definition of how an image becomes a network's input: in training, evaluation and the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thawkit.errors import ThawkitError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(nn.Module):
    """Resize the short side, crop the centre, scale to [0, 1], subtract ``mean`` and divide by ``std``.

    The resize is bilinear with antialiasing (a triangle filter as wide as the shrink factor), computed in
    float32 and not rounded to whole grey levels; it agrees with Pillow's BILINEAR to within that rounding.
    The long side becomes ``resize * long // short``; the crop starts at the floor of half the surplus. The
    module is exported inside the ONNX graph, with the number, height and width of the images dynamic.

    Args:
        size: side of the square the network takes, in pixels.
        resize: what the short side becomes before the crop; ``size`` when not given.
        mean, std: per channel (R, G, B), in units of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int,
        resize: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.size = int(size)
        self.resize = int(resize or size)
        if not 0 < self.size <= self.resize:
            raise ThawkitError(f"size must be positive and at most resize, got size={size}, resize={resize}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ThawkitError(f"mean and std must have 3 values, std positive; got mean={mean}, std={std}")
        self._config = {"size": self.size, "resize": self.resize, "mean": list(mean), "std": list(std)}
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Turn uint8 images (N, 3, H, W) of one size into network input, float32 (N, 3, size, size)."""
        return self.normalize(self.resize_crop(images))

    def resize_crop(self, images: Tensor) -> Tensor:
        """Return what the network sees of (N, 3, H, W): float32 (N, 3, size, size), still from 0 to 255."""
        height, width = images.shape[-2:]
        short = torch.sym_min(height, width)
        tall, wide = self.resize * height // short, self.resize * width // short
        shape = cast(tuple[int, int], (tall, wide))  # int() would fix the size in an exported graph
        resized = F.interpolate(images.float(), shape, mode="bilinear", antialias=True)
        top, left = (tall - self.size) // 2, (wide - self.size) // 2
        return resized[..., top : top + self.size, left : left + self.size]

    def normalize(self, images: Tensor) -> Tensor:
        """Map pixel values from 0 to 255, (N, 3, H, W), to the network's range."""
        return (images / 255 - self.mean) / self.std

    def config(self) -> dict[str, Any]:
        """Return the arguments that make this module, as JSON can hold them."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocess:
        """Make the module that :meth:`config` described."""
        return cls(**config)

    def extra_repr(self) -> str:
        """Show the arguments in ``repr``."""
        return ", ".join(f"{key}={value}" for key, value in self._config.items())
