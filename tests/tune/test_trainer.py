"""Each setting of TuneConfig reaches the optimizer that 🤗 Trainer builds, seen in real steps."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback
from transformers.training_args import ParallelMode

import thawkit
from thawkit.errors import ThawkitWarning
from thawkit.select import create_model
from thawkit.tune import Method, TuneConfig
from thawkit.tune.trainer import MethodTrainer, training_arguments

STEPS = 12  # 4 epochs of 72 images in batches of 24


class Watch(TrainerCallback):
    """Write down the learning rate and the gradient's norm that each step is made with."""

    def __init__(self):
        self.rates, self.norms = [], []

    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **_):
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        self.rates.append(rate)
        self.norms.append(
            math.hypot(*(p.grad.norm().item() for p in model.parameters() if p.grad is not None))
        )


class Slope(Method):
    """A loss whose gradient is as large as asked for: of 0, or huge."""

    def __init__(self, factor):
        self.factor = factor

    def loss(self, model, batch):
        return self.factor * model(batch["pixel_values"]).sum()


@pytest.fixture
def train(splits, tmp_path):
    def train(factor=1.0, **settings):
        """Train the whole of a LeNet; return its weights before and after, and what was seen meanwhile."""
        model, watch = create_model("lenet", 3, seed=0), Watch()
        before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
        config = TuneConfig(**{"epochs": 4, "batch_size": 24, "augment": "none", **settings})
        MethodTrainer(model, splits, None, Slope(factor), config, tmp_path, [watch]).train()
        return before, dict(model.module.named_parameters()), watch

    return train


def test_decay_takes_its_share_of_matrices_and_filters_alone(train):
    before, after, _ = train(
        factor=0.0, learning_rate=0.1, weight_decay=0.3, scheduler="constant", warmup=0.0
    )
    decayed = {"body.0.weight", "body.4.weight", "hidden.1.weight", "head.weight"}
    for name, value in before.items():  # the gradient is 0, so that nothing else moves a weight
        share = (1 - 0.1 * 0.3) ** STEPS if name in decayed else 1.0
        torch.testing.assert_close(after[name].detach(), value * share, msg=name)


def test_the_first_step_is_as_long_as_adams_whatever_the_gradient(train):
    before, after, _ = train(
        factor=1e6, learning_rate=0.1, weight_decay=0.0, warmup=0.0, epochs=1, batch_size=72, clip=0.0
    )
    step = (after["head.bias"] - before["head.bias"]).detach()
    torch.testing.assert_close(step, torch.full((3,), -0.1))


SHAPES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@pytest.mark.parametrize("scheduler", SHAPES)
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_rises_and_then_takes_the_shape_asked_for(train, scheduler, warmup):
    _, _, watch = train(learning_rate=0.02, scheduler=scheduler, warmup=warmup)
    rise = round(warmup * STEPS)
    shape = [SHAPES[scheduler](step / (STEPS - rise)) for step in range(STEPS - rise)]
    assert watch.rates == pytest.approx([0.02 * share for share in [i / rise for i in range(rise)] + shape])


def test_a_huge_gradient_is_cut_to_the_norm_asked_for(train):
    _, _, watch = train(factor=1e6, clip=0.25, epochs=1)
    assert watch.norms == pytest.approx([0.25] * 3, rel=1e-4)


def test_a_clip_of_0_leaves_the_gradient_alone(train):
    _, _, watch = train(factor=1e6, clip=0.0, epochs=1)
    assert min(watch.norms) > 1e6


def test_several_gpus_are_taken_as_one(tmp_path):
    args = training_arguments(TuneConfig(), tmp_path)
    args._n_gpu = 4  # as Trainer finds out where there are four
    assert args.n_gpu == 1
    assert args.parallel_mode is ParallelMode.NOT_PARALLEL


def test_an_optimizer_that_misses_what_trains_is_warned_of(splits, tmp_path):
    model = create_model("lenet", 3, seed=0)
    config = TuneConfig(epochs=1, batch_size=24, augment="none")
    trainer = MethodTrainer(model, splits, None, Slope(1.0), config, tmp_path, [])
    trainer.create_optimizer()
    thawkit.freeze(model.module, "channels:0.5")  # too late: the optimizer has never seen the channels
    with pytest.warns(ThawkitWarning, match="tensors that train are not in it, as 'body.0.weight_channels'"):
        trainer.create_optimizer()
