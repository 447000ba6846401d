"""What trains: from a policy's words to parameter names.

==================  =====================================================================================
``head``            the classifier's last layer (in 🤗 models everything outside the pretrained base)
``last:K``          the last K blocks and everything after them: final norm or convolution, and the head
``norm``            scale and shift of every normalization layer, and the head
``bias``            every bias (a normalization's shift is one), and the head
``all``             every parameter
a glob              the parameters whose name matches, and nothing else: ``layer4.*``, ``*.bn?.weight``
==================  =====================================================================================

Parts joined by ``+`` train together: ``last:2+norm``. The named policies include the head, because the head
of a transferred model is new; a glob means exactly what it says (``*`` matches dots too), so the biases
alone are ``*.bias``.
"""

from __future__ import annotations

import fnmatch

from torch import nn

from thawkit.errors import ThawkitError
from thawkit.frozen.structure import find_blocks, find_head, head_parts, is_norm_layer, within

_EXPECTED = (
    "expected head, last:K, norm, bias, all, or a glob on parameter names such as 'layer4.*', joined by '+'"
)


def trainable_names(model: nn.Module, train: str) -> set[str]:
    """Resolve a policy to the names of the parameters that train.

    Args:
        model: names come from its ``named_parameters``, both names of a tied one.
        train: the policy, e.g. ``"last:2+norm"``.

    Raises:
        ThawkitError: the policy is not one, a glob matches nothing, or there are fewer than K blocks; the
            message lists what exists.
    """
    if not isinstance(train, str) or not train.strip():
        raise ThawkitError(f"train: {_EXPECTED}, got {train!r}")
    selected: set[str] = set()
    for part in train.split("+"):
        selected |= _resolve(model, part.strip(), train)
    return selected


def parameter_names(model: nn.Module) -> list[str]:
    """Every name of every parameter, in registration order."""
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


def _resolve(model: nn.Module, part: str, train: str) -> set[str]:
    names = parameter_names(model)
    if part == "all":
        return set(names)
    if part == "head":
        return _head(model, names)
    if part == "norm":
        return _head(model, names) | _norms(model)
    if part == "bias":
        return _head(model, names) | {name for name in names if _is_bias(name)}
    if part.startswith("last:"):
        return _head(model, names) | _last(model, part, names)
    matches = set(fnmatch.filter(names, part)) if part else set()
    if not matches:
        raise _no_match(part, train, names)
    return matches


def _head(model: nn.Module, names: list[str]) -> set[str]:
    find_head(model)  # raises where there is none
    parts = head_parts(model)
    return {name for name in names if within(name, parts)}


def _norms(model: nn.Module) -> set[str]:
    return {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules(remove_duplicate=False)
        if is_norm_layer(module)
        for own, _ in module.named_parameters(recurse=False)
    }


def _is_bias(name: str) -> bool:
    """``bias``, and the biases that attention layers keep apart: ``in_proj_bias``, ``q_bias``."""
    return name.rsplit(".", 1)[-1].endswith("bias")


def _last(model: nn.Module, part: str, names: list[str]) -> set[str]:
    blocks = find_blocks(model)
    count = part.removeprefix("last:")
    listing = f"{type(model).__name__} has {len(blocks)} blocks" + (
        f", {blocks[0]} to {blocks[-1]}" if blocks else ""
    )
    if not count.isdecimal() or not 1 <= int(count) <= len(blocks):
        raise ThawkitError(f"train: expected last:K with K from 1 to {len(blocks)}, got {part!r} ({listing})")
    first = blocks[-int(count)]
    modules = [name for name, _ in model.named_modules()]
    from_here = set(modules[modules.index(first) :])
    return {name for name in names if name.rpartition(".")[0] in from_here}


def _no_match(part: str, train: str, names: list[str]) -> ThawkitError:
    below = [name for name in names if name.startswith(part + ".")] if part else []
    if below:
        return ThawkitError(f"train: {part!r} is a module; for its parameters write {part + '.*'!r}")
    if set(part) & set("*?[."):
        tops = list(dict.fromkeys(name.split(".")[0] for name in names))
        return ThawkitError(
            f"train: the glob {part!r} matches no parameter of the {len(names)}, which are named like "
            f"{names[0]!r} and {names[-1]!r} (top level: {', '.join(tops[:12])})"
        )
    return ThawkitError(f"train: {_EXPECTED}; got {part!r} in {train!r}")
