"""Argument checks that operators share. A message names the argument, what was expected, what came."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from thawkit.errors import ThawkitError
from thawkit.ops._library import holds_numbers

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def floating(name: str, x: Tensor) -> None:
    """Require a float32, float64, bfloat16 or float16 tensor."""
    if not isinstance(x, Tensor):
        raise ThawkitError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise ThawkitError(f"{name} must be float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.layout != torch.strided:
        raise ThawkitError(f"{name} must be a dense tensor, got layout {x.layout}")


def matrix(name: str, x: Tensor) -> None:
    """Require a floating tensor of two dimensions."""
    floating(name, x)
    if x.dim() != 2:
        raise ThawkitError(f"{name} must have shape (rows, features), got {tuple(x.shape)}")


def same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require both tensors on one device."""
    if x.device != other.device:
        raise ThawkitError(f"{name} is on {x.device} but {other_name} is on {other.device}")


def same_features(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require the same number of columns."""
    if x.shape[1] != other.shape[1]:
        raise ThawkitError(
            f"{name} and {other_name} must have the same number of features, "
            f"got {x.shape[1]} and {other.shape[1]}"
        )


def row_pair(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require two floating matrices of one device, dtype and number of columns."""
    matrix(name, x)
    matrix(other_name, other)
    same_device(other_name, other, name, x)
    same_features(name, x, other_name, other)
    if x.dtype != other.dtype:
        raise ThawkitError(
            f"{name} and {other_name} must have the same dtype, got {x.dtype} and {other.dtype}"
        )


def one_number(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """Return a finite number, or a tensor of one, as a scalar tensor on the device of ``like``."""
    scalar(name, value)
    if isinstance(value, Tensor):
        return value.reshape(()).to(like.device)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if dtype == torch.float32 and not -_LARGEST_FLOAT32 <= value <= _LARGEST_FLOAT32:
        raise ThawkitError(f"{name} must be a finite number of float32, got {value}")
    return torch.full((), float(value), dtype=dtype, device=like.device)


def finite(name: str, value: float) -> None:
    """Require a finite number."""
    number(name, value)
    if not -_LARGEST <= (value if isinstance(value, int) else float(value)) <= _LARGEST:
        raise ThawkitError(f"{name} must be finite, got {value}")


_LARGEST_FLOAT32 = torch.finfo(torch.float32).max
_LARGEST = (
    sys.float_info.max
)  # compared with, as torch.compile does not trace math.isfinite of what may change


def number(name: str, value: float) -> None:
    """Require a Python number, or what converts to one."""
    if isinstance(value, int | float):
        return
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ThawkitError(f"{name} must be a number, got {type(value).__name__}") from None


def integer(name: str, value: int, least: int | None = None) -> None:
    """Require an integer, of at least ``least``."""
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool | Tensor)
    if not is_integer or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ThawkitError(f"{name} must be an integer{bound}, got {value!r}")


def boolean(name: str, value: bool) -> None:
    """Require True or False."""
    if not isinstance(value, bool):
        raise ThawkitError(f"{name} must be True or False, got {value!r}")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Require one of a few names."""
    if value not in choices:
        raise ThawkitError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


REDUCTIONS = ("none", "mean", "sum")


def reduced(name: str, rows: int, reduction: str, choices: tuple[str, ...] = REDUCTIONS) -> None:
    """Require a known reduction, and something to take the mean of."""
    one_of("reduction", reduction, choices)
    if reduction.startswith("mean") and rows == 0:
        raise ThawkitError(f"{name} has no rows, and reduction={reduction!r} divides by their number")


def scalar(name: str, value: Tensor | float) -> None:
    """Require a finite number, or a floating tensor of one (looked at where that takes no waiting)."""
    if not isinstance(value, Tensor):
        finite(name, value)
        return
    _one_element(name, value)
    if readable(value) and not math.isfinite(value.detach().item()):
        raise ThawkitError(f"{name} must be finite, got {value.detach().item()}")


def _one_element(name: str, value: Tensor) -> None:
    floating(name, value)
    if value.numel() != 1:
        raise ThawkitError(f"{name} must have one element, got shape {tuple(value.shape)}")


def not_negative(name: str, x: Tensor) -> None:
    """Require finite numbers of at least 0, where looking takes no waiting."""
    if readable(x) and not bool(((x >= 0) & x.isfinite()).all()):
        raise ThawkitError(f"{name} must hold finite numbers of at least 0 only")


def positive_scalar(name: str, value: Tensor | float) -> None:
    """Require a positive number, or a floating tensor of one, finite in float32 as is its inverse."""
    if isinstance(value, Tensor):
        _one_element(name, value)
        if not readable(value):
            return
        value = value.detach().item()
    number(name, value)
    if not 0 < value <= _LARGEST:
        raise ThawkitError(f"{name} must be positive and finite, got {value}")
    if value < 1 / _LARGEST_FLOAT32:
        raise ThawkitError(
            f"{name} must be at least {1 / _LARGEST_FLOAT32:.3g}, for a finite inverse, got {value}"
        )


def readable(x: Tensor) -> bool:
    """Return whether a check may look at values: not in a traced graph, nor where the device would wait."""
    return x.is_cpu and holds_numbers(x)


def twin(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require a floating matrix of the shape, dtype and device of another one."""
    matrix(name, x)
    same_device(name, x, other_name, other)
    if x.shape != other.shape:
        raise ThawkitError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(x.shape)}"
        )
    if x.dtype != other.dtype:
        raise ThawkitError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {x.dtype}")


def labels(name: str, x: Tensor, rows_name: str, rows: Tensor) -> None:
    """Require a tensor of integers, one for each row of a matrix."""
    if not isinstance(x, Tensor):
        raise ThawkitError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.is_floating_point() or x.is_complex():
        raise ThawkitError(f"{name} must hold integers, got {x.dtype}")
    if x.shape != rows.shape[:1]:
        raise ThawkitError(
            f"{name} must have shape ({rows.shape[0]},), one label a row of {rows_name}, got {tuple(x.shape)}"
        )
    same_device(name, x, rows_name, rows)
