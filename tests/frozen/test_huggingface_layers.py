"""🤗's activations and linear layers: what is saved, exactly, and gradients whatever trains."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

import thawkit
from thawkit.frozen.layers import Rewritten
from thawkit.frozen.measure import saved_by_module

ROWS, DIM, HIDDEN = 6, 16, 32
ACTIVATIONS = [
    "gelu",
    "gelu_10",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_accurate",
    "laplace",
    "mish",
    "quick_gelu",
    "relu2",
    "silu",
]


def _mlp(
    activation: str, *, conv1d: bool, dropout: float = 0.0, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Layer normalization, two linear layers, an activation and a dropout between them."""
    torch.manual_seed(0)
    first = Conv1D(HIDDEN, DIM) if conv1d else nn.Linear(DIM, HIDDEN)
    second = Conv1D(3, HIDDEN) if conv1d else nn.Linear(HIDDEN, 3)
    layers = nn.LayerNorm(DIM), first, ACT2FN[activation], nn.Dropout(dropout), second
    model = nn.Sequential(nn.Linear(DIM, DIM), *layers).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def _backward(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_and_bytes_of_an_mlp(activation: str, conv1d: bool) -> None:
    """Of a trained MLP the inputs of the normalization and of the activation are saved, and nothing else."""
    stock = _mlp(activation, conv1d=conv1d)
    model = copy.deepcopy(stock)
    x = torch.randn(ROWS, DIM, dtype=torch.float64)
    report = thawkit.freeze(model, "all", example=x)
    statistics = 2 * ROWS
    assert report.saved_bytes == 8 * (ROWS * DIM + statistics + ROWS * HIDDEN)
    ours, theirs = _backward(model, x), _backward(stock, x)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-12 * max(scale, 1e-3))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_cannot_act_runs_the_stock_activation(activation: str) -> None:
    stock = ACT2FN[activation]
    model = nn.Sequential(nn.Linear(4, 4), copy.deepcopy(stock), nn.Linear(4, 2))
    thawkit.freeze(model, "all")
    ours = model[1]
    assert isinstance(ours, Rewritten)
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), stock(x), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.randn(5, 4).bfloat16().requires_grad_()
        torch.testing.assert_close(ours(y), stock(y), rtol=0, atol=0)
    z = torch.randn(4)
    torch.testing.assert_close(torch.func.jacrev(ours)(z), torch.func.jacrev(stock)(z))
    clone = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(clone(x), model(x))
    thawkit.unfreeze(model)
    assert type(model[1]) is type(stock)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "quick_gelu", "relu2"])
def test_second_derivatives_of_an_activation(activation: str) -> None:
    model = _mlp(activation, conv1d=True)
    thawkit.freeze(model, "all")
    x = torch.randn(2, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: torch.autograd.grad(model(x).sum(), x, create_graph=True)[0], (x,)
    )


def test_an_activation_in_half_precision_is_no_further_from_the_truth() -> None:
    x = torch.randn(2000)
    stock = ACT2FN["gelu_new"]
    ours = nn.Sequential(nn.Linear(2, 2), copy.deepcopy(stock))
    thawkit.freeze(ours, "0.*")
    errors = []
    for activation in (ours[1], stock):
        y = x.bfloat16().requires_grad_()
        activation(y).sum().backward()
        truth = y.detach().double().requires_grad_()
        stock(truth).sum().backward()
        errors.append((y.grad.double() - truth.grad).abs().max().item())
    assert errors[0] <= errors[1]


