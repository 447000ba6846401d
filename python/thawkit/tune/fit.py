"""One call from a model and images to a finished run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import TrainerState
from transformers.utils import logging as transformers_logging

from thawkit.data import Splits
from thawkit.errors import ThawkitError
from thawkit.frozen import FeatureCache, FreezeReport, freeze, set_epoch, unfreeze
from thawkit.frozen.schedule import parse_schedule
from thawkit.select import Model
from thawkit.tune.cached import settings_for
from thawkit.tune.callbacks import FollowSchedule, SafeCheckpoints, ShowProgress, StopWhenDone
from thawkit.tune.checkpoints import STATE, WEIGHTS, newest_usable, prune, step_of, write_json
from thawkit.tune.config import TuneConfig
from thawkit.tune.evaluate import check_classes, check_forward, check_monitor, evaluate
from thawkit.tune.history import chosen_row, epoch_rows, out_of_patience
from thawkit.tune.method import Method, Supervised
from thawkit.tune.run import (
    CHECKPOINTS,
    HISTORY,
    METRICS,
    RunResult,
    check_output,
    describe,
    load_weights,
    open_run,
)
from thawkit.tune.trainer import MethodTrainer, check_machine


def fit(
    model: Model,
    splits: Splits,
    *,
    method: Method | None = None,
    config: TuneConfig | None = None,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    target: Splits | None = None,
    cache: FeatureCache | str | Path | None = None,
    console: Console | None = None,
) -> RunResult:
    """Train ``model`` and leave a run folder at ``output``.

    Every epoch ends with a score on val and a checkpoint. A run that was killed, at any moment, continues
    with ``resume=True`` from its newest whole checkpoint and ends with the metrics it would have had.

    Args:
        model: trained in place; it ends with the weights of the epoch that ``config.keep`` chooses.
        splits: labelled images with as many classes as the model has outputs.
        method: the loss; cross-entropy when not given.
        config: everything else; see :class:`TuneConfig`.
        output: a new or empty folder, unless ``resume`` or ``overwrite``.
        resume: continue the run in ``output`` if there is one, with the same settings and data.
        overwrite: delete the run in ``output`` first.
        target: images of a second domain, for methods that use them. Its training labels are never read;
            scores on its val and test labels, if it has any, are reported and decide nothing.
        cache: a folder, or settings with one, for the outputs of the part of the network that comes before
            all that trains: later epochs cost only the rest. Epoch ``e`` then has the augmentation of epoch
            ``e % views``. Where the network has no such part, a line says so and training goes on as usual.
        console: where progress goes; standard output when not given, ``Console(quiet=True)`` for silence.

    Returns:
        The finished run. Test images are scored once, with the final weights.

    Raises:
        ThawkitError: settings, data and model that do not fit together, an output folder in use, a run to
            resume that was made with other settings, or a loss that became infinite.
    """
    method, config, console = method or Supervised(), config or TuneConfig(), console or Console()
    folder = Path(output)
    check_start(config, folder, resume=resume, overwrite=overwrite)
    _check(model, splits, target, method, config)
    settings = settings_for(cache, config, method)
    method.prepare(splits.train, model.num_classes)
    description = describe(model, splits, target, method, config)
    if settings is not None:
        description["cache"] = {"views": settings.views, "dtype": settings.dtype}
    verbosity = transformers_logging.get_verbosity()
    try:
        with _frozen(model, config) as report:
            open_run(folder, description, resume=resume, overwrite=overwrite)
            _say(console, str(report).partition("\n\n")[0])
            state = _train(model, splits, target, method, config, folder / CHECKPOINTS, settings, console)
            _load_chosen(model, state, config, folder)  # before unfreezing merges what the stage has added
        return _finish(model, splits, target, config, state, folder, report)
    except KeyboardInterrupt:
        _say(console, f"Stopped. The same call with resume=True (--resume) continues the run in {folder}.")
        raise
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_start(
    config: TuneConfig, output: str | Path, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Find now, before the data are read, what :func:`fit` would object to without having seen them.

    Raises:
        ThawkitError: this machine cannot train with ``config``, or ``output`` is in use.
    """
    check_machine(config)
    check_output(Path(output), resume=resume, overwrite=overwrite)


@contextmanager
def _frozen(model: Model, config: TuneConfig) -> Iterator[FreezeReport]:
    try:
        torch.manual_seed(config.seed)  # adapters start from it
        yield freeze(model.module, train=config.train, example=_example(model))
    finally:
        unfreeze(model.module)


