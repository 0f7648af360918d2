"""Attributes that layers of today read and files of older torch versions don't have.

torch fills these in where it unpickles a layer. The reader runs no layer's code, so that what is
missing is given here: by class, the classes that inherit from it included.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Tables of functions that are run with a layer. They are empty in every file that is read.
HOOKS = tuple(key for key in vars(nn.Module()) if "_hooks" in key)

_MODULE: dict[str, Callable[[], object]] = {
    **dict.fromkeys(HOOKS, OrderedDict),
    "training": lambda: False,
    "_is_full_backward_hook": lambda: None,
    "_non_persistent_buffers_set": set,
}
_MISSING: tuple[tuple[type[nn.Module], dict[str, object]], ...] = (
    (nn.modules.conv._ConvNd, {"padding_mode": "zeros"}),
    (nn.modules.batchnorm._NormBase, {"track_running_stats": True, "affine": True}),
    (nn.AvgPool1d, {"ceil_mode": False, "count_include_pad": True}),
    (
        nn.AvgPool2d,
        {"padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    ),
    (
        nn.AvgPool3d,
        {"padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    ),
    (nn.modules.pooling._MaxPoolNd, {"return_indices": False, "ceil_mode": False}),
    (nn.Upsample, {"recompute_scale_factor": True, "align_corners": None}),
    (nn.GELU, {"approximate": "none"}),
    (nn.ELU, {"inplace": False}),
    (nn.Softmax, {"dim": None}),
    (nn.LogSoftmax, {"dim": None}),
    (nn.Softmin, {"dim": None}),
    (nn.Embedding, {"sparse": False}),
    (nn.MultiheadAttention, {"_qkv_same_embed_dim": True, "batch_first": False}),
    (nn.modules.rnn.RNNBase, {"proj_size": 0, "batch_first": False}),
    (nn.TransformerEncoderLayer, {"activation": F.relu, "norm_first": False}),
    (nn.TransformerDecoderLayer, {"activation": F.relu, "norm_first": False}),
)


def missing_attributes(kind: type[nn.Module], there: dict[str, object]) -> Iterator[tuple]:
    """Name and value of each attribute that a layer of this class needs and doesn't have."""
    for key, make in _MODULE.items():
        if key not in there:
            yield key, make()
    for base, attributes in _MISSING:
        if issubclass(kind, base):
            yield from ((k, value) for k, value in attributes.items() if k not in there)
    if issubclass(kind, nn.modules.conv._ConvNd):
        yield from _padding(there)
    if issubclass(kind, nn.modules.batchnorm._NormBase):
        yield "_buffers", _with_counter(there)
    if issubclass(kind, nn.TransformerEncoderLayer) and "activation_relu_or_gelu" not in there:
        activation = there.get("activation", F.relu)
        yield "activation_relu_or_gelu", {F.relu: 1, F.gelu: 2}.get(activation, 0)
    if issubclass(kind, nn.modules.rnn.RNNBase):
        yield from _flat_weights(there)


def _padding(there: dict[str, object]) -> Iterator[tuple]:
    """What a convolution that pads by itself keeps since 1.5: its padding, last axis first."""
    padding = there.get("padding")
    plain = isinstance(padding, tuple) and all(isinstance(side, int) for side in padding)
    if "_reversed_padding_repeated_twice" not in there and plain:
        twice = (side for side in reversed(padding) for _ in range(2))
        yield "_reversed_padding_repeated_twice", tuple(twice)


def _with_counter(there: dict[str, object]) -> dict[str, object]:
    """A norm's statistics, with the number of batches that torch keeps since 0.4.1."""
    buffers = dict(there["_buffers"])
    counted = buffers.get("running_mean") is not None
    buffers.setdefault("num_batches_tracked", torch.tensor(0) if counted else None)
    return buffers


def _flat_weights(there: dict[str, object]) -> Iterator[tuple]:
    """What a recurrent layer keeps of its parameters, which are checked against its numbers."""
    names = weight_names(there)
    parameters = there["_parameters"]
    weights = [parameters.get(name) for layer in names for name in layer]
    yield "_all_weights", names
    yield "_flat_weights_names", [name for layer in names for name in layer]
    yield "_flat_weights", weights
    yield "_flat_weight_refs", [ref(w) if isinstance(w, Tensor) else None for w in weights]


def weight_names(there: dict[str, object]) -> list[list[str]]:
    """The names of a recurrent layer's parameters, by layer and direction."""
    kinds = ["weight_ih", "weight_hh"]
    kinds += ["bias_ih", "bias_hh"] if there.get("bias", True) else []
    kinds += ["weight_hr"] if there.get("proj_size", 0) else []
    suffixes = ("", "_reverse") if there.get("bidirectional", False) else ("",)
    return [
        [f"{kind}_l{layer}{suffix}" for kind in kinds]
        for layer in range(there["num_layers"])
        for suffix in suffixes
    ]
