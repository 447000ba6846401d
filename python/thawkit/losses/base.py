"""What loss modules have in common."""

from __future__ import annotations

from torch import nn


class Loss(nn.Module):
    """A module whose representation names its options."""

    def extra_repr(self) -> str:
        """Return the options that are given: numbers, names and switches."""
        hidden = {"training", "group"}
        options = {n: x for n, x in vars(self).items() if x is not None and n[0] != "_" and n not in hidden}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())
