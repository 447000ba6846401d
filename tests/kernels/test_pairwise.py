"""The pairwise losses on Triton kernels, interpreted (or on a GPU, where there is one), against float64."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.kernels.conftest import counted_products
from tests.ops.conftest import relative_error, values_and_gradients
from tests.ops.pairwise.panel_losses import losses

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops.dispatch import memory
from thawkit.ops.pairwise import gpu
from thawkit.ops.pairwise import gpu_panels as engine

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bfloat16 needs a mended interpreter, or a GPU: tests/gpu_proof
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3}


def _random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def _against_float64(function, *inputs):
    with ops.use_backend("triton"):
        got = values_and_gradients(function, *inputs)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, *(x.double() for x in inputs))
    for a, b in zip(got, truth, strict=True):
        assert relative_error(a, b) < TOLERANCE[inputs[0].dtype]


@pytest.fixture(params=["one panel", "panels of a few rows"])
def panels(request, monkeypatch):
    if request.param != "one panel":
        monkeypatch.setattr(engine, "PANEL_BYTES", 2000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 7, 3), (64, 64, 16), (70, 131, 33), (9, 30, 200)])
def test_info_nce_equals_float64(sizes, normalize, dtype):
    rows, keys, features = sizes
    q, k = _random(rows, features, dtype=dtype), _random(keys, features, dtype=dtype, seed=1)
    scale = torch.tensor(3.0 if normalize else 0.2, device=DEVICE)
    _against_float64(lambda q, k, s: F.info_nce(q, k, logit_scale=s, normalize=normalize), q, k, scale)


LOSSES = losses(DEVICE)


@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_equal_float64(loss):
    _against_float64(loss, _random(20, 24), _random(53, 24, seed=1), torch.tensor(4.0, device=DEVICE))


def test_rows_of_weight_zero_may_hold_anything():
    q, k = _random(6, 5), _random(9, 5, seed=1)
    q[2] = torch.nan
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0], device=DEVICE)
    with ops.use_backend("triton"):
        value, dq, dk = values_and_gradients(lambda q, k: F.info_nce(q, k, sample_weight=weight), q, k)
    assert value.isfinite()
    assert dk.isfinite().all()
    assert (dq[2] == 0).all()


LAUNCHES = "softmax_forward", "info_nce_backward_queries", "info_nce_backward_keys"


def test_unwanted_gradients_launch_nothing(monkeypatch):
    from thawkit.kernels import pairwise as kernels

    launched = []
    for name in LAUNCHES:
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, f=original, n=name: (launched.append(n), f(*a)))
    q, k = _random(8, 4, dtype=torch.float16), _random(8, 4, dtype=torch.float16, seed=1)
    with ops.use_backend("triton"):
        F.info_nce(q, k)
        assert launched == ["softmax_forward"]
        launched.clear()
        F.info_nce(q, k.clone().requires_grad_()).backward()
    assert launched == ["softmax_forward", "info_nce_backward_keys"]


@pytest.mark.parametrize(
    "loss", [F.info_nce, F.clip, functools.partial(F.siglip, logit_scale=2.0, logit_bias=-1.0)]
)
def test_a_frozen_tower_costs_no_product(loss, monkeypatch):
    """Of the three products of a panel, one is made without gradients, two for one side, three for both."""
    made = counted_products(monkeypatch, engine)
    for needs, products in (((), 1), ((0,), 2), ((1,), 2), ((0, 1), 3)):
        made.clear()
        towers = [_random(8, 4, seed=s).requires_grad_(s in needs) for s in (0, 1)]
        with ops.use_backend("triton"):
            loss(*towers)
        assert len(made) == products


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, gap: F.info_nce(x, y, logit_scale=gap, normalize=False, reduction="sum"),
        lambda x, y, gap: F.clip(x, y, logit_scale=gap, normalize=False, reduction="sum"),
        lambda x, y, gap: F.siglip(
            x, y, logit_scale=2 * gap, logit_bias=-_GAP, normalize=False, reduction="sum"
        ),
    ],
    ids=["info_nce", "clip", "siglip"],
)
def test_slopes_that_float16_holds_but_coarsely(loss):
    """Each is about exp(-15.5), three times the smallest float16, yet the gradient is an ordinary number."""
    rows = torch.ones(1, 1)
    for _ in range(4):
        rows = torch.cat((torch.cat((rows, rows), 1), torch.cat((rows, -rows), 1)))
    rows = (rows / 256).to(DEVICE, torch.float16)  # 16 orthogonal ones
    gap = _GAP * 256**2 / 16
    _against_float64(lambda x, y: loss(x, y, gap), rows, rows.clone())


def test_a_bias_gradient_that_float16_does_not_hold():
    """Slopes of float16 are stored 4096 times as large, and those of the one class that is have one sign."""
    x, w = _random(40, 8, dtype=torch.float16), _random(9, 8, dtype=torch.float16, seed=1)
    bias, target = torch.zeros(9, device=DEVICE), torch.zeros(40, dtype=torch.int64, device=DEVICE)
    loss = lambda x, w, b: F.linear_cross_entropy(0.1 * x, w, target, linear_bias=b)
    _against_float64(loss, x, w, bias)


_GAP = 15.5  # between a pair's logit and the others


_FUSED = {
    "info_nce": F.info_nce,
    "clip": F.clip,
    "siglip": lambda x, y, logit_scale, **options: F.siglip(
        x, y, logit_scale=logit_scale, logit_bias=-logit_scale, **options
    ),
    "nt_xent": lambda x, y, logit_scale, **options: F.nt_xent(x, y, temperature=1 / logit_scale, **options),
}


@pytest.mark.parametrize("memory", ["auto", "minimal"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", _FUSED.values(), ids=_FUSED)
def test_fused_losses_equal_float64_and_make_no_panel(loss, reduction, memory, monkeypatch):
    def panels(*arguments):
        raise AssertionError("a panel was made")

    monkeypatch.setattr(gpu, "panels", panels)
    x, y = (_random(70, 33, dtype=torch.float16, seed=s) for s in (0, 1))
    with ops.use_memory(memory):
        _against_float64(
            lambda x, y, s: loss(x, y, logit_scale=s, reduction=reduction),
            x, y, torch.tensor(4.0, device=DEVICE),
        )  # fmt: skip


def test_minimal_memory_makes_small_panels_and_is_named_in_errors(monkeypatch):
    assert engine.panel_height(10**6, 1 << 16, 768) == 768
    with ops.use_memory("minimal"):
        assert engine.panel_height(10**6, 1 << 16, 768) == 16
    with pytest.raises(ThawkitError, match="memory must be one of auto, minimal"), ops.use_memory("least"):
        pass
    monkeypatch.setenv("THAWKIT_MEMORY", "least")
    with pytest.raises(ThawkitError, match="THAWKIT_MEMORY must be one of"):
        F.clip(_random(3, 2), _random(3, 2))


def test_memory_decides_who_makes_siglips_products_of_many_features(monkeypatch):
    made = counted_products(monkeypatch, engine)
    x, y = (_random(9, 128, dtype=torch.float16, seed=s) for s in (0, 1))
    for name, on_panels in (("auto", True), ("minimal", False)):
        made.clear()
        with ops.use_backend("triton"), ops.use_memory(name):
            F.siglip(x, y)
        assert bool(made) == on_panels


def test_a_backward_pass_goes_by_the_memory_of_its_forward_pass(monkeypatch):
    heard: list[str] = []
    height = engine.panel_height
    monkeypatch.setattr(engine, "panel_height", lambda *sizes: (heard.append(memory()), height(*sizes))[1])
    x, y = (_random(9, 4, seed=s).requires_grad_() for s in (0, 1))
    with ops.use_backend("triton"):
        with ops.use_memory("minimal"):
            loss = F.info_nce(x, y, reduction="none")
        of_forward = len(heard)
        loss.sum().backward()
    assert of_forward
    assert heard[of_forward:]
    assert set(heard) == {"minimal"}
