"""What happens beside the training loop: the progress bar, stopping, and making checkpoints safe."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thawkit.errors import ThawkitError
from thawkit.frozen import set_epoch, update_optimizer
from thawkit.tune.checkpoints import mark_complete, prune
from thawkit.tune.config import TuneConfig
from thawkit.tune.history import chosen_row, epoch_rows, out_of_patience


class ShowProgress(TrainerCallback):
    """A bar over the steps and one line an epoch.

    It is a context manager as well, so that the bar is taken down however training ends.
    """

    def __init__(self, console: Console, config: TuneConfig) -> None:
        self.console, self.config = console, config
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> ShowProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the bar where the run stands."""
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        assert self.task is not None
        epoch = min(math.ceil(state.epoch or 0), self.config.epochs)
        description = f"epoch {epoch}/{self.config.epochs}"
        self.bar.update(self.task, completed=state.global_step, description=description)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Print the epoch's line."""
        row, last = epoch_rows(state.log_history)[-1], self.config.epochs
        words = [f"epoch {row['epoch']:>{len(str(last))}}/{last}", f"loss {row.get('loss', math.nan):.4f}"]
        words.append(f"val loss {row['val_loss']:.4f}")
        monitored = row.get(f"val_{self.config.monitor}")
        if monitored is not None and self.config.monitor != "loss":
            words.append(f"{self.config.monitor.replace('_', ' ')} {monitored:.4f}")
        words.append(f"{row['seconds']:.1f} s")
        if self.config.keep == "best" and chosen_row(state.log_history, self.config) == row:
            words.append("best")
        self.console.print("  ".join(words), highlight=False, soft_wrap=True)


class FollowSchedule(TrainerCallback):
    """Move the model to the stage of each epoch, and give the optimizer what trains there.

    ``groups`` gives the optimizer's parameter groups for the model as it then is; what a stage saves is
    measured on ``example``.
    """

    def __init__(self, console: Console, example: Tensor) -> None:
        self.console, self.example = console, example
        self.groups: Callable[[], list[dict[str, Any]]] = list

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Runs after a checkpoint was loaded, which was one of the stage before."""
        report = set_epoch(model, round(state.epoch or 0), example=self.example)
        if report is not None:
            update_optimizer(getattr(optimizer, "optimizer", optimizer), self.groups())
            words = str(report).partition("\n\n")[0]
            self.console.print(words, markup=False, emoji=False, highlight=False, soft_wrap=True)


class StopWhenDone(TrainerCallback):
    """Stop early out of patience, and at once where the loss is no longer a number."""

    def __init__(self, config: TuneConfig) -> None:
        self.config = config

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the epochs since the best one."""
        if out_of_patience(state.log_history, self.config):
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Check the epoch's mean training loss.

        Raises:
            ThawkitError: it is infinite or not a number.
        """
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ThawkitError(
                f"training diverged: the loss is {loss} at step {state.global_step}; "
                f"try a learning_rate below {self.config.learning_rate:g}"
            )


class SafeCheckpoints(TrainerCallback):
    """Mark a checkpoint as whole once it is, and only then delete those that are no longer needed."""

    def __init__(self, folder: Path, config: TuneConfig) -> None:
        self.folder, self.config = folder, config

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Runs after every file of the checkpoint is written."""
        mark_complete(self.folder / f"checkpoint-{state.global_step}")
        prune(self.folder, {state.global_step, chosen_row(state.log_history, self.config)["step"]})
