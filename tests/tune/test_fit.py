import io
import json
import shutil
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from thawkit.data import ImageDataset, Preprocess, Splits
from thawkit.errors import ThawkitError
from thawkit.select import Model, create_model
from thawkit.tune import (
    Method,
    Supervised,
    TuneConfig,
    classification_metrics,
    evaluate,
    fit,
    linear_probe,
    load_run,
    predict,
)

QUIET = Console(quiet=True)
SMALL = TuneConfig(epochs=3, batch_size=24, learning_rate=3e-3, train="all", augment="digits")


def run(splits, output, config=SMALL, seed=0, **options):
    options.setdefault("console", QUIET)
    return fit(create_model("lenet", 3, seed=seed), splits, config=config, output=output, **options)


@pytest.fixture(scope="module")
def finished(splits, tmp_path_factory):
    return run(splits, tmp_path_factory.mktemp("runs") / "first")


def test_a_run_learns_and_leaves_everything_behind(finished, splits):
    assert finished.metrics["test"]["balanced_accuracy"] > 0.6
    assert [row["epoch"] for row in finished.history] == [1, 2, 3]
    assert finished.history[-1]["loss"] < finished.history[0]["loss"]
    files = {path.name for path in finished.path.iterdir()}
    assert files == {"run.json", "metrics.json", "history.json", "model.safetensors", "checkpoints"}
    assert json.loads((finished.path / "metrics.json").read_text()) == finished.metrics


def test_loaded_run_is_the_model_that_was_scored(finished, splits):
    loaded = load_run(finished.path)
    assert loaded.classes == ("top", "middle", "bottom")
    assert not loaded.model.module.training
    assert evaluate(loaded.model, splits.test) == finished.metrics["test"] == loaded.metrics["test"]
    assert loaded.config["train"] == "all"
    assert loaded.method["criterion"] == "cross_entropy"
    with pytest.raises(ThawkitError, match=r"not made by thawkit\.data\.load"):
        loaded.load_data()


def test_best_epoch_is_kept(finished, splits):
    scores = [row["val_balanced_accuracy"] for row in finished.history]
    assert finished.metrics["best_epoch"] == 1 + scores.index(max(scores))
    assert finished.metrics["val"]["balanced_accuracy"] == max(scores)


def test_same_seed_same_run_other_seed_other_run(finished, splits, tmp_path):
    torch.manual_seed(123)  # the caller's random state must not matter
    assert run(splits, tmp_path / "again").metrics == finished.metrics
    other = TuneConfig(**{**SMALL.to_dict(), "seed": 1})
    assert run(splits, tmp_path / "other", other).metrics != finished.metrics


def test_only_the_policy_trains_and_frozen_statistics_stay(splits, tmp_path):
    before = create_model("lenet", 3).module.state_dict()
    result = run(splits, tmp_path / "run", TuneConfig(epochs=1, train="head", learning_rate=0.01))
    after = result.model.module.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


SCHEDULE = "head@0,channels:0.5+bias@1,lora:2@2"


def scheduled(splits, output, **options):
    config = TuneConfig(
        epochs=4, batch_size=24, learning_rate=3e-3, train=SCHEDULE, augment="digits", keep="last"
    )
    return run(splits, output, config, **options)


def test_a_schedule_thaws_and_its_run_can_be_resumed_at_every_epoch(splits, tmp_path):
    class StopAt(Supervised):
        def loss(self, model, batch):
            if batch["progress"] >= self.stop:
                raise KeyboardInterrupt
            return super().loss(model, batch)

    console = Console(record=True, file=io.StringIO(), width=200)
    whole = scheduled(splits, tmp_path / "whole", console=console)
    keys = {name: tensor.shape for name, tensor in create_model("lenet", 3).module.state_dict().items()}
    assert {k: v.shape for k, v in load_file(whole.path / "model.safetensors").items()} == keys
    assert {k: v.shape for k, v in whole.model.module.state_dict().items()} == keys
    stages = [
        line for line in console.export_text().splitlines() if line.startswith("thawkit.freeze: train=")
    ]
    assert [line.split("'")[1] for line in stages] == ["head", "channels:0.5+bias", "lora:2"]
    for epoch in (1, 2, 3):
        method = StopAt()
        method.stop = epoch / 4 + 0.1
        with pytest.raises(KeyboardInterrupt):
            scheduled(splits, tmp_path / f"{epoch}", method=method)
        method.stop = 2
        resumed = scheduled(splits, tmp_path / f"{epoch}", method=method, resume=True)
        assert resumed.metrics == whole.metrics
        for name, tensor in whole.model.module.state_dict().items():
            assert torch.equal(resumed.model.module.state_dict()[name], tensor), (epoch, name)


def test_stages_after_the_last_epoch_are_an_error(splits, tmp_path):
    config = TuneConfig(epochs=3, train="head@0,all@3")
    with pytest.raises(
        ThawkitError, match="a stage begins at epoch 3, counted from 0, but there are 3 epochs"
    ):
        run(splits, tmp_path / "new", config)


