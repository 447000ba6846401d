"""What kernels keep of a weight that is frozen, as long as it stays what it was."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_SAMPLES = 64
_LAYOUTS = 8  # kept at once: inputs of many lengths each have their own
_FEW_USES = 8  # of a layout: what it took to make is not won back
_PATIENCE = 3  # layouts in a row of few uses before no more are made


def version_of(x: Tensor) -> int:
    """How often ``x`` was written to; 0 for tensors of inference mode, which do not count."""
    return 0 if x.is_inference() else x._version


class Fingerprint:
    """Tells whether tensors changed: their memory, their version counters, and a sample of their values.

    The sample is for writes that go through ``.data``, which count no version. The memory is held, so that
    no other tensor can be given the same in the meantime.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._marks = [_mark(x) for x in tensors]
        self._samples = [sample(x) for x in tensors]
        self._held = [x.untyped_storage() for x in tensors]

    def matches(self, *tensors: Tensor) -> bool:
        """Whether the tensors are what they were."""
        return self._marks == [_mark(x) for x in tensors] and all(
            torch.equal(before, sample(x)) for before, x in zip(self._samples, tensors, strict=True)
        )


def has_plain_values(x: Tensor) -> bool:
    """Whether a :class:`Fingerprint` can be taken of a parameter: dense, on the CPU, of no class of its own.

    On a GPU whoever compares would wait for it.
    """
    return type(x) is nn.Parameter and x.layout == torch.strided and x.device.type == "cpu"


def _mark(x: Tensor) -> tuple[Any, ...]:
    return x.data_ptr(), version_of(x), x.shape, x.stride(), x.dtype


def sample(x: Tensor) -> Tensor:
    """Some of the values of ``x``, as bytes: of each dimension up to 64 every index is among them.

    As a byte NaN equals itself.
    """
    if not x.numel():
        return x.detach().flatten()
    places, span = _places(x.shape, x.stride(), x.device)
    return x.detach().as_strided((span,), (1,)).index_select(0, places).view(torch.uint8)


@functools.lru_cache(4096)
def _places(shape: torch.Size, stride: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Where the sampled values lie, and how far apart the first and the last value are, that one included."""
    with torch.inference_mode(False):
        number = torch.arange(_SAMPLES)
        places = torch.zeros_like(number)
        for size, step in zip(shape, stride, strict=True):
            places += number * _prime_to(size) % size * step
        return places.to(device), 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _prime_to(size: int) -> int:
    """A step that spreads the samples over ``size`` places, and meets all where they are few."""
    step = max(1, size // _SAMPLES)
    while math.gcd(step, size) > 1:
        step += 1
    return step


class Packed:
    """The layouts of one weight, made when first used and dropped when the weight changes, or others are.

    Attributes:
        given_up: nothing is kept: nobody wants it to be (:func:`keep_none`), or the weight changed again and
            again after few uses, as where it is gathered anew for each forward.
    """

    def __init__(self, given_up: bool = False) -> None:
        self.given_up = given_up
        self._made_of: Fingerprint | None = None
        self._layouts: dict[Hashable, Tensor] = {}
        self._uses = self._in_a_row = 0

    def get(self, weight: Tensor | tuple[Tensor, ...], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the layout ``key`` of ``weight``, by ``make()`` if there is none yet.

        Of several tensors ``make`` computes a weight; one object must always be asked for the same ones.
        """
        if self.given_up:
            return make()
        parts = weight if isinstance(weight, tuple) else (weight,)
        if self._made_of is None or not self._made_of.matches(*parts):
            if self._made_of is not None:
                self._in_a_row = self._in_a_row + 1 if self._uses < _FEW_USES else 0
            self._layouts, self._uses = {}, 0
            if self._in_a_row == _PATIENCE:
                self.given_up, self._made_of = True, None
                return make()
            self._made_of = Fingerprint(*parts)
        self._uses += 1
        layout = self._layouts.pop(key, None)
        if layout is None:
            while len(self._layouts) >= _LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            layout = make()
        self._layouts[key] = layout  # the last of them in order: the one used last
        return layout

    def holds(self, key: Hashable) -> bool:
        """Whether there is such a layout, be it of a weight that has changed."""
        return key in self._layouts

    def nbytes(self) -> int:
        """Bytes that the layouts take."""
        return sum(layout.numel() * layout.element_size() for layout in self._layouts.values())


_KEEPS_NONE = "_thawkit_keeps_no_layouts"  # set on modules, so that copies of them keep none either

# Beside the modules, so that no copy or pickle of one takes them along.
_PACKED: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()


def packed_of(module: nn.Module) -> Packed:
    """The layouts of the frozen weight of ``module``, none at first."""
    packed = _PACKED.get(module)
    if packed is None:
        packed = _PACKED[module] = Packed(given_up=keeps_none(module))
    return packed


def keep_none(module: nn.Module, none: bool = True) -> None:
    """Say whether layouts of a module's frozen weight are made anew at each use, and dropped."""
    if none:
        vars(module)[_KEEPS_NONE] = True
    else:
        vars(module).pop(_KEEPS_NONE, None)


def keeps_none(module: nn.Module) -> bool:
    """Whether :func:`keep_none` said so."""
    return _KEEPS_NONE in vars(module)


def packed_bytes(module: nn.Module) -> int:
    """Bytes that the layouts of a module's frozen weight take."""
    return packed_of(module).nbytes() if module in _PACKED else 0


def forget(module: nn.Module) -> None:
    """Drop the layouts of a module's frozen weight."""
    _PACKED.pop(module, None)
