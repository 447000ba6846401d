"""🤗 Trainer with thawkit's methods, batches and metrics in it; the loop is Trainer's own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from thawkit.choices import SCHEDULERS
from thawkit.data import Augment, EpochSampler, ImageDataset, Splits, TrainingView
from thawkit.errors import ThawkitError
from thawkit.frozen import FeatureCache, check_optimizer, parameter_groups
from thawkit.select import Model
from thawkit.tune.cached import CachedRun
from thawkit.tune.config import TuneConfig
from thawkit.tune.evaluate import evaluate
from thawkit.tune.method import Method

WORKERS_A_PROCESSOR = 8


class MethodTrainer(Trainer):
    """Train a model with a method; each epoch score it on val, log, and write a checkpoint to ``folder``."""

    def __init__(
        self,
        model: Model,
        splits: Splits,
        target: Splits | None,
        method: Method,
        config: TuneConfig,
        folder: Path,
        callbacks: Sequence[TrainerCallback],
        cache: FeatureCache | None = None,
    ) -> None:
        self.view = TrainingView(
            splits.train,
            model.preprocess,
            Augment(config.augment, config.seed),
            target.train.without_labels() if target is not None and method.uses_target else None,
        )
        super().__init__(
            model.module,
            training_arguments(config, folder),
            train_dataset=self.view,
            eval_dataset=splits.val,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        # The loss is a mean over the batch, whatever the signature of the network's forward suggests.
        self.model_accepts_loss_kwargs = False
        self.method, self.config, self.thawkit_model = method, config, model
        self.validation = splits.val
        self.target_validation = target.val if target and target.val.labels is not None else None
        self.cached: CachedRun | None = None
        if cache is not None:
            with self.compute_loss_context_manager():
                self.cached = CachedRun(cache, model, self.view, splits.val)
        self._clock = time.perf_counter()

    def get_train_dataloader(self) -> DataLoader:
        """Return batches in an order that is a function of the seed and the epoch."""
        target = self.view.target
        # A last batch of one image would break batch normalisation; its images come up in other epochs.
        drop_last = len(self.view) >= self.config.batch_size
        if self.cached is not None and self.cached.usable:
            batches = self.cached.loader(self.config.batch_size, self.config.seed, drop_last)
            return self.accelerator.prepare(batches)
        loader = DataLoader(
            self.view,
            batch_size=self.config.batch_size,
            sampler=EpochSampler(len(self.view), len(target) if target else 0, self.config.seed),
            collate_fn=self.view.collate,
            num_workers=self.config.workers,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
        )
        return self.accelerator.prepare(loader)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the matrices and filters; vectors are biases and norms, and are not decayed."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return Trainer's optimizer, having warned where it would not train what the policy says."""
        optimizer = super().create_optimizer(model)
        check_optimizer(self.thawkit_model.module, optimizer)
        return optimizer

    def trainable_groups(self) -> list[dict[str, Any]]:
        """Return what trains now in the optimizer's groups, as ``create_optimizer`` made them."""
        return parameter_groups(self.thawkit_model.module, self.args.weight_decay)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the method's loss; there are no other outputs."""
        progress = torch.tensor(self.state.global_step / max(1, self.state.max_steps))
        if self.cached is not None and self.cached.usable:
            model, inputs = self.cached.train.model, {**inputs, "pixel_values": inputs["features"]}
        loss = self.method.loss(model, {**inputs, "progress": progress})
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "val",
    ) -> dict[str, float]:
        """Score the model on val, log the scalars as ``val_...``, and tell the callbacks.

        ``target_accuracy`` is logged beside them where a labelled target is at hand; nothing reads it.
        """
        metrics = self._scores(self.validation if eval_dataset is None else eval_dataset)
        logs = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        if self.target_validation is not None:
            logs["target_accuracy"] = self._scores(self.target_validation)["accuracy"]
        logs["seconds"] = time.perf_counter() - self._clock
        self._clock += logs["seconds"]
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def _scores(self, dataset: ImageDataset) -> dict[str, float]:
        size = 2 * self.config.batch_size
        if self.cached is not None and self.cached.usable and dataset is self.validation:
            metrics = self.cached.validate(self.thawkit_model, dataset, size)
        else:
            metrics = evaluate(self.thawkit_model, dataset, batch_size=size)
        return {key: value for key, value in metrics.items() if isinstance(value, float)}


def check_machine(config: TuneConfig) -> None:
    """Raise a :class:`ThawkitError` where this machine lacks the device, precision or workers asked for."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ThawkitError("device 'cuda' is not available here; device 'auto' takes what there is")
    if config.precision == "fp16" and (config.device == "cpu" or not cuda):
        raise ThawkitError("precision 'fp16' needs CUDA; on a CPU use 'bf16' or 'fp32'")
    # Some more than there are processors may help where images come over a network.
    most = WORKERS_A_PROCESSOR * (os.cpu_count() or 1)
    if config.workers > most:
        raise ThawkitError(f"workers must be at most {most} on this machine, got {config.workers}")


def training_arguments(config: TuneConfig, folder: Path) -> TrainingArguments:
    """Translate a :class:`TuneConfig` for 🤗 Trainer, with its own reporting switched off."""
    cuda = torch.cuda.is_available()
    return _OneDevice(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type=SCHEDULERS[config.scheduler],
        max_grad_norm=config.clip,
        optim="adamw_torch",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        seed=config.seed,
        use_cpu=config.device == "cpu" or not cuda,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )


class _OneDevice(TrainingArguments):
    """Arguments under which Trainer sees one GPU at most.

    Of several it would make a DataParallel around the model, and methods hook into the module itself.
    """

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)
