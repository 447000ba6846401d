"""Features kept in a file: the same training, no stale value, and what may happen to files."""

from __future__ import annotations

import math
import os
import pickle
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset

import thawkit
from thawkit.errors import ThawkitError, ThawkitWarning
from thawkit.frozen import CachedDataset, FeatureCache
from thawkit.frozen.cache import _Samples

pytestmark = pytest.mark.usefixtures("one_thread")

N, BATCH = 24, 8


class Images(Dataset):
    """Noise with labels, flipped and brightened at random with all three generators."""

    def __init__(self, size: int = 32, augment: bool = True, seed: int = 0, count: int = N) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 3, size, size, generator=generator)
        self.labels = torch.randint(0, 5, (count,), generator=generator).tolist()
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        if self.augment:
            if torch.rand(()) < 0.5:
                image = image.flip(-1)
            image = image * (1 + 0.2 * random.random()) + 0.1 * np.random.rand()  # noqa: NPY002
        return image, self.labels[index]


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=5)


def _frozen(build, name: str, policy: str = "head") -> nn.Module:
    model = _vit() if name == "vit" else build(name)
    torch.manual_seed(0)
    thawkit.freeze(model, policy, example=torch.zeros(2, 3, 32, 32))
    return model.train()


@pytest.fixture
def count(monkeypatch):
    """Count the samples that each run of a prefix took."""
    sizes: list[int] = []
    compute = CachedDataset._compute

    def counted(self, start, offset, samples):
        sizes.append(len(samples))
        compute(self, start, offset, samples)

    monkeypatch.setattr(CachedDataset, "_compute", counted)
    return sizes


def _losses(model, batches, epochs: int) -> list[float]:
    """Train what trains and return every loss; ``batches(epoch)`` gives (output, target)."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        for output, target in batches(epoch):
            loss = nn.functional.cross_entropy(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def _orders(epoch: int) -> list[list[int]]:
    """The batches of the prefix in a new order; a convolution rounds by a sample's place in its batch."""
    return np.random.default_rng(epoch).permutation(np.arange(N).reshape(-1, BATCH)).tolist()


def _cached_losses(model, cached, epochs: int = 4) -> list[float]:
    def batches(epoch: int):
        cached.set_epoch(epoch)
        for features, target in DataLoader(cached, batch_sampler=_orders(epoch)):
            yield cached.model(features), target

    return _losses(model, batches, epochs)


def _uncached_losses(model, dataset, views: int, epochs: int = 4) -> list[float]:
    samples = _Samples(dataset, 0)

    def batches(epoch: int):
        for rows in _orders(epoch):
            drawn = [samples.draw(epoch % views, row) for row in rows]
            yield model(torch.stack([image for image, _ in drawn])), torch.tensor([t for _, t in drawn])

    return _losses(model, batches, epochs)


@pytest.mark.parametrize(
    ("name", "policy"), [("resnet18", "head"), ("lite0", "head"), ("vit", "head"), ("resnet18", "last:1")]
)
def test_float32_losses_are_those_without_a_cache(build, tmp_path: Path, name: str, policy: str) -> None:
    cached_model, model = _frozen(build, name, policy), _frozen(build, name, policy)
    cached = FeatureCache(tmp_path, views=3, batch_size=BATCH).dataset(cached_model, Images())
    assert cached.cut is not None
    assert _cached_losses(cached_model, cached) == _uncached_losses(model, Images(), 3)
    for (key, ours), theirs in zip(
        cached_model.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key


def test_float16_losses_are_near_and_take_half_the_space(build, tmp_path: Path) -> None:
    exact, half = _frozen(build, "resnet18", "last:1"), _frozen(build, "resnet18", "last:1")
    whole = FeatureCache(tmp_path, batch_size=BATCH).dataset(exact, Images())
    small = FeatureCache(tmp_path, batch_size=BATCH, dtype="float16").dataset(half, Images())
    assert small[0][0].dtype == torch.float16
    sizes = [cached.file.path.stat().st_size - 2 * 4096 for cached in (whole, small)]
    assert sizes[1] < 0.52 * sizes[0]
    np.testing.assert_allclose(_cached_losses(half, small), _cached_losses(exact, whole), rtol=1e-2)


def test_features_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False).weight.data.fill_(1e5)
    data = torch.utils.data.TensorDataset(torch.ones(4, 4), torch.zeros(4))
    with pytest.raises(ThawkitError, match="exceed float16"):
        FeatureCache(tmp_path, dtype="float16").dataset(model, data)


