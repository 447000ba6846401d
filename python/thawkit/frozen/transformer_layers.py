"""Linear layers, normalizations and activations of transformers that save nothing twice.

PyTorch saves the output of a layer normalization, and of a GELU, for the weight gradient of the linear layer
after it, and their input for their own. The classes here let the linear layer compute its input again from
that (:mod:`thawkit.ops.frozen.recompute`), and multiply by a frozen weight in the layout that is fastest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from thawkit.frozen.deferred import plain
from thawkit.frozen.layers import Rewritten, can_replace, is_scripting, recording
from thawkit.ops.frozen.linear import linear
from thawkit.ops.frozen.packed import packed_of
from thawkit.ops.frozen.recompute import apply_again, with_recipe


def recomputable(function: Any, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """``function(x, *parameters)``, of which later layers know that it is that where a backward may come."""
    y = function(x, *parameters)
    return with_recipe(y, function, x, *parameters) if recording(x) and y.requires_grad else y


def composed(function: Any, x: Tensor, *parameters: Tensor | None) -> Tensor:
    """``function(x, *parameters)``, a function of several operators, saving ``x`` and these alone."""
    if recording(x) and any(t is not None and t.requires_grad for t in (x, *parameters)):
        return apply_again(function, x, *parameters)
    return function(x, *parameters)


class RecomputableLayerNorm(Rewritten, nn.LayerNorm):
    """``nn.LayerNorm`` whose output the next linear layer need not save."""

    stock = nn.LayerNorm

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input``, ``(*, *normalized_shape)``."""
        if is_scripting():
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        else:
            again = partial(layer_norm, self.normalized_shape, self.eps)
            return recomputable(again, plain(input), self.weight, self.bias)


class RecomputableRMSNorm(Rewritten, nn.RMSNorm):
    """``nn.RMSNorm`` that saves its input alone, and whose output the next linear layer need not save."""

    stock = nn.RMSNorm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, ``(*, *normalized_shape)``."""
        if is_scripting():
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        else:
            return composed(partial(rms_norm, self.normalized_shape, self.eps), plain(x), self.weight)


def layer_norm(shape: Any, eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.layer_norm` with what is no tensor first."""
    return F.layer_norm(x, shape, weight, bias, eps)


def rms_norm(shape: Any, eps: float | None, x: Tensor, weight: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.rms_norm` with what is no tensor first."""
    return F.rms_norm(x, shape, weight, eps)


class RecomputableGELU(Rewritten, nn.GELU):
    """``nn.GELU`` whose output the next linear layer need not save."""

    stock = nn.GELU

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting():
            return F.gelu(input, approximate=self.approximate)
        else:
            return recomputable(partial(F.gelu, approximate=self.approximate), plain(input))


class RecomputableSiLU(Rewritten, nn.SiLU):
    """``nn.SiLU`` whose output the next linear layer need not save."""

    stock = nn.SiLU

    def forward(self, input: Tensor) -> Tensor:
        """Apply the activation to ``input``, of any shape."""
        if is_scripting() or self.inplace:
            return F.silu(input, inplace=self.inplace)
        else:
            return recomputable(F.silu, plain(input))


class FrozenLinear(Rewritten, nn.Linear):
    """``nn.Linear`` that saves what is cheapest, and keeps a frozen weight in the layout that is fastest."""

    stock = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Multiply ``input``, ``(*, in_features)``, by the weight."""
        if is_scripting():
            return F.linear(input, self.weight, self.bias)
        else:
            return product(self, plain(input), self.weight, self.bias)


class FrozenMultiheadAttention(Rewritten, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose projections save what is cheapest, for self-attention without masks."""

    stock = nn.MultiheadAttention

    def forward(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`torch.nn.MultiheadAttention.forward`."""
        options = dict(zip(_OPTIONS, args, strict=False)) | kwargs
        itself = query is key and key is value and query.dim() == 3 and self._qkv_same_embed_dim
        asks = any(options.get(name) for name in ("need_weights", "is_causal"))
        masked = any(options.get(name) is not None for name in ("key_padding_mask", "attn_mask"))
        extended = self.bias_k is not None or self.bias_v is not None or self.add_zero_attn
        plainest = itself and "need_weights" in options and not (asks or masked or extended)
        if is_scripting() or not plainest or not can_replace(query):
            return self.stock.forward(self, query, key, value, *args, **kwargs)
        projected = product(self, query, self.in_proj_weight, self.in_proj_bias)
        if not self.batch_first:
            projected = projected.transpose(0, 1)
        heads = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        queries, keys, values = heads.unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).flatten(-2)
        if not self.batch_first:
            mixed = mixed.transpose(0, 1)
        return product(self.out_proj, mixed, self.out_proj.weight, self.out_proj.bias), None


_OPTIONS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def product(
    module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool = False
) -> Tensor:
    """``x @ weight.T + bias`` with a weight of ``module``, which is (in, out) if ``transposed``."""
    if not can_replace(x):
        return F.linear(x, weight.t() if transposed else weight, bias)
    packed = None if weight.requires_grad else packed_of(module)
    return linear(x, weight, bias, packed, transposed=transposed)


CLASSES: dict[type[nn.Module], type[Rewritten]] = {
    kind.stock: kind
    for kind in (
        RecomputableLayerNorm,
        RecomputableRMSNorm,
        RecomputableGELU,
        RecomputableSiLU,
        FrozenLinear,
        FrozenMultiheadAttention,
    )
}
