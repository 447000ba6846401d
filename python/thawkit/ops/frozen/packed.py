"""What kernels keep of a weight that is frozen, as long as it stays what it was."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_SAMPLES = 64


def version_of(x: Tensor) -> int:
    """How often ``x`` was written to; 0 for tensors of inference mode, which do not count."""
    return 0 if x.is_inference() else x._version


class Fingerprint:
    """Tells whether tensors changed: their memory, their version counters, and a sample of their values.

    The sample is for writes that go through ``.data``, which count no version.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._marks = [(x.data_ptr(), version_of(x), x.shape) for x in tensors]
        self._samples = [_sample(x).clone() for x in tensors]

    def matches(self, *tensors: Tensor) -> bool:
        """Whether the tensors are what they were."""
        return self._marks == [(x.data_ptr(), version_of(x), x.shape) for x in tensors] and all(
            torch.equal(sample, _sample(x)) for sample, x in zip(self._samples, tensors, strict=True)
        )


def _sample(x: Tensor) -> Tensor:
    flat = x.detach().flatten()  # a view: weights are dense
    return flat[:: max(1, flat.numel() // _SAMPLES)]


class Packed:
    """The layouts of one weight, made when first used and dropped when the weight changes."""

    def __init__(self) -> None:
        self._made_of: Fingerprint | None = None
        self._layouts: dict[Hashable, Tensor] = {}

    def get(self, weight: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the layout ``key`` of ``weight``, by ``make()`` if there is none yet."""
        if self._made_of is None or not self._made_of.matches(weight):
            self._made_of, self._layouts = Fingerprint(weight), {}
        if key not in self._layouts:
            self._layouts[key] = make()
        return self._layouts[key]

    def nbytes(self) -> int:
        """Bytes that the layouts take."""
        return sum(layout.numel() * layout.element_size() for layout in self._layouts.values())
