"""MMD on Triton kernels, interpreted (or on a GPU, where there is one), against float64."""

from __future__ import annotations

import math

import pytest
import torch
from tests.kernels.conftest import counted_products
from tests.ops.conftest import relative_error, values_and_gradients
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thawkit import ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops.pairwise import gpu_mmd as engine
from thawkit.ops.pairwise import gpu_panels, triton_mmd

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bfloat16 is multiplied by torch, not by Triton: the interpreter need not be mended. Slopes of half precision
# are bfloat16.
VALUE = {torch.float32: 5e-6, torch.float16: 2e-5, torch.bfloat16: 2e-5}
GRADIENT = {torch.float32: 5e-6, torch.float16: 8e-3, torch.bfloat16: 8e-3}


def _random(*shape, dtype=torch.float32, seed=0, shift=0.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift).to(DEVICE, dtype)


def _samples(n=20, m=33, features=7, dtype=torch.float32):
    return _random(n, features, dtype=dtype), _random(m, features, dtype=dtype, seed=1, shift=0.5)


def _against_float64(function, *inputs, slack=1):
    with ops.use_backend("triton"):
        got = values_and_gradients(function, *inputs)
    with ops.use_backend("reference"):
        truth = values_and_gradients(function, *(x.double() for x in inputs))
    dtype = inputs[0].dtype
    for a, b, tolerance in zip(got, truth, (VALUE, *[GRADIENT] * len(inputs)), strict=True):
        assert relative_error(a, b) < slack * tolerance[dtype]


@pytest.fixture(params=["one tile", "tiles of a few rows"])
def tiles(request, monkeypatch):
    if request.param != "one tile":
        monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 3000)


KERNELS = {
    "rbf": {},
    "rbf, four times": {"bandwidths": (4.0, 3)},
    "rbf, median": {"bandwidths": "median"},
    "laplace": {"kernel": "laplace"},
    "imq": {"kernel": "imq"},
    "energy": {"kernel": "energy"},
    "poly": {"kernel": "poly"},
}


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", GRADIENT)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("options", KERNELS.values(), ids=KERNELS)
def test_mmd_equals_float64(options, estimator, dtype):
    _against_float64(lambda x, y: F.mmd(x, y, estimator=estimator, **options), *_samples(dtype=dtype))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 1), (64, 64, 16), (70, 5, 33)])
def test_mmd_of_any_size(sizes):
    _against_float64(F.mmd, *_samples(*sizes))


OPTIONS = {
    "weights": {"weights": (torch.linspace(0, 2, 20), torch.linspace(2, 1, 33))},
    "classes": {"class_conditional": (torch.arange(20) % 4, torch.arange(33) % 5)},
    "a linear kernel of classes": {
        "class_conditional": (torch.arange(20) % 4, torch.arange(33) % 5),
        "kernel": "linear",
    },
}


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_pairs_count(options, estimator):
    options = {
        name: tuple(x.to(DEVICE) for x in value) if isinstance(value, tuple) else value
        for name, value in options.items()
    }
    _against_float64(lambda x, y: F.mmd(x, y, estimator=estimator, **options), *_samples(), slack=2)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq"])
def test_learned_bandwidths(kernel):
    x, y = _samples()
    bandwidths = torch.tensor([0.5, 2.0, 3.0], device=DEVICE)
    _against_float64(lambda x, y, s: F.mmd(x, y, kernel=kernel, bandwidths=s), x, y, bandwidths, slack=2)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", GRADIENT)
@pytest.mark.parametrize(
    "kernels", [("rbf", "rbf"), ("laplace", "poly"), ("energy", "rbf", "linear"), ("imq",) * 8]
)
def test_joint_mmd(kernels, dtype):
    samples = []
    for i in range(len(kernels)):
        samples += [_random(12, 3 + i, dtype=dtype, seed=i), _random(9, 3 + i, dtype=dtype, seed=20 + i)]

    def joint(*samples):
        return F.joint_mmd(samples[::2], samples[1::2], kernel=list(kernels))

    _against_float64(joint, *samples, slack=2)


@pytest.mark.usefixtures("tiles")
def test_local_mmd():
    x, y = _samples()
    labels = torch.arange(20, device=DEVICE) % 4
    shares = _random(33, 4, seed=2).softmax(1)
    _against_float64(lambda x, y: F.local_mmd(x, y, labels, shares.to(x.dtype)), x, y, slack=2)


@pytest.mark.parametrize("dtype", GRADIENT)
@pytest.mark.parametrize("kernel", ["rbf", "energy"])
def test_a_common_shift_takes_no_digits(kernel, dtype):
    shift = 64 if dtype == torch.bfloat16 else 512
    x, y = (
        (torch.randint(-8, 8, (n, 6), generator=torch.Generator().manual_seed(n)) / 2 + shift).to(
            DEVICE, dtype
        )
        for n in (20, 33)
    )
    _against_float64(lambda x, y: F.mmd(x, y, kernel=kernel), x, y)


