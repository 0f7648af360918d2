"""Why a node of a student computes in floating point, in a person's words."""

from __future__ import annotations

from torch import nn
from torch.fx import Node

from fxquant.graph.ops import WEIGHTED, is_real, is_transposed, kind, module_of

TRANSPOSED = (
    "its weights and its input are quantized, but ONNX Runtime has no integer kernel for "
    "transposed convolutions"
)
_KINDS = {
    "batchnorm": "it was not folded",
    "normalization": "it divides by what it computes from its input, which integer kernels don't",
    "activation": "an activation that integer kernels don't fuse",
    "elementwise": "arithmetic that integer kernels don't do",
    "other": "an operation without a known integer form",
}
_MODULES = (
    ((nn.Embedding, nn.EmbeddingBag), "a table that is looked up, not multiplied"),
    ((nn.RNNBase, nn.RNNCellBase), "a recurrent layer, whose weights are quantized by no rule"),
    (nn.MultiheadAttention, "attention that adds a key and value of its own"),
)


def float_reason(node: Node) -> str | None:
    """Why what a node of a student does is done in floating point; None where it is not.

    Limits, moves, sums and products of quantized values count as integer ops.
    """
    for key in ("float_reason", "not_folded"):
        if key in node.meta:
            return node.meta[key]
    if kind(node) in WEIGHTED:
        return TRANSPOSED if is_transposed(node) else None
    module = module_of(node)
    if not _gives_numbers(node) or type(module).__module__.startswith("fxquant."):
        return None
    known = (reason for classes, reason in _MODULES if isinstance(module, classes))
    return next(known, _KINDS.get(kind(node)))


def _gives_numbers(node: Node) -> bool:
    """Whether real numbers come out, and not a size, truth values or places of numbers."""
    return is_real(node) or any(is_real(user) and kind(user) == "entry" for user in node.users)
