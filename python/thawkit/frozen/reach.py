"""Which parameters the gradient of a forward pass reaches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def unreached(model: nn.Module, outputs: Iterable[Any]) -> list[str] | None:
    """Name the trainable parameters that no gradient reaches from ``outputs``.

    Args:
        model: that computed them with gradients recorded.
        outputs: tensors; what is none is passed over.

    Returns:
        Names in registration order; None where it cannot be told: without tensors among the outputs, or with
        activation checkpointing of the reentrant kind, whose graph is not there yet.
    """
    tensors = [output for output in outputs if isinstance(output, Tensor)]
    if not tensors:
        return None
    reached = {id(tensor) for tensor in tensors}
    queue = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(queue)
    while queue:
        node = queue.pop()
        if node.name().startswith("CheckpointFunction"):
            return None
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in reached]