def test_what_was_computed_is_found_again(build, tmp_path: Path, count) -> None:
    cache = FeatureCache(tmp_path, views=2, batch_size=BATCH)
    cached = cache.dataset(_frozen(build, "resnet18"), Images())
    assert count == [8, 8, 8]
    first = cached[5][0].clone()
    cached.set_epoch(1)
    assert count == [8] * 6
    assert not torch.equal(cached[5][0], first)
    cached.set_epoch(2)
    again = cache.dataset(_frozen(build, "resnet18"), Images())
    assert count == [8] * 6
    assert again.file.path == cached.file.path
    assert torch.equal(again[5][0], first)
    model = _frozen(build, "resnet18")
    model.fc.weight.data.mul_(2)  # the head is no part of the prefix
    assert cache.dataset(model, Images()).file.path == cached.file.path


def _weights(model: nn.Module) -> None:
    model.layer2[0].conv1.weight.data[0, 0, 0, 0] += 1e-3


def _statistics(model: nn.Module) -> None:
    model.bn1.running_mean[0] += 1e-3


def _structure(model: nn.Module) -> None:
    model.layer3[1].relu = nn.ReLU6()


@pytest.mark.parametrize("change", [_weights, _statistics, _structure])
def test_another_prefix_has_another_file(build, tmp_path: Path, count, change) -> None:
    cache = FeatureCache(tmp_path, batch_size=BATCH)
    model = _frozen(build, "resnet18")
    first = cache.dataset(model, Images())
    thawkit.unfreeze(model)
    change(model)
    thawkit.freeze(model, "head", example=torch.zeros(2, 3, 32, 32))
    second = cache.dataset(model, Images())
    assert second.file.path != first.file.path
    assert count == [8] * 6
    for _ in range(2):  # no less when asked again
        with pytest.raises(ThawkitError, match="what comes before the cut has changed"):
            first.set_epoch(1)


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"views": 2}, {}),
        ({"dtype": "float16"}, {}),
        ({"seed": 1}, {}),
        ({}, {"augment": False}),
        ({}, {"seed": 1}),
        ({}, {"count": N - 1}),
    ],
)
def test_other_settings_or_data_have_another_file(tmp_path: Path, settings, data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.ReLU(), nn.Linear(4, 5))
    model[1].requires_grad_(False)
    first = FeatureCache(tmp_path).dataset(model, Images())
    second = FeatureCache(tmp_path, **settings).dataset(model, Images(**data))
    assert second.file.path != first.file.path


def _small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, 5)).to(dtype)
    model[1].requires_grad_(False)
    return model


class Upcast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_other_arithmetic_has_another_file(tmp_path: Path, monkeypatch) -> None:
    model = _small()
    model.insert(2, Upcast())  # features of one dtype, however they were computed

    def path() -> Path:
        return FeatureCache(tmp_path).dataset(model, Images()).file.path

    paths = [path()]
    with torch.autocast("cpu", torch.bfloat16):
        paths.append(path())
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        paths.append(path())
    finally:
        torch.set_float32_matmul_precision(precision)
    with monkeypatch.context() as patch:
        patch.setattr(thawkit, "__version__", "another")
        paths.append(path())
    assert len(set(paths)) == 4
    assert path() == paths[0]


def test_another_seed_gives_other_views(tmp_path: Path) -> None:
    first, second = (FeatureCache(tmp_path, seed=seed).dataset(_small(), Images()) for seed in (0, 1))
    assert not any(torch.equal(first[i][0], second[i][0]) for i in range(N))


