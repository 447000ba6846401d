"""What trains: from a policy's words to parameter names.

==========================  =============================================================================
``head``                    the classifier's last layer (in 🤗 models everything outside the pretrained
                            base), or all of a small network in its place: ``model.fc = Sequential(...)``
``last:K``                  the last K blocks and everything after them: final norm or convolution, and the
                            head
``norm``                    scale and shift of every normalization layer, and the head
``bias``                    every bias (a normalization's shift is one), and the head
``bitfit``                  the same as ``bias``, by the name that its paper gave it (Ben Zaken et al. 2021)
``all``                     every parameter
``surgical:WHICH``          one third of the blocks, ``first``, ``middle`` or ``last``, and the head (surgical
                            fine-tuning, Lee et al. 2022); what is no block, as a stem, stays frozen
``lisa:K[:SEED]``           K blocks, drawn for each epoch by :func:`~thawkit.frozen.set_epoch`, and what
                            lies outside the blocks: embeddings, final norm, head (Pan et al. 2024)
``channels:FRACTION``       that share of the input channels of every linear and convolutional weight, evenly
                            spaced, and the head; ``channels:0.25:out`` output channels,
                            ``channels:0.25:norm`` those of largest norm (:mod:`thawkit.frozen.channels`)
``lora:R``, ``lora-fa:R``   adapters of rank R on every linear and convolutional layer, and the head
                            (:mod:`thawkit.frozen.lora`)
a glob                      the parameters whose name matches, and nothing else: ``layer4.*``,
                            ``*.bn?.weight``
a function                  ``train(name, parameter)``: the parameters for which it is true, and nothing else
==========================  =============================================================================

Parts joined by ``+``, or in a list, train together: ``last:2+norm``, ``["lora:8", is_positional]``. The named
policies include the head, because the head of a transferred model is new; a glob means exactly what it says
(``*`` matches dots too), so the biases alone are ``*.bias``. ``channels`` and ``lora`` take a glob on module
names at their end, ``lora:8:*attn*``; where another part trains the weight of a layer, it trains whole.
"""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from thawkit.errors import ThawkitError
from thawkit.frozen import channels, lora
from thawkit.frozen.channels import Channels, Choice
from thawkit.frozen.extension import extendable, extra_parameters, passed_over
from thawkit.frozen.lora import Lora
from thawkit.frozen.structure import (
    beside_head,
    find_blocks,
    find_head,
    head_parts,
    is_like_norm,
    is_norm_layer,
    within,
)
from thawkit.frozen.table import listed

Predicate = Callable[[str, nn.Parameter], bool]
Part = str | Predicate | Lora | Channels
Policy = Part | Sequence[Part]

_EXPECTED = (
    "expected head, last:K, norm, bias, all, bitfit, surgical:first|middle|last, lisa:K, channels:FRACTION, "
    "lora:R, lora-fa:R, or a glob on parameter names such as 'layer4.*', joined by '+'"
)
_THIRDS = ("first", "middle", "last")
_NAMED = 3  # how many layers a note names


@dataclass(frozen=True)
class Draw:
    """Blocks to be drawn for an epoch: the same ones in every run with the same seed.

    Attributes:
        count: how many train.
        seed: of the draw.
        blocks: names of the blocks, and of the parameters of each.
    """

    count: int
    seed: int
    blocks: tuple[tuple[str, frozenset[str]], ...]

    def at(self, epoch: int) -> list[tuple[str, frozenset[str]]]:
        """Those that train in an epoch."""
        return sorted(random.Random(f"{self.seed}:{epoch}").sample(self.blocks, self.count))


@dataclass
class Plan:
    """What a policy comes to in one model.

    Attributes:
        words: the policy.
        names: the parameters that train whole.
        channels: the channels that train, by the name of the layer.
        lora: the adapters, by the name of the layer.
        notes: what the policy does not reach, in words.
        draws: what else trains, by epoch.
    """

    words: str
    names: set[str] = field(default_factory=set)
    channels: dict[str, Choice] = field(default_factory=dict)
    lora: dict[str, Lora] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)

    def at(self, epoch: int) -> Plan:
        """The plan of an epoch, in which nothing is left to draw; what trains whole is not extended."""
        drawn = [block for draw in self.draws for block in draw.at(epoch)]
        names = self.names.union(*(own for _, own in drawn))
        words = [f"drawn for epoch {epoch}: {', '.join(name for name, _ in drawn)}"] if drawn else []
        channels = {name: how for name, how in self.channels.items() if f"{name}.weight" not in names}
        lora = {name: how for name, how in self.lora.items() if f"{name}.weight" not in names}
        return replace(self, names=names, channels=channels, lora=lora, notes=self.notes + words, draws=[])