def _example(model: Model) -> torch.Tensor:
    """Two blank images, since batch normalisation cannot train on one."""
    size = model.preprocess.size
    return torch.zeros(2, 3, size, size, device=next(model.module.parameters()).device)


def _train(
    model: Model,
    splits: Splits,
    target: Splits | None,
    method: Method,
    config: TuneConfig,
    folder: Path,
    cache: FeatureCache | None,
    console: Console,
) -> TrainerState:
    def needed(checkpoint: Path) -> int:
        return chosen_row(_read_state(checkpoint).log_history, config)["step"]

    start = newest_usable(folder, needed, lambda text: _say(console, text))
    prune(folder, set() if start is None else {step_of(start), needed(start)})
    if start is not None:
        state = _read_state(start)
        if state.global_step >= state.max_steps or out_of_patience(state.log_history, config):
            return state
        _say(console, f"continuing after epoch {round(state.epoch or 0)} of {config.epochs}")
        set_epoch(model.module, round(state.epoch or 0) - 1)  # that of the checkpoint
    schedule = FollowSchedule(console, _example(model))
    with ShowProgress(console, config) as progress:
        callbacks = [schedule, StopWhenDone(config), progress, SafeCheckpoints(folder, config)]
        trainer = MethodTrainer(model, splits, target, method, config, folder, callbacks, cache)
        if trainer.cached is not None:
            _say(console, trainer.cached.words)
        schedule.groups = trainer.trainable_groups
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    trainer.accelerator.unwrap_model(model.module, keep_fp32_wrapper=False)
    return trainer.state


def _say(console: Console, text: str) -> None:
    """Print text as it is: in paths and policies ``[x]`` is no markup."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _load_chosen(model: Model, state: TrainerState, config: TuneConfig, folder: Path) -> None:
    """Load the weights of the chosen epoch into a model at that epoch's stage."""
    chosen = chosen_row(state.log_history, config)
    set_epoch(model.module, chosen["epoch"] - 1)
    load_weights(model, folder / CHECKPOINTS / f"checkpoint-{chosen['step']}" / WEIGHTS)


def _finish(
    model: Model,
    splits: Splits,
    target: Splits | None,
    config: TuneConfig,
    state: TrainerState,
    folder: Path,
    report: FreezeReport,
) -> RunResult:
    """Score the model, which has the chosen epoch's weights; write what the run leaves, the metrics last."""
    chosen = chosen_row(state.log_history, config)
    model.module.eval()
    sets = {"val": splits.val, "test": splits.test}
    if target is not None and target.test.labels is not None:
        sets["target"] = target.test
    history = epoch_rows(state.log_history)
    selection = "the last epoch" if config.keep == "last" else f"best {config.monitor} on val"
    metrics: dict[str, Any] = {
        **{name: evaluate(model, part, batch_size=2 * config.batch_size) for name, part in sets.items()},
        "best_epoch": chosen["epoch"],
        "epochs": len(history),
        "selection": selection,
    }
    partial = folder / f"{WEIGHTS}.partial"
    save_file({k: v.detach().cpu().contiguous() for k, v in model.module.state_dict().items()}, partial)
    os.replace(partial, folder / WEIGHTS)
    write_json(folder / HISTORY, history)
    write_json(folder / METRICS, metrics)
    return RunResult(folder, model, metrics, history, report)


def _check(model: Model, splits: Splits, target: Splits | None, method: Method, config: TuneConfig) -> None:
    check_classes(model, splits.train)
    if splits.train.labels is None or splits.val.labels is None or splits.test.labels is None:
        raise ThawkitError(f"{splits.name}: training needs labels in train, val and test")
    if len(splits.train) < 2:
        raise ThawkitError(f"{splits.name}: {len(splits.train)} images are too few to train on")
    if target is not None and target.classes != splits.classes:
        raise ThawkitError(f"the target {target.name} has other classes than {splits.name}")
    if method.uses_target and target is None:
        raise ThawkitError(f"the method {type(method).__name__} needs a target data set")
    latest = max(parse_schedule(config.train))
    if latest >= config.epochs:
        raise ThawkitError(
            f"train: a stage begins at epoch {latest}, counted from 0, but there are {config.epochs} epochs"
        )
    check_monitor(config.monitor, splits.val)
    check_forward(model, splits.train)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ThawkitError("training in several processes is not supported yet; start one without torchrun")


def _read_state(checkpoint: Path) -> TrainerState:
    try:
        return TrainerState.load_from_json(str(checkpoint / STATE))
    except (OSError, TypeError, json.JSONDecodeError) as error:
        raise ThawkitError(f"cannot read {checkpoint / STATE}: {error}") from error