def test_rows_are_counted_from_either_end_and_end(tmp_path: Path) -> None:
    cached = FeatureCache(tmp_path, views=2).dataset(_small(), Images())
    cached.set_epoch(0)
    assert torch.equal(cached[-1][0], cached[N - 1][0])
    assert torch.equal(cached[-N][0], cached[0][0])
    for beyond in (N, -N - 1):
        with pytest.raises(IndexError):
            cached[beyond]
    assert len(list(cached)) == N  # which asks until there is no more


def test_data_that_cannot_be_pickled_need_a_key(tmp_path: Path) -> None:
    data = Images()
    data.transform = lambda x: x
    with pytest.raises(ThawkitError, match="give key="):
        FeatureCache(tmp_path).dataset(_small(), data)
    one = FeatureCache(tmp_path).dataset(_small(), data, key="a")
    two = FeatureCache(tmp_path).dataset(_small(), data, key="a")
    other = FeatureCache(tmp_path).dataset(_small(), data, key="b")
    assert one.file.path == two.file.path != other.file.path


def test_a_key_that_does_not_tell_data_apart_is_found_out(tmp_path: Path) -> None:
    FeatureCache(tmp_path).dataset(_small(), Images(seed=0), key="images")
    with pytest.raises(ThawkitError, match="does not hold what the model makes of sample 0"):
        FeatureCache(tmp_path).dataset(_small(), Images(seed=1), key="images")


class _Unsteady(Images):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.random.default_rng().random((3, 32, 32), np.float32)), 0


def test_random_numbers_from_elsewhere_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(ThawkitError, match="drawn twice"):
        FeatureCache(tmp_path).dataset(_small(), _Unsteady())


def test_views_of_data_that_are_not_random_are_said_to_be_of_no_use(tmp_path: Path) -> None:
    with pytest.warns(ThawkitWarning, match="views=1 gives as much as views=3"):
        FeatureCache(tmp_path, views=3).dataset(_small(), Images(augment=False))


def test_drawing_leaves_the_random_state(tmp_path: Path) -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    model = _small_without_seed()
    torch.manual_seed(7)
    FeatureCache(tmp_path).dataset(model, Images())
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002


def _small_without_seed() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.Linear(16, 5))
    model[1].requires_grad_(False)
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_view_of_the_epoch(tmp_path: Path, workers: int) -> None:
    cached = FeatureCache(tmp_path, views=2, batch_size=5, workers=workers).dataset(_small(), Images())
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(cached, batch_size=BATCH, **options)
    samples = _Samples(Images(), 0)
    for epoch in range(3):
        cached.set_epoch(epoch)
        features = torch.cat([batch for batch, _ in loader])
        images = torch.stack([samples.draw(epoch % 2, i)[0] for i in range(N)])
        torch.testing.assert_close(features, cached.model.model[:3](images))