def make_plan(model: nn.Module, train: Policy) -> Plan:
    """Resolve a policy.

    Args:
        model: may be frozen; its own parameters count, not what thawkit added. Parameters go by every name of
            ``named_parameters``, both names of a tied one.
        train: the policy.

    Raises:
        ThawkitError: the policy is not one, matches nothing, or there are fewer blocks than it needs; the
            message lists what exists.
    """
    parts = [train] if isinstance(train, str) or not isinstance(train, Sequence) else list(train)
    if not parts:
        raise ThawkitError(f"train: {_EXPECTED}, got an empty list")
    plan = Plan(_words(parts))
    for part in parts:
        if isinstance(part, str):
            for word in part.split("+"):
                _resolve(model, word.strip(), train, plan)
        elif isinstance(part, (Lora, Channels)):
            _extend(model, part, plan)
        elif callable(part):
            plan.names |= {name for name, p in _parameters(model).items() if part(name, p)}
        else:
            raise ThawkitError(f"train: {_EXPECTED}, or a function of name and parameter, got {part!r}")
    for extensions in (plan.channels, plan.lora):
        for name in [name for name in extensions if f"{name}.weight" in plan.names]:
            del extensions[name]
    plan.notes += _frozen_beside_head(model, plan)
    both = plan.channels.keys() & plan.lora.keys()
    if both:
        raise ThawkitError(
            f"train: {plan.words!r} asks for channels and adapters of {min(both)!r}: choose one"
        )
    if not (plan.names or plan.channels or plan.lora or plan.draws):
        names = parameter_names(model)
        raise ThawkitError(
            f"train: {plan.words!r} selects none of the {len(names)} parameters"
            + (f", which are named like {names[0]!r} and {names[-1]!r}" if names else "")
        )
    return plan


def _frozen_beside_head(model: nn.Module, plan: Plan) -> list[str]:
    """Say which layers of a network of several, of which the last trains as the head, stay frozen."""
    reached = plan.names | {f"{name}.weight" for name in (*plan.channels, *plan.lora)}
    left = [name for name in beside_head(model) if f"{name}.weight" not in reached]
    if not left or not _head(model, parameter_names(model)) <= plan.names:
        return []
    return [
        f"the head is its last layer alone, and the weights of {listed(left, _NAMED)} before it stay frozen; "
        f"if they are new, let {left[0].partition('.')[0] + '.*'!r} train as well"
    ]


def trainable_names(model: nn.Module, train: Policy) -> set[str]:
    """Names of the parameters that train whole at the start; errors as :func:`make_plan`."""
    return make_plan(model, train).at(0).names


def parameter_names(model: nn.Module) -> list[str]:
    """Every name of every parameter of the model's own, in registration order."""
    return list(_parameters(model))


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    extras = extra_parameters(model)
    return {n: p for n, p in model.named_parameters(remove_duplicate=False) if n not in extras}


def _words(parts: Sequence[Part]) -> str:
    """The policy as a person would write it; a function goes by its name."""
    return "+".join(
        str(part) if isinstance(part, (str, Lora, Channels)) else getattr(part, "__name__", repr(part))
        for part in parts
    )


def _resolve(model: nn.Module, part: str, train: Policy, plan: Plan) -> None:
    names = parameter_names(model)
    word, colon, argument = part.partition(":")
    if part == "all":
        plan.names |= set(names)
    elif part == "head":
        plan.names |= _head(model, names)
    elif part == "norm":
        plan.names |= _head(model, names) | _norms(model)
        like = [name for name, module in model.named_modules() if is_like_norm(name, module)]
        if like := [name for name in like if not within(name, head_parts(model))]:
            plan.notes.append(f"norm does not reach {listed(like, _NAMED)}: not known to be normalizations")
    elif part in ("bias", "bitfit"):
        plan.names |= _head(model, names) | {name for name in names if _is_bias(name)}
    elif colon and word == "last":
        plan.names |= _head(model, names) | _last(model, part, names)
    elif colon and word == "surgical":
        plan.names |= _head(model, names) | _third(model, part, argument, names)
    elif colon and word == "lisa":
        _lisa(model, part, argument, names, plan)
    elif colon and word == "channels":
        plan.names |= _head(model, names)
        _extend(model, _parse_channels(part, argument), plan)
    elif colon and word in ("lora", "lora-fa"):
        plan.names |= _head(model, names)
        _extend(model, _parse_lora(part, argument, train_a=word == "lora"), plan)
    else:
        matches = set(fnmatch.filter(names, part)) if part else set()
        if not matches:
            raise _no_match(part, train, names)
        plan.names |= matches


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
    blocks = _blocks(model, part)
    count = part.removeprefix("last:")
    if not count.isdecimal() or not 1 <= int(count) <= len(blocks):
        raise ThawkitError(
            f"train: expected last:K with K from 1 to {len(blocks)}, got {part!r} ({_listing(model, blocks)})"
        )
    first = blocks[-int(count)]
    modules = [name for name, _ in model.named_modules()]
    from_here = set(modules[modules.index(first) :])
    return {name for name in names if name.rpartition(".")[0] in from_here}


