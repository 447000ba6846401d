"""What a freeze report says in words beside its numbers."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawkit.errors import ThawkitWarning
from thawkit.frozen.layers import FrozenBatchNorm
from thawkit.frozen.reach import unreached
from thawkit.frozen.table import listed
from thawkit.ops.frozen.packed import Fingerprint, has_plain_values


def complex_parameters(model: nn.Module, selected: set[str]) -> list[str]:
    """Say which of the selected parameters are complex, and stay frozen therefore."""
    names = [name for name, p in model.named_parameters() if name in selected and p.is_complex()]
    if not names:
        return []
    return [f"complex parameters stay frozen: {listed(names, 3)}"]


def unreached_parameters(model: nn.Module, outputs: list[Any]) -> list[str]:
    """Say which trainable parameters get no gradient; warn if none does."""
    names = unreached(model, outputs)
    if not names:
        return []
    if len(names) == sum(p.requires_grad for p in model.parameters()):
        warnings.warn(
            "thawkit.freeze: no gradient reaches anything that trains, so training would do nothing: the "
            "output does not depend on it, or the model's forward runs without gradients",
            ThawkitWarning,
            stacklevel=4,
        )
    return [f"no gradient reaches {listed(names, 3)}"]


def parameters_as_they_are(model: nn.Module) -> dict[str, Fingerprint]:
    """What tells later which parameters were written to, by name."""
    return {name: Fingerprint(p) for name, p in model.named_parameters() if has_plain_values(p)}


def parameters_written_to(model: nn.Module, before: dict[str, Fingerprint], example: str) -> list[str]:
    """Say which parameters the model itself has written to while it was measured; warn if it has."""
    now = dict(model.named_parameters())
    names = [name for name, known in before.items() if name in now and not known.matches(now[name])]
    if not names:
        return []
    note = (
        f"the model wrote to its own parameters when it was {example}: {listed(names, 3)}; if it initializes "
        "itself by the first batch, load its weights again, run it on real data, then freeze it"
    )
    warnings.warn(f"thawkit.freeze: {note}", ThawkitWarning, stacklevel=4)
    return [note]


def _going_by_the_batch(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not isinstance(module, FrozenBatchNorm)
    ]


def by_the_batch(model: nn.Module) -> list[str]:
    """Say which batch normalizations among what trains go by the batch in training."""
    names = _going_by_the_batch(model)
    if not names:
        return []
    return [
        f"{len(names)} batch normalizations go by the batch in training, which saves their input and moves "
        f"their statistics: {listed(names, 3)}"
    ]


def moving(model: nn.Module, moved: set[str]) -> list[str]:
    """Say which buffers a step changes although no layer that goes by the batch is said to."""
    said = set(_going_by_the_batch(model))
    names = sorted(name for name in moved if name.rpartition(".")[0] not in said)
    if not names:
        return []
    return [
        f"{len(names)} buffers, as statistics, move in training by the model's own code: {listed(names, 3)}"
    ]
