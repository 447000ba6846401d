"""Frozen models inside what people put around models: values and gradients of the plain model inside it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import thawkit
from tests.frozen.small_models import MODELS, logits_of, settle, some_inputs
from thawkit.frozen.extension import in_stock_form

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.tensor([0, 1, 2, 3])
CASES = [
    ("resnet", "bias", None),
    ("functional", "lora:2", None),
    ("functional", "channels:0.5", None),
    ("vit", "bias", None),
    ("vit", "all", 8),
    ("bert", "lora:2", None),
    ("gpt2", "channels:0.5", None),
]


class Case(NamedTuple):
    """A frozen model in evaluation mode, a plain one that trains the same, and inputs for both."""

    model: nn.Module
    plain: nn.Module
    inputs: Tensor
    exact: bool


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def made(request, stock_form) -> Case:
    family, policy, act_bits = request.param
    torch.manual_seed(0)
    model, inputs = MODELS[family](), some_inputs(family)
    settle(model, inputs)
    thawkit.freeze(model, policy, example=inputs, act_bits=act_bits)
    model.eval()
    return Case(model, stock_form(model), inputs, act_bits is None)


@pytest.fixture
def case(made: Case) -> Case:
    return Case(copy.deepcopy(made.model), copy.deepcopy(made.plain), made.inputs, made.exact)


def _run(model: nn.Module, call: Callable[[Tensor], object], inputs: Tensor) -> dict[str, Tensor]:
    """The logits, and the gradients of what trains in ``model``, which ``call`` runs."""
    model.zero_grad()
    logits = logits_of(call(inputs))
    F.cross_entropy(logits.double(), LABELS).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() <= {n for n, p in model.named_parameters() if p.requires_grad}
    return {"logits": logits.detach(), **gradients}


def _expected(case: Case) -> dict[str, Tensor]:
    """What the plain model gives, or, where saving is lossy, the frozen one alone."""
    if not case.exact:
        return _run(case.model, case.model, case.inputs)
    with in_stock_form():
        return _run(case.plain, case.plain, case.inputs)


def _assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert len(ours) > 1
    largest = max(value.norm().item() for value in theirs.values())
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-4 * value.norm() + 1e-6 * largest, name


@pytest.mark.parametrize("made", [CASES[i] for i in (0, 2, 4, 5)], indirect=True, ids=str)
def test_compiled_in_one_graph(case: Case) -> None:
    """What is compiled saves by the compiler's own choice, so nothing is lossy there."""
    torch._dynamo.reset()
    compiled = torch.compile(case.model, backend="aot_eager", fullgraph=True)
    with in_stock_form():
        expected = _run(case.plain, case.plain, case.inputs)
    _assert_close(_run(case.model, compiled, case.inputs), expected)