def test_spawned_workers(tmp_path: Path) -> None:
    cached = FeatureCache(tmp_path).dataset(
        _small(), torchvision.datasets.FakeData(4, (3, 32, 32), 5, _tensor)
    )
    loader = DataLoader(cached, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    assert [len(features) for features, _ in loader] == [2, 2]


def _tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float().permute(2, 0, 1)


def test_keyword_arguments_and_masks(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    tokens = torch.randint(5, 50, (12, 7))
    mask = (torch.arange(7) < torch.randint(2, 8, (12, 1))).long()
    data = [
        {"input_ids": t, "attention_mask": m, "labels": i % 3}
        for i, (t, m) in enumerate(zip(tokens, mask, strict=True))
    ]
    example = {"input_ids": tokens[:2], "attention_mask": mask[:2]}
    report = thawkit.freeze(model, "last:1", example=example, cache=tmp_path)
    model.train()
    cached = report.cache.dataset(model, data)
    assert len(cached.cut.features) == 2
    batch = next(iter(DataLoader(cached, batch_size=12)))
    assert sorted(batch) == ["features", "labels"]
    expected = model(input_ids=tokens, attention_mask=mask).logits
    torch.testing.assert_close(cached.model(batch["features"]).logits, expected)


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(self.body(x).relu() * self.calls)


def test_a_model_without_a_cut_trains_as_usual(tmp_path: Path) -> None:
    model = _Counting()
    data = torch.utils.data.TensorDataset(torch.randn(N, 6), torch.randint(0, 5, (N,)))
    report = thawkit.freeze(model, "head", example=torch.randn(2, 6), cache=tmp_path)
    assert "feature cache: none, training goes on as usual" in str(report)
    cached = report.cache.dataset(model, data)
    assert cached.cut is None
    assert cached.reason
    assert not list(tmp_path.iterdir())
    cached.set_epoch(3)
    features, target = next(iter(DataLoader(cached, batch_size=BATCH)))
    assert torch.equal(features, data.tensors[0][:BATCH])
    calls = model.calls
    cached.model(features).sum().backward()
    assert model.calls == calls + 1
    assert pickle.loads(pickle.dumps(cached)).model is None  # a worker needs only the samples
    assert torch.equal(target, data.tensors[1][:BATCH])


def test_the_report_says_where_the_cut_is(build, tmp_path: Path) -> None:
    report = thawkit.freeze(build("resnet18"), "head", cache=tmp_path)
    assert "feature cache: keeps 512 a sample (2,048 bytes), before 'fc', which trains" in str(report)
    assert thawkit.freeze(build("resnet18"), "head").cache is None


def test_of_a_compiled_model_the_eager_one_is_cut(tmp_path: Path) -> None:
    model = _small()
    cached = FeatureCache(tmp_path).dataset(torch.compile(model), Images())
    assert cached.model.model is model
    assert cached.cut is not None


def test_channels_last_features_keep_their_layout(build, tmp_path: Path) -> None:
    model = _frozen(build, "resnet18", "last:1").to(memory_format=torch.channels_last)
    cached = FeatureCache(tmp_path, batch_size=BATCH).dataset(model, Images())
    images = torch.stack([_Samples(Images(), 0).draw(0, i)[0] for i in range(BATCH)])
    features = torch.stack([cached[i][0] for i in range(BATCH)])
    assert torch.equal(cached.model(features), model(images))


@pytest.mark.parametrize("how", ["thaw", "unfreeze", "train the prefix"])
def test_features_of_a_prefix_that_trains_are_refused(build, tmp_path: Path, how: str) -> None:
    model = _frozen(build, "resnet18")
    cached = FeatureCache(tmp_path).dataset(model, Images())
    features = torch.stack([cached[i][0] for i in range(2)])
    cached.model(features)
    if how == "thaw":
        thawkit.freeze(model, "last:1")
    elif how == "unfreeze":
        thawkit.unfreeze(model)
    else:
        model.layer1.requires_grad_()
    with pytest.raises(ThawkitError, match="make the cached data set anew"):
        cached.model(features)
    with pytest.raises(ThawkitError, match="make the cached data set anew"):
        cached.set_epoch(1)


def test_the_same_weights_loaded_again_are_no_change(build, tmp_path: Path) -> None:
    model = _frozen(build, "resnet18")
    cached = FeatureCache(tmp_path).dataset(model, Images())
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    cached.model(torch.stack([cached[i][0] for i in range(2)]))


def _fork(act) -> int:
    """Run ``act`` in a forked process; return its process id."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(1)
    return child


def _await(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_processes_share_the_work(tmp_path: Path) -> None:
    def act(log: Path) -> None:
        done: list[int] = []
        FeatureCache(tmp_path / "cache", batch_size=2).dataset(
            _small(), Images(), progress=lambda rows, _: done.append(rows)
        )
        log.write_text(" ".join(map(str, done)))
        os._exit(0)

    logs = [tmp_path / f"{i}" for i in range(3)]
    children = [_fork(lambda log=log: act(log)) for log in logs]
    assert [_wait(child) for child in children] == [0, 0, 0]
    rows = sorted(int(word) for log in logs for word in log.read_text().split())
    assert rows == list(range(2, N + 1, 2))  # each chunk once
    cached = FeatureCache(tmp_path / "cache", batch_size=2).dataset(_small(), Images())
    alone = FeatureCache(tmp_path / "alone", batch_size=2).dataset(_small(), Images())
    assert all(torch.equal(cached[i][0], alone[i][0]) for i in range(N))
    assert len(list((tmp_path / "cache").glob("*.features"))) == 1


def test_a_chunk_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    parent, held, go = os.getpid(), tmp_path / "held", tmp_path / "go"

    class Halting(Images):
        def __getitem__(self, index: int):
            if index == 4 and os.getpid() != parent:
                held.touch()
                _await(go)
            return super().__getitem__(index)

    def make(progress) -> CachedDataset:
        cache = FeatureCache(tmp_path / "cache", batch_size=2)
        return cache.dataset(_small(), Halting(), key="images", progress=progress)

    def act() -> None:
        make(None)
        os._exit(0)

    def note(rows: int, _: int) -> None:
        done.append(rows)
        if len(done) == N // 2 - 3:  # all that is left, and what the other process has still to do
            go.touch()

    done: list[int] = []
    child = _fork(act)
    _await(held)
    cached = make(note)
    assert done == list(range(8, N + 1, 2))
    assert _wait(child) == 0
    alone = FeatureCache(tmp_path / "alone", batch_size=2).dataset(_small(), Images())
    assert all(torch.equal(cached[i][0], alone[i][0]) for i in range(N))


def test_killed_at_any_chunk_and_resumed(tmp_path: Path, count) -> None:
    def act(chunks: int) -> None:
        def die(rows: int, _: int) -> None:
            if rows == 2 * chunks:
                os.kill(os.getpid(), signal.SIGKILL)

        FeatureCache(tmp_path / str(chunks), batch_size=2).dataset(_small(), Images(), progress=die)

    whole = FeatureCache(tmp_path / "whole", batch_size=2).dataset(_small(), Images())
    for chunks in (1, 5, 11):
        assert _wait(_fork(lambda n=chunks: act(n))) == -signal.SIGKILL
        count.clear()
        cached = FeatureCache(tmp_path / str(chunks), batch_size=2).dataset(_small(), Images())
        assert len(count) == N // 2 - chunks
        assert all(torch.equal(cached[i][0], whole[i][0]) for i in range(N))


def test_interrupted_and_resumed(tmp_path: Path, count) -> None:
    def stop(rows: int, _: int) -> None:
        if rows == 6:
            raise KeyboardInterrupt

    model = _small()
    state = {name: sorted(vars(m)) for name, m in model.named_modules()}
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, batch_size=2).dataset(model, Images(), progress=stop)
    assert state == {name: sorted(vars(m)) for name, m in model.named_modules()}
    FeatureCache(tmp_path, batch_size=2).dataset(model, Images())
    assert sum(count) == N


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("place", "message"),
    [(-70, "another checksum"), (30, "its header"), (4096 + 3, "has no row|its marks")],
    ids=["row", "header", "mark"],
)
def test_damage_is_refused(tmp_path: Path, place: int, message: str) -> None:
    cache = FeatureCache(tmp_path, batch_size=BATCH)
    path = cache.dataset(_small(), Images()).file.path
    _flip(path, place)
    if message.startswith("has no row"):  # a mark that is gone costs computing the chunk again
        assert cache.dataset(_small(), Images())[3][0].shape == (16,)
        content = bytearray(path.read_bytes())
        content[place] = 7
        path.write_bytes(content)
    with pytest.raises(ThawkitError, match=message):
        list(map(cache.dataset(_small(), Images()).__getitem__, range(N)))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    path = cache.dataset(_small(), Images()).file.path
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(ThawkitError, match=r"is damaged: .* bytes long, expected"):
        cache.dataset(_small(), Images())


def test_a_file_cut_short_while_it_is_open_is_refused(tmp_path: Path) -> None:
    cached = FeatureCache(tmp_path).dataset(_small(), Images())
    os.truncate(cached.file.path, 4096)
    for use in (lambda: cached[N - 1], cached.file.done):
        with pytest.raises(ThawkitError, match=r"is damaged: .* bytes long, expected"):
            use()


def test_max_bytes_refuses_and_makes_room(tmp_path: Path) -> None:
    with pytest.raises(ThawkitError, match="max_bytes: the features take"):
        FeatureCache(tmp_path, max_bytes=4096).dataset(_small(), Images())
    assert not list(tmp_path.glob("*.features"))
    size = FeatureCache(tmp_path).dataset(_small(), Images()).file.path.stat().st_size
    cache = FeatureCache(tmp_path, max_bytes=int(1.5 * size))
    used = cache.dataset(_small(), Images(seed=1))
    assert list(tmp_path.glob("*.features")) == [used.file.path]
    with pytest.raises(ThawkitError, match="files in use"):
        cache.dataset(_small(), Images(seed=2))
    used[0]


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path: Path, count) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    try:
        with pytest.raises(ThawkitError, match=r"no file of .* bytes can be made"):
            FeatureCache(tmp_path).dataset(_small(), Images())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert count == []
    assert not list(tmp_path.glob("*.features*"))


def test_bad_settings_are_named(tmp_path: Path) -> None:
    for settings, name in [
        ({"views": 0}, "views"),
        ({"dtype": "int8"}, "dtype"),
        ({"max_bytes": 0}, "max_bytes: expected None or a number of at least 1, got 0"),
        ({"max_bytes": "5"}, "max_bytes: expected None or a number of at least 1, got '5'"),
        ({"max_bytes": math.nan}, "max_bytes: expected None or a number of at least 1, got nan"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
    ]:
        with pytest.raises(ThawkitError, match=name):
            FeatureCache(tmp_path, **settings)
    with pytest.raises(ThawkitError, match="folder: expected a path, got 5"):
        FeatureCache(5)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(ThawkitError, match="is a file"):
        FeatureCache(tmp_path / "file")
    with pytest.raises(ThawkitError, match="at least one sample"):
        FeatureCache(tmp_path).dataset(_small(), [])
    with pytest.raises(ThawkitError, match="numbers or tensors of one shape beside"):
        FeatureCache(tmp_path).dataset(_small(), [(torch.zeros(3, 32, 32), "cat")])


def test_double_precision_and_other_dtypes_beside(tmp_path: Path) -> None:
    data = [
        (torch.randn(3, 32, 32).double(), i % 2 == 0, float(i), torch.ones(2, dtype=torch.int8))
        for i in range(4)
    ]
    cached = FeatureCache(tmp_path).dataset(_small(torch.float64), data)
    features, flag, number, vector = cached[2]
    assert (features.dtype, flag.dtype, number.dtype, vector.dtype) == (
        torch.float64,
        torch.bool,
        torch.float64,
        torch.int8,
    )
    assert (bool(flag), float(number), vector.tolist()) == (True, 2.0, [1, 1])


def test_features_of_autocast_are_used_under_autocast(build, tmp_path: Path) -> None:
    model = _frozen(build, "small_cnn")
    with torch.autocast("cpu", torch.bfloat16):
        cached = FeatureCache(tmp_path).dataset(model, Images(augment=False))
        batch = torch.stack([cached[i][0] for i in range(4)])
        assert cached.model(batch).shape == (4, 3)
    with pytest.raises(ThawkitError, match="computed under autocast; run this model under autocast as well"):
        cached.model(batch)
    plain = FeatureCache(tmp_path).dataset(model, Images(augment=False))
    batch = torch.stack([plain[i][0] for i in range(4)])
    assert plain.model(batch).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert plain.model(batch).shape == (4, 3)