def test_patience_stops_and_the_earlier_weights_are_restored(splits, tmp_path):
    # A learning rate of nearly nothing never improves the first epoch's score by more than noise.
    config = TuneConfig(
        epochs=9,
        batch_size=24,
        learning_rate=1e-12,
        patience=2,
        train="head",
        scheduler="constant",
        warmup=0.0,
    )
    result = run(splits, tmp_path / "run", config)
    assert result.metrics["epochs"] == 3
    assert result.metrics["best_epoch"] == 1
    (tmp_path / "run" / "metrics.json").unlink()  # as if killed between the last epoch and the end
    assert run(splits, tmp_path / "run", config, resume=True).metrics == result.metrics


def test_resuming_a_finished_run_gives_it_back(finished, splits):
    before = (finished.path / "metrics.json").read_bytes()
    assert run(splits, finished.path, resume=True).metrics == finished.metrics
    assert (finished.path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": TuneConfig(**{**SMALL.to_dict(), "epochs": 4})}, r"config.epochs was 3, is now 4"),
        ({"method": Supervised("focal")}, "method.criterion was cross_entropy, is now focal"),
    ],
)
def test_resuming_with_other_settings_is_refused(finished, splits, change, message):
    with pytest.raises(ThawkitError, match=message):
        run(splits, finished.path, resume=True, **change)


def test_resuming_with_other_data_is_refused(finished, splits):
    other = Splits(splits.train, splits.test, splits.val, splits.classes, splits.name)
    with pytest.raises(ThawkitError, match=r"data.fingerprint has changed"):
        run(other, finished.path, resume=True)


def test_settings_that_do_not_matter_may_change(finished, splits):
    config = TuneConfig(**{**SMALL.to_dict(), "device": "cpu"})
    assert run(splits, finished.path, config, resume=True).metrics == finished.metrics


def test_folders_in_use_are_refused(finished, splits, tmp_path):
    with pytest.raises(ThawkitError, match=r"not empty: continue the run in it with resume \(--resume\)"):
        run(splits, finished.path)
    (tmp_path / "thesis.txt").write_text("years of work")
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ThawkitError, match="holds no thawkit run"):
            run(splits, tmp_path, **options)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(ThawkitError, match="use one of them"):
        run(splits, tmp_path / "new", resume=True, overwrite=True)
    with pytest.raises(ThawkitError, match="is a file"):
        run(splits, tmp_path / "thesis.txt")


def test_overwrite_starts_anew_and_leaves_other_files(splits, tmp_path):
    one_epoch = TuneConfig(epochs=1, batch_size=24, train="head")
    run(splits, tmp_path / "run", one_epoch)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    result = run(splits, tmp_path / "run", TuneConfig(epochs=2, batch_size=24, train="head"), overwrite=True)
    assert result.metrics["epochs"] == 2
    assert (tmp_path / "run" / "notes.txt").exists()


def test_model_and_data_must_have_the_same_classes(splits, tmp_path):
    with pytest.raises(ThawkitError, match="blobs has 3 classes, the model lenet has 10 outputs"):
        fit(create_model("lenet", 10), splits, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ThawkitError, match="3 classes, the model lenet has 10"):
        evaluate(create_model("lenet", 10), splits.test)


class Twin(nn.Module):
    """Answers twice in training mode, as GoogLeNet and Inception do with their auxiliary heads."""

    def __init__(self, classes=3):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, classes)

    def forward(self, images):
        logits = self.head(self.norm(images).mean((2, 3)))
        return (logits, logits) if self.training else logits


