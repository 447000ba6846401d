"""A run on cached features is the run on images, epoch for epoch."""

import io
import json

import pytest
from rich.console import Console

from thawkit.errors import ThawkitError
from thawkit.frozen import FeatureCache
from thawkit.select import create_model
from thawkit.tune import Method, TuneConfig, fit

CONFIG = TuneConfig(epochs=3, batch_size=24, learning_rate=3e-3, train="head", augment="digits", device="cpu")


def run(splits, output, config=CONFIG, **options):
    console = options.pop("console", Console(quiet=True))
    model = create_model("lenet", 3)
    model.module.hidden[3].p = options.pop("dropout", 0.0)
    return fit(model, splits, config=config, output=output, console=console, **options)


def scores(result):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]


def test_as_many_views_as_epochs_give_the_run_without_a_cache(splits, tmp_path):
    plain = run(splits, tmp_path / "plain")
    said = io.StringIO()
    cache = FeatureCache(tmp_path / "features", views=3)
    cached = run(splits, tmp_path / "cached", cache=cache, console=Console(file=said, width=200))
    assert f"feature cache: {tmp_path / 'features'}" in said.getvalue()
    for ours, theirs in zip(scores(cached), scores(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert cached.metrics["best_epoch"] == plain.metrics["best_epoch"]
    again = run(splits, tmp_path / "again", cache=cache)
    assert scores(again) == scores(cached)
    assert len(list((tmp_path / "features").glob("*.features"))) == 2  # of train and val


def test_dropout_before_the_head_goes_on(splits, tmp_path):
    plain = run(splits, tmp_path / "plain", dropout=0.3)
    cached = run(splits, tmp_path / "cached", dropout=0.3, cache=FeatureCache(tmp_path / "features", views=3))
    for ours, theirs in zip(scores(cached), scores(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_resumed_with_the_same_views_only(splits, tmp_path):
    run(splits, tmp_path / "run", cache=FeatureCache(tmp_path / "features", views=2))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["cache"]["views"] == 2
    with pytest.raises(ThawkitError, match=r"cannot resume .*cache.views"):
        run(splits, tmp_path / "run", cache=FeatureCache(tmp_path / "features", views=3), resume=True)


def test_without_augmentation_there_is_one_view(splits, tmp_path):
    config = TuneConfig(**{**CONFIG.to_dict(), "augment": "none", "workers": 1})
    run(splits, tmp_path / "run", config, cache=FeatureCache(tmp_path / "features", views=4))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["cache"]["views"] == 1


def test_where_all_trains_the_run_goes_on_as_usual(splits, tmp_path):
    config = TuneConfig(**{**CONFIG.to_dict(), "train": "all"})
    said = io.StringIO()
    cached = run(
        splits, tmp_path / "cached", config, cache=tmp_path / "f", console=Console(file=said, width=200)
    )
    assert "feature cache: none, training goes on as usual: no frozen layer comes before" in said.getvalue()
    assert scores(cached) == scores(run(splits, tmp_path / "plain", config))


class _Adapting(Method):
    uses_target = True


def test_what_does_not_go_with_a_cache_is_refused(splits, tmp_path):
    staged = TuneConfig(**{**CONFIG.to_dict(), "train": "head@0,all@1"})
    with pytest.raises(ThawkitError, match="cache: expected one policy"):
        run(splits, tmp_path / "run", staged, cache=tmp_path / "f")
    with pytest.raises(ThawkitError, match="cache: the method _Adapting"):
        run(splits, tmp_path / "run", method=_Adapting(), target=splits, cache=tmp_path / "f")


def test_half_precision_training_keeps_half_precision_features(splits, tmp_path):
    config = TuneConfig(**{**CONFIG.to_dict(), "precision": "bf16", "augment": "none"})
    plain = run(splits, tmp_path / "plain", config)
    cached = run(splits, tmp_path / "cached", config, cache=FeatureCache(tmp_path / "features"))
    for ours, theirs in zip(scores(cached), scores(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2)