@pytest.mark.parametrize("kernel", ["rbf", "laplace", "energy"])
@pytest.mark.parametrize("size", [1e20, 1e-12])
def test_rows_whose_squares_leave_float32(size, kernel):
    x, y = _samples()
    _against_float64(lambda x, y: F.mmd(x, y, kernel=kernel), x * size, y * size, slack=2)


@pytest.mark.parametrize("kernel", ["rbf", "laplace", "imq"])
@pytest.mark.parametrize("size", [1e16, 1e-12])
def test_learned_bandwidths_of_rows_whose_squares_leave_float32(size, kernel):
    x, y = _samples()
    bandwidths = torch.tensor([0.5, 2.0, 3.0], device=DEVICE)
    loss = lambda x, y, s: F.mmd(x, y, kernel=kernel, bandwidths=s)
    _against_float64(loss, x * size, y * size, bandwidths * size, slack=2)


@pytest.mark.parametrize("bandwidths", [torch.tensor([0.5, 2.0]), "mean"])
def test_a_row_far_away_leaves_the_distances_of_others_alone(bandwidths):
    x, y = _samples(60, 70, 8)
    x[0] *= 1e5
    truth = F.mmd(x.double(), y.double(), bandwidths=bandwidths)
    with ops.use_backend("triton"):
        got = F.mmd(x, y, bandwidths=bandwidths)
    # of up to five kernels near 1 that cancel
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["laplace", "energy"])
def test_equal_rows_have_no_slope(kernel):
    x, y = _samples()
    y = torch.cat((y, x[:5]))
    _against_float64(lambda x, y: F.mmd(x, y, kernel=kernel), x, y)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_special_values_spread(value):
    x, y = _samples()
    x[3, 1] = value
    with ops.use_backend("triton"):
        assert F.mmd(x, y, bandwidths=torch.tensor([2.0], device=DEVICE)).isnan()


def test_more_layers_than_the_kernel_takes_are_left_to_the_definition():
    layers = [_random(5, 3, seed=i) for i in range(18)]
    joint = lambda: F.joint_mmd(layers[:9], layers[9:])
    with ops.use_backend("reference"):
        expected = joint()
    torch.testing.assert_close(joint(), expected)
    with ops.use_backend("triton"), pytest.raises(ThawkitError, match="forced"):
        joint()


@pytest.mark.parametrize("learned", [False, True])
def test_operator_is_well_formed(learned):
    x, y = _samples(9, 6, 4)
    rates = torch.tensor([0.5, 2.0], dtype=torch.float64, device=DEVICE)
    kernels, numbers = ["rbf"], [0.0, 0.0, 1.0, 0.0]
    arguments = (
        [x, y], [rates], None, None, None, kernels, numbers, False, [True], [learned], "triton", "auto",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.thawkit.mmd.default, arguments)


def test_mmd_compiles_without_graph_breaks():
    step = lambda x, y: F.mmd(x * 2, y) + 1
    inputs = [x.requires_grad_() for x in _samples()]
    with ops.use_backend("triton"):
        expected = torch.autograd.grad(step(*inputs), inputs)
        got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    torch.testing.assert_close(got, expected)


def test_minimal_memory_makes_small_tiles():
    assert engine._sides(10**5, 2) == (1024, 4096)
    with ops.use_memory("minimal"):
        assert engine._sides(10**5, 2) == (512, 1024)


def test_a_frozen_sample_costs_no_product(monkeypatch):
    """Without gradients one product a tile, with them another, and one more where it is mirrored."""
    made = counted_products(monkeypatch, engine)
    monkeypatch.setattr(gpu_panels, "PANEL_BYTES", 4 * 2 * 32 * 32)
    for need, products in ((False, 3), (True, 3 + 3 + 1)):  # 53 rows: two tiles on the diagonal, one beside
        made.clear()
        x, y = _samples()
        with ops.use_backend("triton"):
            F.mmd(x.requires_grad_(need), y)
        assert len(made) == products


class _Allocated(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once."""

    def __init__(self):
        self.live, self.most = {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for x in tree_leaves(results):
            if isinstance(x, torch.Tensor):
                reference = torch.multiprocessing.reductions.StorageWeakRef(x.untyped_storage())
                self.live[reference.cdata] = reference, x.untyped_storage().nbytes()
        self.live = {key: kept for key, kept in self.live.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_large_samples(dtype, monkeypatch):
    """Twice 100,000 rows of 512 features, 5 bandwidths and gradients: counted on tensors without data."""
    from thawkit.kernels import mmd as epilogue

    monkeypatch.setattr(epilogue, "tile", lambda *arguments: None)  # it works in place
    n, features = 100_000, 512
    samples = [torch.empty(n, features, dtype=dtype, device="meta") for _ in range(2)]
    rates = torch.empty(5, dtype=torch.float64, device="meta")
    numbers = [1.0, 1.0, 1.0, 0.0]
    with _Allocated() as allocated:
        triton_mmd.mmd(samples, [rates], None, None, None, ["rbf"], numbers, False, [True], [False])
    given = 2 * samples[0].nbytes
    assert 3 * given < given + allocated.most < 4e9