def test_a_frozen_conv1d_saves_nothing_and_keeps_its_weight_laid_out() -> None:
    model = nn.Sequential(nn.Linear(DIM, DIM), Conv1D(HIDDEN, DIM), nn.Tanh(), Conv1D(3, HIDDEN))
    stock = copy.deepcopy(model)
    thawkit.freeze(model, "0.*")
    x = torch.randn(2, ROWS, DIM)
    saved = saved_by_module(model, x, set())
    assert dict(saved) == {"2": 4 * 2 * ROWS * HIDDEN}  # by tanh
    for net in (model, stock):
        net(x).square().sum().backward()
    for ours, theirs in zip(model[0].parameters(), stock[0].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.no_grad():
        for net in (model, stock):
            net[1].weight.mul_(2)
    torch.testing.assert_close(model(x), stock(x))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_a_recipe_passes_through_dropout(p: float, training: bool) -> None:
    stock = _mlp("gelu_new", conv1d=True, dropout=p, dtype=torch.float32).train(training)
    model = copy.deepcopy(stock)
    thawkit.freeze(model, "all")
    x = torch.randn(ROWS, DIM)
    mask = ROWS * HIDDEN // 8 if training and p else 0
    model.train(training)
    held = {}

    def pack(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), x)}
    saved = sum(s.nbytes() for address, s in held.items() if address not in weights)
    assert saved == 4 * (ROWS * DIM + 2 * ROWS + ROWS * HIDDEN) + mask
    assert y.requires_grad
    ours, theirs = _backward(model, x), _backward(stock, x)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient)


def test_a_recipe_passes_through_views_and_no_functions() -> None:
    class Reversal(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return -grad

    class Slices(nn.Module):
        def __init__(self, reverse: bool) -> None:
            super().__init__()
            self.below, self.norm, self.linear = nn.Linear(DIM, DIM), nn.LayerNorm(DIM), nn.Linear(DIM, 3)
            self.reverse = reverse

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.below(x)).view(2, -1, DIM).transpose(0, 1)[1]
            return self.linear(Reversal.apply(y) if self.reverse else y)

    x = torch.randn(ROWS, DIM, dtype=torch.float64)
    for reverse in (False, True):
        torch.manual_seed(0)
        stock = Slices(reverse).double()
        model = copy.deepcopy(stock)
        report = thawkit.freeze(model, "all", example=x)
        output = 8 * ROWS * DIM
        assert report.saved_bytes_before - report.saved_bytes == (0 if reverse else output)
        ours, theirs = _backward(model, x), _backward(stock, x)
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-12, atol=1e-13)


def test_a_fully_trained_bert_saves_a_third_less() -> None:
    """Per layer the inputs of two normalizations, queries, keys, values, what they mix, the GELU's input."""
    layers, batch, tokens, dim = 2, 4, 32, 64
    sizes = {
        "vocab_size": 20,
        "hidden_size": dim,
        "intermediate_size": 4 * dim,
        "max_position_embeddings": tokens,
    }
    config = BertConfig(
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    model = BertForSequenceClassification(config)
    report = thawkit.freeze(model, "all", example=torch.randint(1, 20, (batch, tokens)))
    unit = batch * tokens * dim * 4
    fewer = layers * (2 + 4) + 1  # outputs of the normalizations and GELUs; of that after the embeddings
    assert report.saved_bytes_before - report.saved_bytes == fewer * unit
    assert report.saved_bytes_before / report.saved_bytes > 1.55


def test_a_fully_trained_gpt2_saves_less_than_half() -> None:
    layers, batch, tokens, dim = 2, 4, 32, 64
    config = GPT2Config(
        vocab_size=20,
        n_positions=tokens,
        n_embd=dim,
        n_layer=layers,
        n_head=4,
        num_labels=5,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2ForSequenceClassification(config)
    report = thawkit.freeze(model, "all", example=torch.randint(1, 20, (batch, tokens)))
    unit = batch * tokens * dim * 4
    # the outputs of the normalizations and the GELU's, and what the GELU written as eight operators saves
    fewer = layers * (2 + 4 + 12) + 1
    assert report.saved_bytes_before - report.saved_bytes == fewer * unit
    assert report.saved_bytes_before / report.saved_bytes > 2


def test_adapters_compute_their_input_again() -> None:
    model = _mlp("gelu_new", conv1d=True)
    model.append(nn.Linear(3, 2).double())
    x = torch.randn(ROWS, DIM, dtype=torch.float64)
    report = thawkit.freeze(model, "lora:2:*[1-5]", example=x)
    low = 2 * 2  # products with the first factors of two adapters
    assert report.saved_bytes == 8 * ROWS * (DIM + low + HIDDEN + 3)  # HIDDEN once, for the GELU
