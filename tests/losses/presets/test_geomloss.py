"""geomloss's kernel norms and their stand-in."""

from __future__ import annotations

import pytest
import torch

from tests.losses.presets import peers
from thawkit.errors import ThawkitError
from thawkit.losses.presets.geomloss import KERNELS, SamplesLoss
from thawkit.ops.pairwise import panels

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


@pytest.fixture(scope="module")
def library():
    return peers.library("geomloss")


def two_samples(*shape_and_rows, seed=0):
    *before, n, m, features = shape_and_rows
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*before, n, features, generator=generator)
    return x, torch.rand(*before, m, features, generator=generator) * 0.8 + 0.1


def weights(*shape, seed=0):
    w = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1
    return w / w.sum(-1, keepdim=True)


def test_arguments(library):
    peers.assert_same_arguments(SamplesLoss.__init__, library.SamplesLoss.__init__)
    peers.assert_same_arguments(SamplesLoss.forward, library.SamplesLoss.forward)


@every_kernel
@pytest.mark.parametrize("blur", [0.05, 0.5])
@pytest.mark.parametrize("size", [(1, 1, 2), (7, 12, 3), (40, 30, 5)])
def test_samples(library, size, blur, kernel):
    peers.assert_same(
        SamplesLoss(kernel, blur=blur),
        library.SamplesLoss(kernel, blur=blur, backend="tensorized"),
        *two_samples(*size),
        rtol=1e-4,
        atol=1e-5,
    )


@every_kernel
@pytest.mark.parametrize("column", [False, True])
def test_weights(library, kernel, column):
    x, y = two_samples(7, 12, 3)
    a, b = weights(7), weights(12, seed=1)
    if column:
        a, b = a[:, None], b[:, None]
    for arguments in (lambda a, x, b, y: (a, x, b, y), lambda a, x, b, y: (None, a, x, None, b, y)):
        ours, theirs = (
            lambda a, x, b, y, loss=loss, arguments=arguments: loss(*arguments(a, x, b, y))
            for loss in (SamplesLoss(kernel, blur=0.3), library.SamplesLoss(kernel, blur=0.3))
        )
        peers.assert_same(ours, theirs, a, x, b, y, rtol=1e-4, atol=1e-5)


@every_kernel
def test_batches(library, kernel):
    inputs = weights(4, 7), two_samples(4, 7, 12, 3)[0], weights(4, 12), two_samples(4, 7, 12, 3)[1]
    ours, theirs = SamplesLoss(kernel, blur=0.3), library.SamplesLoss(kernel, blur=0.3)
    peers.assert_same(ours, theirs, *inputs, rtol=1e-4, atol=1e-5)
    peers.assert_same(ours, theirs, inputs[1], inputs[3], rtol=1e-4, atol=1e-5)


@every_kernel
@pytest.mark.parametrize("before", [(), (3,)])
def test_potentials(library, kernel, before):
    x, y = two_samples(*before, 7, 12, 3)
    a, b = weights(*before, 7), weights(*before, 12)
    for place in (0, 1):
        ours, theirs = (
            lambda a, x, b, y, loss=loss, place=place: loss(a, x, b, y)[place]
            for loss in (
                SamplesLoss(kernel, blur=0.3, potentials=True),
                library.SamplesLoss(kernel, blur=0.3, potentials=True),
            )
        )
        got, expected = (f(*(t.double() for t in (a, x, b, y))) for f in (ours, theirs))
        torch.testing.assert_close(got, expected.reshape(got.shape), rtol=1e-9, atol=1e-12)
        assert got.shape == (a, b)[place].shape


def test_without_the_library():
    """1/2 |a - b|_k^2, entry by entry."""
    x, y = (s.double() for s in two_samples(5, 4, 3))
    a, b = weights(5).double(), weights(4).double()
    for kernel, k in (
        ("gaussian", lambda d: torch.exp(-(d**2) / (2 * 0.3**2))),
        ("laplacian", lambda d: torch.exp(-(d / 0.3).clamp_min(1e-4))),
        ("energy", lambda d: -d.clamp_min(1e-4)),
    ):
        z, w = torch.cat((x, y)), torch.cat((a, -b))
        expected = 0.5 * w @ k(torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")) @ w
        got = SamplesLoss(kernel, blur=0.3)(a, x, b, y)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@every_kernel
@pytest.mark.parametrize("before", [(), (3,)])
@pytest.mark.parametrize("potentials", [False, True])
def test_panels_change_nothing(potentials, before, kernel, monkeypatch):
    samples = two_samples(*before, 7, 12, 3)
    inputs = [z.double().requires_grad_() for z in (weights(*before, 7), samples[0], weights(*before, 12))]
    inputs.append(samples[1].double().requires_grad_())

    def found():
        value = SamplesLoss(kernel, blur=0.3, potentials=potentials)(*inputs)
        value = sum(v.square().sum() for v in value) if potentials else value.square().sum()
        return value, *torch.autograd.grad(value, inputs)

    expected = found()
    monkeypatch.setattr(panels, "_ENTRIES", 24)
    torch.testing.assert_close(found(), expected)


@every_kernel
@pytest.mark.parametrize("learned", [False, True])
def test_no_matrix_is_stored(learned, kernel):
    x, y = (z.requires_grad_() for z in two_samples(1500, 1400, 3))
    a, b = (weights(n).requires_grad_(learned) for n in (1500, 1400))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        SamplesLoss(kernel, blur=0.3)(a, x, b, y)
    assert sum(kept) < 1e6  # of the 8.4 MB of one block of pairs


@every_kernel
def test_half_precision_gives_float32(kernel):
    x, y = (s.bfloat16().requires_grad_() for s in two_samples(7, 12, 3))
    value = SamplesLoss(kernel, blur=0.3)(x, y)
    assert value.dtype == torch.float32
    value.backward()
    assert x.grad.dtype == torch.bfloat16


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: SamplesLoss(), "loss must be one of 'gaussian', 'laplacian', 'energy', got 'sinkhorn'"),
        (lambda: SamplesLoss("energy", blur=0), "blur must be positive"),
        (lambda: SamplesLoss("energy", kernel=torch.cdist), "kernel is supported at None only"),
        (lambda: SamplesLoss("energy", backend="multiscale"), "backend must be one of"),
        (lambda: SamplesLoss("energy")(X), "got 1 arguments"),
        (lambda: SamplesLoss("energy")(X, X[:, :1]), "x and y must have shapes"),
        (lambda: SamplesLoss("energy")(X, X[None]), "x and y must have shapes"),
        (lambda: SamplesLoss("energy")(X, X[:0]), "y must have at least 1 row"),
        (lambda: SamplesLoss("energy")(X[:3, 0], X, X[:, 0], X), "a must have one weight a row"),
        (lambda: SamplesLoss("energy")(X[:, 0], X[:, 0], X, None, X[:, 0], X), "l_x is supported at None"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ThawkitError, match=says):
        call()