@pytest.mark.parametrize("start", [linear_probe, fit])
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Twin(), r"the model own must give logits \(2, 3\) for 2 images in training, got tuple"),
        (nn.Conv2d(3, 3, 3), r"must give logits \(2, 3\) .*, got \(2, 3, 14, 14\)"),
        (nn.Linear(9, 3), "the model own fails on images of 16×16 pixels: .+"),
    ],
)
def test_a_model_that_cannot_train_is_found_before_anything_starts(splits, tmp_path, start, module, message):
    model = Model(module, Preprocess(16), "own", {"num_classes": 3})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    options = {"output": tmp_path / "run", "console": QUIET} if start is fit else {}
    with pytest.raises(ThawkitError, match=message) as caught:
        start(model, splits, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_transformer_of_another_size_is_refused(splits, tmp_path):
    pytest.importorskip("timm")
    model = create_model("timm:vit_tiny_patch16_224", 3, pretrained=False, image_size=64)
    with pytest.raises(ThawkitError, match=r"vit_tiny_patch16_224 fails on images of 64×64 pixels: .*224"):
        fit(model, splits, output=tmp_path / "run", console=QUIET)


def test_divergence_is_an_error_with_advice(splits, tmp_path):
    class Diverging(Method):
        def loss(self, model, batch):
            return model(batch["pixel_values"]).sum() * float("nan")

    with pytest.raises(
        ThawkitError, match=r"training diverged: the loss is nan .* learning_rate below 0.003"
    ):
        run(splits, tmp_path / "run", method=Diverging())


def test_a_method_sees_images_labels_and_progress(splits, tmp_path):
    seen = []

    class Watching(Method):
        def loss(self, model, batch):
            assert model.training
            seen.append((tuple(batch["pixel_values"].shape), batch["labels"].dtype, float(batch["progress"])))
            return model(batch["pixel_values"]).square().mean()

    run(splits, tmp_path / "run", TuneConfig(epochs=2, batch_size=24, train="head"), method=Watching())
    assert [step[:2] for step in seen] == [((24, 3, 28, 28), torch.int64)] * 6
    assert [step[2] for step in seen] == pytest.approx([i / 6 for i in range(6)])


def test_ctrl_c_says_how_to_go_on(splits, tmp_path, capsys):
    class Interrupting(Method):
        def loss(self, model, batch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(splits, tmp_path / "run", method=Interrupting(), console=Console(file=sys.stdout, width=200))
    assert "resume=True (--resume) continues the run" in capsys.readouterr().out


def test_half_precision_trains_and_the_next_run_is_full_again(finished, splits, tmp_path):
    half = TuneConfig(**{**SMALL.to_dict(), "precision": "bf16"})
    result = run(splits, tmp_path / "half", half)
    assert {p.dtype for p in result.model.module.parameters()} == {torch.float32}
    assert result.metrics["test"]["balanced_accuracy"] > 0.5
    assert run(splits, tmp_path / "full").metrics == finished.metrics


@pytest.mark.parametrize("field", ["model.safetensors", "run.json", "history.json"])
def test_damaged_runs_are_reported_in_one_line(finished, splits, tmp_path, field):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in finished.path.iterdir():
        if path.is_file():
            content = path.read_bytes()
            (folder / path.name).write_bytes(content[: len(content) // 2] if path.name == field else content)
    with pytest.raises(ThawkitError, match=f"{field}") as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {}, "it lacks 'model'"),
        (lambda d: [], ""),
        (lambda d: {**d, "model": {**d["model"], "colour": "red"}}, "colour"),
        (lambda d: {**d, "preprocess": {**d["preprocess"], "colour": "red"}}, "colour"),
        (lambda d: {**d, "model": {"name": "lenet"}}, "num_classes"),
        (lambda d: {**d, "model": {**d["model"], "num_classes": "3"}}, ""),
        (lambda d: {**d, "classes": None}, ""),
        (lambda d: {**d, "model": {**d["model"], "name": 5}}, ""),
        (lambda d: {k: v for k, v in d.items() if k != "data"}, "it lacks 'data'"),
    ],
)
def test_a_run_json_that_thawkit_did_not_write_is_one_line(finished, tmp_path, change, message):
    folder = shutil.copytree(finished.path, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    described = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(change(described)))
    with pytest.raises(ThawkitError, match=f"run.json is not as thawkit writes it: .*{message}") as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_names_its_run(finished):
    checkpoints = finished.path / "checkpoints"
    for path in (next(checkpoints.iterdir()), checkpoints, finished.path / "checkpoint-last"):
        with pytest.raises(ThawkitError, match=f"; did you mean the run {finished.path}\\?$"):
            load_run(path)


def test_folders_that_are_no_finished_run(finished, tmp_path):
    with pytest.raises(ThawkitError, match="no such folder"):
        load_run(tmp_path / "none")
    with pytest.raises(ThawkitError, match="not a thawkit run"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text((finished.path / "run.json").read_text())
    with pytest.raises(ThawkitError, match="unfinished; continue it with resume=True"):
        load_run(tmp_path)


def test_predict_is_in_order_whatever_the_batch_and_restores_the_mode(splits):
    model = create_model("lenet", 3)
    model.module.train()
    model.module.body.eval()
    logits = predict(model, splits.test, batch_size=7)
    assert model.module.training
    assert not model.module.body[0].training
    assert logits.shape == (45, 3)
    torch.testing.assert_close(logits, predict(model, splits.test, batch_size=45))
    expected = classification_metrics(logits.numpy(), splits.test.labels)
    assert evaluate(model, splits.test, batch_size=7) == expected


def test_unlabelled_data_can_be_predicted_but_not_scored(splits):
    model, unlabelled = create_model("lenet", 3), splits.test.without_labels()
    assert predict(model, unlabelled).shape == (45, 3)
    with pytest.raises(ThawkitError, match="labels are needed to evaluate"):
        evaluate(model, unlabelled)
    nothing = ImageDataset(splits.test.images[:0], None, splits.classes)
    assert predict(model, nothing).shape == (0, 3)
