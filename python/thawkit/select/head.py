"""The classifier head of any network: find it, replace it, and see what goes into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.frozen import find_head


def head(module: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and the module of the linear layer that gives the logits.

    It is the layer that the policy ``head`` of :func:`thawkit.freeze` trains.

    Raises:
        ThawkitError: the network has no head, several at once, or one that is not linear.
    """
    name, layer = find_head(module)
    get_classifier = getattr(module, "get_classifier", None)
    if callable(get_classifier) and isinstance(get_classifier(), (tuple, list)):
        raise ThawkitError(f"{type(module).__name__} has several heads; one linear head is needed")
    if not isinstance(layer, nn.Linear):
        raise ThawkitError(
            f"{type(module).__name__} ends in {type(layer).__name__} ({name}); a linear head is needed"
        )
    return name, layer


def replace_head(module: nn.Module, num_classes: int) -> None:
    """Put a new linear layer with ``num_classes`` outputs in place of the head, with a bias if it had one."""
    name, old = head(module)
    parent, _, attribute = name.rpartition(".")
    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    setattr(module.get_submodule(parent), attribute, new)


@contextmanager
def capture_features(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what goes into the head during the forward passes inside the ``with``.

    The list gets one tensor (N, in_features) a pass, attached to the graph.
    """
    captured: list[Tensor] = []
    handle = head(module)[1].register_forward_pre_hook(
        lambda _, inputs: captured.append(inputs[0].flatten(1))
    )
    try:
        yield captured
    finally:
        handle.remove()
