"""Frozen models under the tools that follow a model's code instead of running it eagerly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import thawkit


@pytest.fixture
def model(build) -> nn.Module:
    model = build("small_cnn")
    thawkit.freeze(model, "bias", example=torch.zeros(2, 3, 8, 8))
    return model


IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def test_compile_in_one_graph(model: nn.Module, gradients) -> None:
    compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    ours, theirs = gradients(compiled, IMAGES), gradients(model, IMAGES)
    assert len(ours) == len(theirs)
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(model[1].running_mean, copy.deepcopy(model)[1].running_mean)


@pytest.mark.parametrize("inside", [False, True])
def test_freezing_what_is_compiled_already(build, gradients, inside: bool) -> None:
    model, expected = build("small_cnn").eval(), build("small_cnn").eval()
    report = thawkit.freeze(expected, "bias", example=IMAGES)
    if inside:
        model[0].compile(backend="aot_eager")
    compiled = model if inside else torch.compile(model, backend="aot_eager")
    compiled(IMAGES)
    assert str(thawkit.freeze(compiled, "bias", example=IMAGES)) == str(report)
    ours, theirs = gradients(compiled, IMAGES), gradients(expected, IMAGES)
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(a, b)
    thawkit.unfreeze(compiled)
    assert [type(m) for m in model.modules()] == [type(m) for m in build("small_cnn").modules()]


def test_compile_timm_in_one_graph(build) -> None:
    model = build("lite0").eval()
    thawkit.freeze(model, "bias")
    stem = nn.Sequential(model.conv_stem, model.bn1)
    images = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(stem, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), stem(images))


@pytest.mark.parametrize("grad", [True, False])
def test_export_holds_the_stock_operators(model: nn.Module, stock, grad: bool) -> None:
    def operators(module: nn.Module) -> list[str]:
        graph = torch.export.export(module, (IMAGES,)).graph
        return [str(node.target) for node in graph.nodes if node.op == "call_function"]

    with torch.set_grad_enabled(grad):
        assert operators(model.eval()) == operators(stock(model))


def test_onnx_is_that_of_the_stock_model(model: nn.Module, stock) -> None:
    def nodes(module: nn.Module) -> list[str]:
        program = torch.onnx.export(module, (IMAGES,), dynamo=True, verbose=False)
        return [node.op_type for node in program.model.graph]

    assert nodes(model.eval()) == nodes(stock(model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script_and_trace(model: nn.Module, build) -> None:
    classes = [type(m) for m in model.modules()]
    for convert in (torch.jit.script, lambda m: torch.jit.trace(m, IMAGES), torch.fx.symbolic_trace):
        torch.testing.assert_close(convert(model.eval())(IMAGES), model(IMAGES))  # folded here, not there
    assert [type(m) for m in model.modules()] == classes

    lite0 = build("lite0").eval().double()  # folded in one form and not in the other
    thawkit.freeze(lite0, "bias")
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.script(lite0)(images), lite0(images))


def test_function_transforms(model: nn.Module, gradients) -> None:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = torch.func.functional_call(model, values, (IMAGES,))
        return torch.logsumexp(logits.double(), 1).sum() - logits[:, 0].sum()

    expected = gradients(model, IMAGES)
    for name, gradient in torch.func.grad(loss)(parameters).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(model: nn.Module, gradients, reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.body, images.requires_grad_(), use_reentrant=reentrant)

    expected = gradients(model, IMAGES)
    if reentrant:  # works with backward() only
        model.zero_grad()
        logits = Checkpointed()(IMAGES.clone())
        (torch.logsumexp(logits.double(), 1).sum() - logits[:, 0].sum()).backward()
        ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    else:
        found = gradients(Checkpointed(), IMAGES.clone())
        ours = {name.removeprefix("body."): value for name, value in found.items() if name != "logits"}
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name])
