"""torch's multi-head attention as linear layers and products that torch.fx can see."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Computes what a `nn.MultiheadAttention` does in eval mode, from linear layers.

    The three parts of `in_proj_weight` are `q_proj`, `k_proj` and `v_proj`; `out_proj` keeps its
    name. Inputs and outputs are those of `nn.MultiheadAttention`, batched.
    """

    def __init__(self, original: nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.head_dim = original.num_heads, original.head_dim
        self.batch_first = original.batch_first
        # torch's transformer layers read these, and take no short cut then past their modules.
        self.in_proj_bias, self._qkv_same_embed_dim = None, False
        width = original.embed_dim
        if original.in_proj_weight is None:
            weights = (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
        else:
            weights = original.in_proj_weight.chunk(3)
        bias = original.in_proj_bias
        biases = (None, None, None) if bias is None else bias.split(width)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias)
        self.eval()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention's output, (t, n, c), or (n, t, c) if `batch_first`, and its weights or None."""
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k, v = (self._split(x) for x in (q * (1 / math.sqrt(self.head_dim)), k, v))
        scores = torch.matmul(q, k.transpose(-2, -1))
        if attn_mask is not None:
            mask = _additive(attn_mask)
            # Of three axes it is one of each head, (n * heads, t, s), else (t, s).
            scores = scores + (mask.reshape(scores.shape) if mask.dim() == 3 else mask)
        if key_padding_mask is not None:
            scores = scores + _additive(key_padding_mask).unsqueeze(-2).unsqueeze(-2)
        weights = scores.softmax(-1)
        output = self.out_proj(self._join(torch.matmul(weights, v)))
        if not need_weights:
            return output, None
        return output, weights.mean(-3) if average_attn_weights else weights

    def _split(self, x: Tensor) -> Tensor:
        """(n, t, c) or (t, n, c) to (n, heads, t, c / heads); without n, all are without it."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.transpose(-3, -2) if self.batch_first else x.movedim(0, -2)

    def _join(self, x: Tensor) -> Tensor:
        """The inverse of `_split`."""
        x = x.transpose(-3, -2) if self.batch_first else x.movedim(-2, 0)
        return x.flatten(-2)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear


def _additive(mask: Tensor) -> Tensor:
    """A mask of truth values, True where there is nothing to see, as numbers to add."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, -math.inf)
    return mask


def replace_attention(model: nn.Module) -> int:
    """Replace each `nn.MultiheadAttention` inside `model` by linear layers; the number replaced.

    Left as they are: one that adds a key and value of its own (`add_bias_kv`, `add_zero_attn`),
    subclasses, and those with hooks.
    """
    made: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _can_be_replaced(child):
                made.setdefault(id(child), MultiheadAttention(child))
                setattr(parent, name, made[id(child)])
    return len(made)


def _can_be_replaced(module: nn.Module) -> bool:
    plain = type(module) is nn.MultiheadAttention and not _has_hooks(module)
    return plain and module.bias_k is None and not module.add_zero_attn


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
