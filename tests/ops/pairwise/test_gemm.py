"""The pairwise engine's panels multiplied by torch's BLAS, and who is chosen to multiply them."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.ops.conftest import against_reference, relative_error, values_and_gradients
from tests.ops.pairwise.test_info_nce import clip_like
from tests.ops.pairwise.test_row_softmax import assert_same, problem, run
from tests.ops.pairwise.test_row_softmax_by_keys import many_keys
from thawkit import _C, ops
from thawkit.errors import ThawkitError
from thawkit.losses import functional as F
from thawkit.ops.pairwise import blas, gemm
from thawkit.ops.pairwise.row_softmax import LABELS, Columns

needs_blas = pytest.mark.skipif(bool(blas.problem()), reason=f"torch's BLAS {blas.problem()}")


@pytest.fixture
def torch_gemm(monkeypatch):
    monkeypatch.setenv("THAWKIT_GEMM", "torch")


@pytest.fixture
def fresh_choice():
    """Whatever was looked up is looked up again, in the test and after it."""

    def forget():
        blas.problem.cache_clear()
        gemm.measured_choice.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pairs(rows, keys, features):
    """No row is so short that its direction is all rounding."""
    return [torch.where(x < 0, x - 3, x + 3) if features == 1 else x for x in clip_like(rows, keys, features)]


SIZES = [(1, 1, 1), (1, 385, 1), (385, 385, 1), (13, 17, 5), (97, 1201, 3), (193, 385, 127), (700, 801, 33)]


@needs_blas
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_info_nce_equals_float64(torch_gemm, sizes, normalize):
    q, k = pairs(*sizes)
    scale = 7.0 if normalize else 0.7
    for reduction in ("none", "mean"):
        assert_same(
            *(
                values_and_gradients(
                    lambda q, k, r=reduction: F.info_nce(
                        q, k, logit_scale=scale, normalize=normalize, reduction=r
                    ),
                    *inputs,
                )
                for inputs in ((q, k), (q.double(), k.double()))
            ),
            tolerance=5e-6,
        )


@needs_blas
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("margin", [float("inf"), 0.3])
def test_all_that_the_row_softmax_takes(torch_gemm, threads, labels, margin, normalize):
    tensors = problem(131, 405, 23, seed=3)
    tensors["target"][::5] = -1
    if margin < float("inf"):
        del tensors["bias"]  # a margin is one of similarities
    columns = Columns(labels=labels, margin=margin, excluded=3)
    for reduce in (True, False):
        given = tensors if reduce else {n: x for n, x in tensors.items() if n != "row_weight"}
        options = {"columns": columns, "normalize": normalize, "reduce": reduce}
        assert_same(run(given, "cpu", **options), run(given, "reference", **options))


def pair_loss(kind, normalize):
    scale = 8.0 if normalize else 0.5
    if kind == "siglip":
        return lambda x, y: F.siglip(x, y, logit_scale=scale, logit_bias=-3.0, normalize=normalize)
    if kind == "clip":
        return lambda x, y: F.clip(x, y, logit_scale=scale, normalize=normalize)
    return lambda x, y: F.nt_xent(x, y, temperature=1 / scale, normalize=normalize)


@needs_blas
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["clip", "siglip", "nt_xent"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 3), (97, 97, 64), (385, 385, 1), (391, 391, 33)])
def test_losses_of_all_pairs_equal_float64(torch_gemm, threads, sizes, kind, normalize):
    x, y = pairs(*sizes)
    loss = pair_loss(kind, normalize)
    assert_same(values_and_gradients(loss, x, y), values_and_gradients(loss, x.double(), y.double()))


@needs_blas
@pytest.mark.parametrize("sizes", [(2, 3, 1), (36, 41, 17), (205, 300, 65)])
def test_mmd_equals_float64(torch_gemm, threads, sizes):
    assert max(against_reference(F.mmd, *clip_like(*sizes))) < 1e-5


@needs_blas
def test_a_sum_too_large_for_every_thread_is_shared(torch_gemm, threads):
    tensors = problem(5, 10_000, 900, 3)
    del tensors["target"]  # with targets the keys are shared out
    assert_same(run(tensors, "cpu"), run(tensors, "reference"))


@needs_blas
@pytest.mark.parametrize("sizes", [(1, 500, 1), (95, 501, 33), (193, 700, 70), (400, 500, 16)])
def test_many_keys_equal_float64(torch_gemm, threads, sizes):
    rows, keys, features = sizes
    tensors = many_keys(rows, features, keys=keys)
    for name in (None, "bias", "row_weight"):
        tensors.pop(name, None)
        reduce = name != "row_weight"
        assert_same(run(tensors, "cpu", reduce=reduce), run(tensors, "reference", reduce=reduce))


@needs_blas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["info_nce", "clip", "siglip", "nt_xent"])
def test_half_precision_is_multiplied_as_float32(torch_gemm, kind, dtype):
    x, y = clip_like(97, 97, 33, dtype=dtype)
    loss = F.info_nce if kind == "info_nce" else pair_loss(kind, True)
    got = values_and_gradients(loss, x, y)
    truth = values_and_gradients(loss, x.double(), y.double())
    assert [g.dtype for g in got] == [torch.float32, dtype, dtype]
    assert relative_error(got[0], truth[0]) < 5e-6
    assert max(relative_error(a, b) for a, b in zip(got[1:], truth[1:], strict=True)) < torch.finfo(dtype).eps


@needs_blas
def test_no_rows_sum_to_nothing(torch_gemm):
    q, k = torch.zeros(0, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = F.info_nce(q, k, reduction="sum")
    dq, dk = torch.autograd.grad(loss, (q, k))
    assert (loss.item(), dq.shape) == (0, (0, 4))
    assert not dk.any()


@needs_blas
@pytest.mark.parametrize("place", [(0, 3), (1, 5), (1, 45)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_special_values_come_out_where_torch_has_them(torch_gemm, place, value):
    inputs = clip_like(41, 50, 9)
    inputs[place[0]][place[1], 2] = value
    loss = lambda q, k: F.info_nce(q, k, logit_scale=2.0, normalize=False, reduction="none")
    got = values_and_gradients(loss, *inputs)
    with ops.use_backend("reference"):
        expected = values_and_gradients(loss, *inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-5)


@needs_blas
@pytest.mark.parametrize("kind", ["info_nce", "clip", "siglip", "nt_xent"])
def test_every_run_gives_the_same(torch_gemm, threads, kind):
    x, y = clip_like(501, 501, 65)
    loss = F.info_nce if kind == "info_nce" else pair_loss(kind, True)
    first, *others = (values_and_gradients(loss, x, y) for _ in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@needs_blas
@pytest.mark.parametrize(("name", "loss"), [("row_softmax", F.info_nce), ("pairs", F.clip)])
def test_one_packing_serves_all_products(monkeypatch, name, loss):
    keys, depth = 500, 65
    floats = []
    workspace = getattr(_C, f"{name}_workspace")
    monkeypatch.setattr(_C, f"{name}_workspace", lambda *a: (floats.append(workspace(*a)), floats[-1])[1])
    for name in gemm.GEMMS:
        monkeypatch.setenv("THAWKIT_GEMM", name)
        values_and_gradients(loss, *clip_like(keys, keys, depth))
    own, torchs = floats
    tile = 2 * _C.cpu_lanes()
    assert own - torchs == pytest.approx(-(-depth // tile) * tile * keys, abs=16)


@needs_blas
def test_products_stay_in_their_thread(torch_gemm, threads, fresh_choice):
    """Each is told so, and afterwards what was said before holds again."""
    sgemm, setter = blas.addresses()
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
    told = []
    spy = kind(lambda count: (told.append(count), kind(setter)(count))[1])
    assert not blas.problem()
    _C.set_blas(sgemm, ctypes.cast(spy, ctypes.c_void_p).value)
    kind(setter)(2)
    try:
        values_and_gradients(F.info_nce, *clip_like(200, 1000, 64))
        assert kind(setter)(0) == 2
    finally:
        kind(setter)(0)
    assert told.count(1) * 2 == len(told) >= 6
    assert set(told) <= {1, 2, 0}  # 0: other threads had no number of their own


def test_the_environment_overrides_the_table(monkeypatch):
    for isa in _C.cpu_isas().split():
        monkeypatch.setattr(_C, "cpu_isa", lambda isa=isa: isa)
        monkeypatch.setenv("THAWKIT_GEMM", "own")
        assert gemm.choose() == ("own", "THAWKIT_GEMM=own")
        for unset in ("", None):
            if unset is None:
                monkeypatch.delenv("THAWKIT_GEMM")
            else:
                monkeypatch.setenv("THAWKIT_GEMM", unset)
            expected = "torch" if isa == "baseline" and not blas.problem() else "own"
            assert gemm.choose().gemm == expected


def test_other_values_are_named(monkeypatch):
    monkeypatch.setenv("THAWKIT_GEMM", "mkl")
    with pytest.raises(ThawkitError, match="THAWKIT_GEMM must be one of own, torch, got 'mkl'"):
        F.info_nce(torch.ones(2, 3), torch.ones(2, 3))


def test_a_torch_without_the_functions_is_named(monkeypatch, fresh_choice):
    monkeypatch.setattr(blas, "_SYMBOLS", ("sgemm_", "no_such_function"))
    choice = gemm.measured_choice("baseline")
    assert choice.gemm == "own"
    assert "no_such_function" in choice.why
    monkeypatch.setenv("THAWKIT_GEMM", "torch")
    with pytest.raises(ThawkitError, match=r"THAWKIT_GEMM=torch needs .*no_such_function.* of MKL"):
        F.info_nce(torch.ones(2, 3), torch.ones(2, 3))
