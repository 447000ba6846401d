"""Lossy: how near the gradient from rounded activations is to the exact one, measured before training."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thawkit.errors import ThawkitWarning
from thawkit.frozen.lossy_layers import exactly
from thawkit.frozen.measure import Example, trial
from thawkit.ops.frozen.lossy import bits_of

_NAMED = 6  # how many layers the report names
_LEAST = 0.99  # below it the gradient points elsewhere often enough to warn


@dataclass(frozen=True)
class Fidelity:
    """What rounding saved activations does to the gradient on the example.

    The loss is a random projection of the model's output, the same for both gradients, as are the dropout
    masks.

    Attributes:
        act_bits: as given to :func:`thawkit.freeze`.
        cosine: of the angle between the exact and the lossy gradient in all that trains; None: not measured.
        layers: names of the modules that hold trainable parameters, and the cosine in them, least first.
    """

    act_bits: int
    cosine: float | None
    layers: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        bits = bits_of(self.act_bits)
        lines = [
            f"lossy: act_bits={self.act_bits} rounds derivatives of activations to {bits.derivative} bits, "
            f"inputs of weights and normalizations to {bits.input}"
        ]
        if self.cosine is None:
            return f"{lines[0]}\nlossy gradient against the exact one: not measured; pass example= to measure"
        lines.append(
            f"lossy gradient against the exact one, of a random projection of the output on the example: "
            f"cosine {_number(self.cosine)}"
        )
        if self.layers:
            named = ", ".join(f"{name} {_number(cosine)}" for name, cosine in self.layers[:_NAMED])
            lines.append(f"largest deviations: {named}")
        return "\n".join(lines)


def _number(cosine: float) -> str:
    return f"{cosine:.4f}" if not cosine > 0.9995 else f"{cosine:.6f}"


def measure_fidelity(
    model: nn.Module, act_bits: int, example: Example | None, evaluating: Set[nn.Module]
) -> Fidelity:
    """Compare both gradients of a lossy model; warn where they are far from each other.

    Args:
        model: frozen with ``act_bits``; modes, buffers, random state and ``grad`` stay as they are.
        act_bits: for the record.
        example: what to measure on; None: do not.
        evaluating: the modules to hold in evaluation mode; all others train.
    """
    if example is None:
        return Fidelity(act_bits, None)
    with exactly():
        exact = _gradients(model, example, evaluating)
    lossy = _gradients(model, example, evaluating)
    if exact is None or lossy is None:
        return Fidelity(act_bits, None)
    by_module: dict[str, list[str]] = defaultdict(list)
    for name in exact:
        by_module[name.rpartition(".")[0] or type(model).__name__].append(name)
    layers = [
        (module, _cosine([(exact[name], lossy[name]) for name in names]))
        for module, names in by_module.items()
    ]
    cosine = _cosine([(exact[name], lossy[name]) for name in exact])
    if not cosine >= _LEAST:
        warnings.warn(
            f"thawkit.freeze: with act_bits={act_bits} the gradient's cosine to the exact one is "
            f"{_number(cosine)} on the example, below {_LEAST}: this lossy setting may train worse",
            ThawkitWarning,
            stacklevel=5,
        )
    return Fidelity(act_bits, cosine, tuple(sorted(layers, key=lambda layer: (layer[1] >= -1, layer[1]))))


def _gradients(model: nn.Module, example: Example, evaluating: Set[nn.Module]) -> dict[str, Tensor] | None:
    """Gradients by parameter name; None if nothing that trains gets one, or checkpointing hides them."""
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with trial(model, example, evaluating) as output:
        results = [y for y in tree_leaves(output) if isinstance(y, Tensor) and y.requires_grad]
        if not results or not trains:
            return None
        losses = [(y * _projection(y)).sum() for y in results]
        try:
            found = torch.autograd.grad(losses, list(trains.values()), allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" in str(error).lower():  # the reentrant kind takes backward() only
                return None
            raise
    return {name: g for name, g in zip(trains, found, strict=True) if g is not None}


def _projection(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)


def _cosine(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Of the angle between both sides, all tensors of a side being one vector; 1 where both are 0."""
    dot = a = b = 0.0
    for exact, lossy in pairs:
        exact, lossy = exact.double(), lossy.double()
        dot += float((exact * lossy).sum())
        a += float(exact.square().sum())
        b += float(lossy.square().sum())
    if a == 0.0 and b == 0.0:
        return 1.0
    return dot / math.sqrt(a * b) if a * b > 0 or math.isnan(a * b) else 0.0