def _third(model: nn.Module, part: str, which: str, names: list[str]) -> set[str]:
    blocks = find_blocks(model)
    if which not in _THIRDS or len(blocks) < len(_THIRDS):
        raise ThawkitError(
            f"train: expected surgical:first, surgical:middle or surgical:last and at least 3 blocks, got "
            f"{part!r} ({_listing(model, blocks)})"
        )
    index = _THIRDS.index(which)
    chosen = blocks[index * len(blocks) // 3 : (index + 1) * len(blocks) // 3]
    return {name for name in names if within(name, chosen)}


def _lisa(model: nn.Module, part: str, argument: str, names: list[str], plan: Plan) -> None:
    blocks = _blocks(model, part)
    count, colon, seed = argument.partition(":")
    numbers = count.isdecimal() and (seed.isdecimal() or not colon)
    if not numbers or not 1 <= int(count) <= len(blocks):
        raise ThawkitError(
            f"train: expected lisa:K or lisa:K:SEED with K from 1 to {len(blocks)} and an integer SEED, got "
            f"{part!r} ({_listing(model, blocks)})"
        )
    plan.names |= _head(model, names) | {name for name in names if not within(name, blocks)}
    own = tuple((block, frozenset(name for name in names if within(name, [block]))) for block in blocks)
    plan.draws.append(Draw(int(count), int(seed or 0), own))


def _blocks(model: nn.Module, part: str) -> list[str]:
    blocks = find_blocks(model)
    if not blocks:
        raise ThawkitError(
            f"train: expected a policy that counts no blocks, got {part!r} ({_listing(model, blocks)})"
        )
    return blocks


def _listing(model: nn.Module, blocks: list[str]) -> str:
    ends = f", {blocks[0]} to {blocks[-1]}" if blocks else ""
    return f"{type(model).__name__} has {len(blocks)} blocks{ends}"


def _parse_channels(part: str, argument: str) -> Channels:
    fraction, *rest = argument.split(":")
    dim = rest.pop(0) if rest and rest[0] in ("in", "out") else "in"
    by = rest.pop(0) if rest and rest[0] in ("even", "norm") else "even"
    pattern = rest.pop(0) if rest else "*"
    try:
        if not rest:
            return Channels(float(fraction), dim, by, pattern)
    except (ValueError, ThawkitError):
        pass
    raise ThawkitError(
        "train: expected channels:FRACTION[:in|out][:even|norm][:MODULES] with a FRACTION between 0 and 1, "
        f"got {part!r}"
    )


def _parse_lora(part: str, argument: str, train_a: bool) -> Lora:
    rank, _, pattern = argument.partition(":")
    if not rank.isdecimal() or int(rank) < 1:
        raise ThawkitError(f"train: expected lora:R[:MODULES] with a rank R of at least 1, got {part!r}")
    return Lora(int(rank), modules=pattern or "*", train_a=train_a)


def _extend(model: nn.Module, settings: Lora | Channels, plan: Plan) -> None:
    layers = extendable(model, settings.modules, str(settings))
    if isinstance(settings, Lora):
        layers = lora.adaptable(layers)
        plan.lora |= dict.fromkeys(layers, settings)
    else:
        for name, module in layers.items():
            choice = channels.choose(module, settings)
            if choice is None:
                plan.names.add(f"{name}.weight" if name else "weight")
            else:
                plan.channels[name] = choice
    left = passed_over(model, set(layers), settings.modules)
    if left:
        plan.notes.append(f"{settings} does not reach {listed(left, _NAMED)}")


def _no_match(part: str, train: Policy, names: list[str]) -> ThawkitError:
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
