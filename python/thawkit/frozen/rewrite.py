"""Freezing a model in place, and thawing it again."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from thawkit.errors import ThawkitError, ThawkitWarning
from thawkit.frozen import (
    channels,
    functional,
    lora,
    lossy_layers,
    packs,
)
from thawkit.frozen.cache import FeatureCache
from thawkit.frozen.cut import NoCutError, find_cut
from thawkit.frozen.extension import (
    Extended,
    in_stock_form,
    leave_fast_paths,
    restore_fast_path,
)
from thawkit.frozen.fidelity import measure_fidelity
from thawkit.frozen.forecast import Forecaster
from thawkit.frozen.layers import FrozenBatchNorm, Rewritten
from thawkit.frozen.measure import (
    Example,
    ExampleError,
    guess_example,
    saved_by_module,
    tensors_of,
)
from thawkit.frozen.notes import (
    by_the_batch,
    complex_parameters,
    moving,
    parameters_as_they_are,
    parameters_written_to,
    unreached_parameters,
)
from thawkit.frozen.policy import Plan, parameter_names
from thawkit.frozen.report import FreezeReport, make_report
from thawkit.frozen.schedule import Schedule, Stages, make_stages
from thawkit.frozen.settle import evaluate, save_bits, settle_waiting, waiting_layers
from thawkit.frozen.structure import head_parts, within
from thawkit.frozen.swap import frozen_classes, swap, thawed_class
from thawkit.frozen.waste import Measured, measure
from thawkit.ops.frozen.lossy import bits_of
from thawkit.ops.frozen.packed import keep_none, keeps_none

_RECORD = "_thawkit_frozen"  # set on the frozen model: requires_grad of every parameter as it was
_EXACT = "_thawkit_exact"  # set on a model that need not be
_STAGES = "_thawkit_stages"  # set on a model of which other parts train by epoch


def freeze(
    model: nn.Module,
    train: Schedule = "head",
    *,
    example: Example | None = None,
    exact: bool = True,
    act_bits: int | None = None,
    copies: bool = True,
    cache: FeatureCache | str | Path | None = None,
) -> FreezeReport:
    """Let only part of a model train, and save no more for the backward pass than that part needs.

    Sets ``requires_grad`` on every parameter and swaps the classes of convolutions, batch normalizations,
    ReLUs and their like, pools and dropouts in place for ones that save less (:mod:`thawkit.frozen.layers`,
    ``activation_layers``, ``pool_layers``). Values, gradients and ``state_dict`` keys stay as they were
    (adapters add theirs). Freezing again plans anew from the original model, in which adapters have been
    merged.

    Batch normalizations keep their pretrained running statistics, also after ``model.train()`` and also
    where their scale and shift train: the statistics of a small data set are worse, and a frozen layer that
    keeps adapting is not frozen. Those inside a head that is new go on as usual, and so does the whole model
    where every parameter trains: ``all`` rewrites nothing.

    Args:
        model: trained elsewhere, with its new head in place.
        train: what trains, see :mod:`thawkit.frozen.policy`: ``head``, ``last:K``, ``norm``, ``bias``,
            ``all``, ``surgical:first``, ``lisa:2``, ``channels:0.25``, ``lora:8``, globs on parameter names,
            joined by ``+``; a function of a parameter's name and itself; :class:`Lora` or :class:`Channels`;
            a list of these; or a schedule of policies by epoch, ``{0: "head", 3: "last:2"}`` or
            ``head@0,last:2@3``, of which the first applies and :func:`set_epoch` the others.
        example: a batch to measure the saved bytes on, as the model takes it: a tensor, a tuple of
            arguments, or a mapping of keyword arguments. Without one, a model that starts with a 2-d
            convolution is measured on one blank image of the size it was built for.
        exact: False lets a clamp (ReLU, ReLU6) run inside oneDNN's convolution where no gradient is recorded,
            as in the frozen part below everything that trains, and in evaluation. That is faster, and hides
            NaN, which becomes one of the clamp's bounds.
        act_bits: lossy, if given: what must still be saved is rounded. Derivatives of smooth activations
            take 8, 4 or 2 bits, inputs of trainable convolutions and linear layers and of normalizations
            twice as many, at most 8. Values stay as they were; gradients come near them, and the report says
            how near on ``example``, at the cost of two backward passes.
        copies: whether frozen weights may be kept a second time, and a third for the backward pass, in the
            layouts that are fastest. False where memory is scarcer than time.
        cache: a folder, or settings with one, for the outputs of what comes before everything that trains.
            The report says where that ends, or why there is no such place, and ``report.cache`` makes of a
            data set one of features: ``report.cache.dataset(model, dataset)``.

    Returns:
        The report; print it.

    Raises:
        ThawkitError: ``train`` is no policy or selects nothing, ``act_bits`` is not 8, 4 or 2, ``model`` is
            part of a frozen model, has parameters without a shape yet, or fails on ``example``, on which
            nothing can be measured in inference mode. The model is then as it was, also if frozen.
    """
    if not isinstance(model, nn.Module):
        raise ThawkitError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if act_bits is not None:
        bits_of(act_bits)
    if cache is not None and not isinstance(cache, (FeatureCache, str, os.PathLike)):
        raise ThawkitError(f"cache: expected a FeatureCache or the path of a folder, got {cache!r}")
    unshaped = [name for name, x in chain(model.named_parameters(), model.named_buffers()) if is_lazy(x)]
    if unshaped:
        raise ThawkitError(
            f"model: {unshaped[0]!r} has no shape before the first forward; run the model once, then freeze"
        )
    if example is not None and torch.is_inference_mode_enabled():
        raise ThawkitError("example: nothing can be measured inside torch.inference_mode; freeze outside it")
    if example is not None and any(x.numel() == 0 for x in tensors_of(example)):
        raise ThawkitError("example: expected a batch of at least one sample, got an empty tensor")
    model = getattr(model, "_orig_mod", model)  # of a model under torch.compile
    stages = make_stages(model, train)
    with _or_as_it_was(model):
        extended = any(isinstance(module, Extended) for module in model.modules())
        unfreeze(model)
        if extended:
            stages = make_stages(model, train)  # the norms of weights are others now
        if any(isinstance(module, Rewritten) for module in model.modules()):
            raise ThawkitError("model: is part of a frozen model; unfreeze that one first")
        setattr(model, _RECORD, {name: p.requires_grad for name, p in _parameters(model)})
        for module in model.modules() if not copies else ():
            keep_none(module)
        report = _apply(model, stages.plan(0), example, act_bits, exact)
        if cache is not None:
            settings = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
            note = _cut_note(model, example)
            report = replace(report, cache=settings, notes=(*report.notes, note))
    if stages.varied:
        setattr(model, _STAGES, stages)
    return report


def set_epoch(model: nn.Module, epoch: int, *, example: Example | None = None) -> FreezeReport | None:
    """Move a model frozen by a schedule, or by ``lisa:K``, to the stage of an epoch; call it before each.

    A stage that begins gives what freezing with its policy would; adapters of the stage that ends are merged
    into their weights, and gradients of parameters that train no longer are dropped. Then give the optimizer
    what trains now: ``update_optimizer(optimizer, parameter_groups(model, weight_decay))``.

    Args:
        model: frozen; where not by a schedule, nothing happens.
        epoch: counted from 0; may be earlier than the present one.
        example: as for :func:`freeze`.

    Returns:
        The report of the new stage; None where the stage stays.

    Raises:
        ThawkitError: the model is not frozen, or ``epoch`` is below 0.
    """
    model = getattr(model, "_orig_mod", model)
    if _RECORD not in vars(model):
        raise ThawkitError("model: expected one that thawkit.freeze has frozen")
    if epoch < 0:
        raise ThawkitError(f"epoch: expected 0 or more, got {epoch}")
    stages: Stages | None = vars(model).get(_STAGES)
    if stages is None or stages.at(epoch) == stages.current:
        return None
    flags, act_bits = vars(model)[_RECORD], vars(model).get(lossy_layers.BITS)
    exact = vars(model).get(_EXACT, True)
    lean = [module for module in model.modules() if keeps_none(module)]
    with _or_as_it_was(model):
        unfreeze(model)
        for module in lean:
            keep_none(module)
        setattr(model, _RECORD, flags)
        setattr(model, _STAGES, Stages(stages.plans, stages.at(epoch)))
        report = _apply(model, stages.plan(epoch), example, act_bits, exact)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.grad = None
    return report


def _apply(
    model: nn.Module, plan: Plan, example: Example | None, act_bits: int | None, exact: bool
) -> FreezeReport:
    """Carry out a plan on a model whose flags are on record and that is in stock form otherwise."""
    everything = plan.names == set(parameter_names(model))
    sliced = {f"{name}.weight" if name else "weight" for name in plan.channels}
    _train_only(model, plan.names | sliced)
    left = complex_parameters(model, plan.names)
    fixed = set() if everything else _fixed_statistics(model)
    for name, settings in plan.lora.items():
        lora.attach(model.get_submodule(name), name, settings)
    batch, words = (example, "measured on the example") if example is not None else _guess(model)
    before: Measured | None = None
    parameters = parameters_as_they_are(model)
    calls = functional.Calls({""})  # without an example, any function that the model calls
    try:
        if batch is not None:
            with in_stock_form(), functional.calls(model) as seen:
                before = measure(model, batch, fixed)
                evaluate(model, batch)
            calls = seen
    except Exception as error:  # without an example the guess was wrong, and not the model
        if example is not None:
            raise ExampleError(error) from error
        batch, words = None, ""
    for name, choice in plan.channels.items():
        channels.attach(model.get_submodule(name), choice)
    leave_fast_paths(model)
    rewritten = swap(model, fixed, act_bits, exact) | plan.channels.keys() | plan.lora.keys()
    if not everything:
        for name in calls.callers:
            functional.watch(model.get_submodule(name))
    for layer in waiting_layers(model) if calls.need_strides else ():
        layer.folds = False
    outputs: list[Any] = []
    moved: set[str] = set()
    after: Counter[str] | None = None
    if batch is not None:
        settle_waiting(model, batch, fixed)
        for waits in (True, False):
            try:
                rewritten |= save_bits(model, batch, fixed)
                after = saved_by_module(model, batch, fixed, outputs, moved)
                break
            except RuntimeError:  # on a path that the model has not taken before
                if not waits:
                    raise
                for layer in waiting_layers(model):
                    layer.folds = False
                outputs.clear()
    notes = [
        *plan.notes,
        *left,
        *unreached_parameters(model, outputs),
        *by_the_batch(model),
        *moving(model, moved),
        *parameters_written_to(model, parameters, words),
    ]
    if not exact:
        setattr(model, _EXACT, False)
        notes.append("not exact: where no gradient is recorded, clamps after convolutions hide NaN")
    if keeps_none(model):
        notes.append("no second copies of frozen weights are kept")
    elif packs.without_gain(model):
        notes.append("frozen linear weights are not laid out anew: torch's product is as fast on this CPU")
    packed = packs.packed_bytes(model)
    others: dict[str, Any] = {"packed_bytes": None if packs.unavailable(model) else packed}
    if before is not None and batch is not None and after is not None:
        others["minimum_bytes"] = None if plan.channels else before.minimum_bytes
        others["inexact_bytes"] = before.inexact_bytes
        others["_forecaster"] = Forecaster(model, batch, after)
    if act_bits is not None:
        setattr(model, lossy_layers.BITS, act_bits)
        others["fidelity"] = measure_fidelity(model, act_bits, example, fixed)
        if batch is not None:
            with lossy_layers.exactly():
                others["exact_bytes"] = saved_by_module(model, batch, fixed).total()
    packs.forget_all(model)  # their layouts may suit the example only
    saved = None if before is None else before.saved
    return make_report(model, plan.words, len(fixed), rewritten, words, saved, after, notes, **others)


def unfreeze(model: nn.Module, *, merge: bool = True) -> None:
    """Undo :func:`freeze`: classes, ``requires_grad`` flags, and the mode of the batch normalizations.

    A batch normalization gets the mode that it would have without freezing: the one it had, or the one that
    ``model.train()`` or ``model.eval()`` has set since. Parameters added since keep their flags. Does
    nothing to a model that is not frozen.

    Args:
        model: frozen or not.
        merge: what becomes of adapters (``lora:R``): True adds their product to the weight, False drops it.
    """
    for root in reversed([module for module in model.modules() if _RECORD in vars(module)]):
        flags = vars(root).pop(_RECORD)
        vars(root).pop(_STAGES, None)
        for name, parameter in _parameters(root):
            if name in flags:
                parameter.requires_grad_(flags[name])
        for module in root.modules():
            restore_fast_path(module)
            if isinstance(module, FrozenBatchNorm):
                module.training = vars(module).pop("thawed_training")
            keep_none(module, False)
            own = ("folds", "exact", "kept") if isinstance(module, Rewritten) else ()
            for attribute in (*own, lossy_layers.BITS, _EXACT):
                vars(module).pop(attribute, None)
            packs.forget(module)
            functional.release(module)
            if isinstance(module, Extended):
                module.detach(merge)
            elif isinstance(module, Rewritten):
                module.__class__ = thawed_class(type(module))


@contextmanager
def _or_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put everything back that freezing and thawing change, adapters included, if that fails inside."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    extended = [m._parameters.get("weight") for m in model.modules() if isinstance(m, Extended)]
    weights = [weight for weight in extended if weight is not None]  # a parametrization has another
    merged = [(weight, weight.detach().clone()) for weight in weights]
    modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
    # Hooks, parameters and the like: the containers stay, since handles refer to them.
    contents = [(x, copy(x)) for *_, own in modules for x in own.values() if isinstance(x, (dict, set))]
    try:
        yield
    except Exception:
        for module, kind, own in modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(own)
            packs.forget(module)
        for container, content in contents:
            container.clear()
            container.update(content)
        with torch.no_grad():
            for weight, value in merged:
                weight.copy_(value)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _train_only(model: nn.Module, selected: set[str]) -> None:
    trains = {id(parameter) for name, parameter in _parameters(model) if name in selected}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trains and parameter.is_floating_point())


def _fixed_statistics(model: nn.Module) -> set[nn.Module]:
    """The batch normalizations to hold: those with running statistics outside the head."""
    head, classes = head_parts(model), frozen_classes()
    batch_norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and not within(name, head)
    }
    unknown = [name for name, module in batch_norms.items() if type(module) not in classes]
    if unknown:
        kind = type(batch_norms[unknown[0]]).__name__
        warnings.warn(
            f"thawkit.freeze cannot hold the statistics of {len(unknown)} batch normalizations of a class of "
            f"their own, as {unknown[0]!r} ({kind}): they move in training mode",
            ThawkitWarning,
            stacklevel=4,
        )
    without = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is None
        and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    if without:
        warnings.warn(
            f"thawkit.freeze: {len(without)} batch normalizations without running statistics train, as "
            f"{without[0]!r}: they go by the batch and save their input",
            ThawkitWarning,
            stacklevel=4,
        )
    return {module for name, module in batch_norms.items() if name not in unknown}


def _cut_note(model: nn.Module, example: Example | None) -> str:
    """Where the part that need not run again ends, in words."""
    example = guess_example(model) if example is None else example
    if example is None:
        return "feature cache: pass example= to learn where the model can be cut"
    try:
        cut = find_cut(model, example)
    except NoCutError as error:
        return f"feature cache: none, training goes on as usual: {error}"
    shapes = " and ".join("x".join(map(str, feature.shape)) or "1" for feature in cut.features)
    size = sum(feature.nbytes for feature in cut.features)
    return f"feature cache: keeps {shapes} a sample ({size:,} bytes), before {cut.at}"


def _guess(model: nn.Module) -> tuple[Example | None, str]:
    """A batch to measure on and what it is; ``(None, "")`` where none can be made."""
    guess = guess_example(model)
    if guess is None:
        return None, ""
    return guess, f"measured on one blank {'x'.join(map(str, guess.shape[1:]))} image"
