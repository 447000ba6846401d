"""The classifier head of any network: find it, replace it, and see what goes into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from thawkit.errors import ThawkitError


def head(module: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and the module of the last linear layer, the one that gives the logits.

    A timm model says itself which it is (``get_classifier``); elsewhere it is the one registered last.

    Raises:
        ThawkitError: the network has no linear layer, or ends in several heads at once.
    """
    scope = module
    get_classifier = getattr(module, "get_classifier", None)
    if callable(get_classifier):
        scope = get_classifier()
        if not isinstance(scope, nn.Module):
            raise ThawkitError(f"{type(module).__name__} has several heads; one linear head is needed")
    names = {id(child): name for name, child in module.named_modules()}
    linears = [child for child in scope.modules() if isinstance(child, nn.Linear) and id(child) in names]
    if not linears:
        raise ThawkitError(f"{type(module).__name__} has no linear layer that could be its classifier head")
    return names[id(linears[-1])], linears[-1]


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