def test_exported(case: Case) -> None:
    program = torch.export.export(case.model, (case.inputs,), strict=False).module()
    with torch.no_grad():
        ours, theirs = (logits_of(f(case.inputs)) for f in (program, case.plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", [CASES[i] for i in (1, 6)], indirect=True, ids=str)
def test_onnx(case: Case) -> None:
    program = torch.onnx.export(case.model, (case.inputs,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (ours,) = session.run(None, {session.get_inputs()[0].name: case.inputs.numpy()})
    with torch.no_grad():
        theirs = logits_of(case.plain(case.inputs))
    torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4)


def test_moving_average(case: Case) -> None:
    averages = []
    for model in (case.model, case.plain):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)).eval()
        for _ in range(3):
            average(case.inputs)  # what frozen layers keep of their weights is made
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.1 if p.requires_grad else 1.0)
            average.update_parameters(model)
        averages.append(logits_of(average(case.inputs)))
    torch.testing.assert_close(*averages, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(case: Case, reentrant: bool) -> None:
    expected = _expected(case)
    asks = case.inputs.is_floating_point()
    if reentrant and not asks:
        pytest.skip("reentrant checkpointing passes gradients on only where an input asks for one")

    def call(inputs: Tensor) -> object:
        return checkpoint(case.model, inputs.clone().requires_grad_(asks), use_reentrant=reentrant)

    _assert_close(_run(case.model, call, case.inputs), expected)


def test_channels_last(case: Case) -> None:
    if case.inputs.dim() != 4:
        pytest.skip("no images")
    expected = _expected(case)
    model = case.model.to(memory_format=torch.channels_last)
    ours = _run(model, model, case.inputs.to(memory_format=torch.channels_last))
    if not case.exact:  # groups of values that are rounded together lie otherwise
        ours, expected = ({"logits": r["logits"], "head.bias": r["head.bias"]} for r in (ours, expected))
    _assert_close(ours, expected)


def test_copies(case: Case) -> None:
    expected = _expected(case)
    stream = io.BytesIO()
    torch.save(case.model, stream)
    stream.seek(0)
    pickled = pickle.loads(pickle.dumps(case.model))
    for clone in (copy.deepcopy(case.model), pickled, torch.load(stream, weights_only=False)):
        _assert_close(_run(clone, clone, case.inputs), expected)
        thawkit.unfreeze(clone)
        assert not any("thawkit" in type(module).__module__ for module in clone.modules())


@pytest.mark.parametrize("write", ["load_state_dict", "in place", "data"])
def test_weights_that_change_after_they_were_laid_out(case: Case, write: str) -> None:
    _run(case.model, case.model, case.inputs)
    changed = {k: v * 1.1 + 0.01 if v.is_floating_point() else v for k, v in case.plain.state_dict().items()}
    for model in (case.model, case.plain):
        if write == "load_state_dict":
            model.load_state_dict(changed)
            continue
        with torch.no_grad():
            for parameter in model.parameters():
                (parameter.data if write == "data" else parameter).add_(0.01)
    _assert_close(_run(case.model, case.model, case.inputs), _expected(case))


def test_hooks(case: Case) -> None:
    """Forward hooks of every leaf see the plain values, backward hooks of linear layers their gradients."""
    seen: list[dict[tuple[str, str], Tensor]] = []
    for model in (case.model, case.plain):
        log: dict[tuple[str, str], Tensor] = {}
        seen.append(log)
        for name, module in model.named_modules():
            if next(module.children(), None) is not None or getattr(module, "inplace", False):
                continue
            module.register_forward_hook(
                lambda _, args, y, name=name, log=log: log.update({(name, "value"): y.detach().clone()})
            )
            if isinstance(module, nn.Linear):
                module.register_full_backward_hook(
                    lambda _, to, grads, name=name, log=log: log.update({(name, "gradient"): grads[0]})
                )
    expected = _expected(case)
    _assert_close(_run(case.model, case.model, case.inputs), expected)
    if not case.exact:
        with in_stock_form():
            _run(case.plain, case.plain, case.inputs)
    ours, theirs = seen
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if key[1] == "value" or case.exact:
            assert (ours[key] - value).norm() <= 1e-4 * value.norm() + 1e-5, key


def _saved(case: Case, model: nn.Module) -> tuple[int, list[tuple[int, ...]]]:
    """Bytes that the graph holds beside what exists without it, and the shapes of what holds them."""
    own = [*model.parameters(), *model.buffers(), case.inputs]
    known = {t.untyped_storage()._cdata for t in own}
    held: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in known:
            held[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = logits_of(model(case.inputs))
    bytes_of = sum(x.untyped_storage().nbytes() for x in held.values())
    del logits
    return bytes_of, [tuple(x.shape) for x in held.values() if x.dtype == torch.bfloat16]


def test_autocast(case: Case) -> None:
    """As near to float64 as the plain model, in fewer bytes, and without copies of frozen weights."""
    results = []
    for model in (case.model, case.plain):
        form = in_stock_form() if model is case.plain else nullcontext()
        with torch.autocast("cpu", torch.bfloat16), form:
            saved, shapes = _saved(case, model)
            call = lambda inputs, model=model: model(inputs)
            results.append((_run(model, call, case.inputs), saved, shapes))
    (ours, saved, shapes), (theirs, saved_before, _) = results
    exact = copy.deepcopy(case.plain).double()
    wide = case.inputs.double() if case.inputs.is_floating_point() else case.inputs
    with in_stock_form():
        truth = _run(exact, exact, wide)
    assert ours.keys() == theirs.keys()
    for values in (["logits"], [name for name in truth if name != "logits"]):
        error, allowed = (
            sum((found[name].double() - truth[name]).norm() ** 2 for name in values) ** 0.5
            for found in (ours, theirs)
        )
        assert error <= (1.5 if case.exact else 3) * allowed
    assert saved < saved_before
    weights = {
        shape
        for p in case.model.parameters()
        if not p.requires_grad and p.dim() > 1
        for shape in (tuple(p.shape), tuple(p.t().shape) if p.dim() == 2 else ())
    }
    assert not weights & set(shapes)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.up, self.down, self.fc = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 5)
        self.conv2.weight, self.down.weight = self.conv1.weight, self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(F.gelu(self.down(F.gelu(self.up(x.mean((2, 3)))))))


@pytest.mark.parametrize("policy", ["bias", "conv2.weight+bn1.bias", "down.weight", "all"])
def test_tied_weights(policy: str, stock_form) -> None:
    torch.manual_seed(0)
    model, inputs = Tied(), torch.randn(4, 3, 8, 8)
    thawkit.freeze(model, policy, example=inputs)
    model.eval()
    plain = stock_form(model)
    for _ in range(2):
        _assert_close(_run(model, model, inputs), _run(plain, plain, inputs))
        with torch.no_grad():
            for net in (model, plain):
                net.conv1.weight.mul_(1.5)
                net.up.weight.mul_(1.5)
    assert model.conv2.weight is model.conv1.weight


@pytest.mark.parametrize("policy", ["lora:2", "channels:0.5"])
def test_what_is_tied_gets_no_parameters_of_its_own(policy: str) -> None:
    with pytest.raises(thawkit.errors.ThawkitError, match="needs linear or convolutional layers"):
        thawkit.freeze(Tied(), policy)
