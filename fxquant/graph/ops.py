"""What a node of a torch.fx graph is: one name for the module, function and method forms of an op.

The rest of the package asks these tables and never looks at targets itself.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

_MODULES: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Conv3d: "conv",
    nn.Linear: "linear",
    nn.BatchNorm1d: "batchnorm",
    nn.BatchNorm2d: "batchnorm",
    nn.BatchNorm3d: "batchnorm",
    FrozenBatchNorm2d: "batchnorm",
    nn.ReLU: "relu",
    nn.ReLU6: "activation",
    nn.Hardtanh: "activation",
    nn.Hardswish: "activation",
    nn.Hardsigmoid: "activation",
    nn.Sigmoid: "activation",
    nn.SiLU: "activation",
    nn.Mish: "activation",
    nn.GELU: "activation",
    nn.ELU: "activation",
    nn.LeakyReLU: "activation",
    nn.PReLU: "activation",
    nn.Tanh: "activation",
    nn.Softplus: "activation",
    nn.AvgPool1d: "average",
    nn.AvgPool2d: "average",
    nn.AvgPool3d: "average",
    nn.AdaptiveAvgPool1d: "average",
    nn.AdaptiveAvgPool2d: "average",
    nn.AdaptiveAvgPool3d: "average",
    nn.MaxPool1d: "move",
    nn.MaxPool2d: "move",
    nn.MaxPool3d: "move",
    nn.AdaptiveMaxPool1d: "move",
    nn.AdaptiveMaxPool2d: "move",
    nn.Flatten: "move",
    nn.Unflatten: "move",
    nn.Identity: "move",
    nn.Dropout: "move",
    nn.Dropout1d: "move",
    nn.Dropout2d: "move",
    nn.Dropout3d: "move",
    nn.AlphaDropout: "move",
    nn.ZeroPad2d: "move",
    nn.PixelShuffle: "move",
    nn.PixelUnshuffle: "move",
    nn.ChannelShuffle: "move",
    StochasticDepth: "move",
}

_FUNCTIONS: dict[object, str] = {
    F.conv1d: "conv",
    F.conv2d: "conv",
    F.conv3d: "conv",
    F.linear: "linear",
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "activation",
    F.hardtanh: "activation",
    F.hardswish: "activation",
    F.hardsigmoid: "activation",
    F.sigmoid: "activation",
    torch.sigmoid: "activation",
    F.silu: "activation",
    F.mish: "activation",
    F.gelu: "activation",
    F.elu: "activation",
    F.leaky_relu: "activation",
    F.prelu: "activation",
    torch.tanh: "activation",
    F.tanh: "activation",
    F.softplus: "activation",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    torch.cat: "concat",
    torch.concat: "concat",
    F.avg_pool1d: "average",
    F.avg_pool2d: "average",
    F.avg_pool3d: "average",
    F.adaptive_avg_pool1d: "average",
    F.adaptive_avg_pool2d: "average",
    F.adaptive_avg_pool3d: "average",
    torch.mean: "average",
    F.max_pool1d: "move",
    F.max_pool2d: "move",
    F.max_pool3d: "move",
    F.adaptive_max_pool1d: "move",
    F.adaptive_max_pool2d: "move",
    F.dropout: "move",
    F.dropout2d: "move",
    F.pixel_shuffle: "move",
    F.pixel_unshuffle: "move",
    F.channel_shuffle: "move",
    torch.flatten: "move",
    torch.reshape: "move",
    torch.permute: "move",
    torch.transpose: "move",
    torch.squeeze: "move",
    torch.unsqueeze: "move",
    torch.chunk: "move",
    torch.split: "move",
    torch.narrow: "move",
    operator.getitem: "move",
}

_METHODS: dict[str, str] = {
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "activation",
    "sigmoid_": "activation",
    "tanh": "activation",
    "add": "add",
    "add_": "add",
    "mul": "mul",
    "mul_": "mul",
    "mean": "average",
    **dict.fromkeys(
        [
            "flatten",
            "view",
            "reshape",
            "permute",
            "transpose",
            "squeeze",
            "unsqueeze",
            "contiguous",
            "chunk",
            "split",
            "narrow",
            "expand",
            "expand_as",
            "unflatten",
            "detach",
            "clone",
            "t",
        ],
        "move",
    ),
}

_BOUNDED_BELOW_BY_ZERO = (nn.ReLU6, nn.Hardsigmoid, nn.Sigmoid, nn.Softplus)
_BOUNDED_FUNCTIONS = (
    F.relu6,
    F.hardsigmoid,
    F.sigmoid,
    torch.sigmoid,
    F.softplus,
    "sigmoid",
    "sigmoid_",
)

WEIGHTED = frozenset({"conv", "linear"})
ARITHMETIC = frozenset({"add", "mul", "concat", "average", "activation"})


def kind(node: Node) -> str:
    """One of conv, linear, batchnorm, relu, activation, add, mul, concat, average, move, other.

    Also placeholder, get_attr and output. `move` is any op that only moves numbers that are
    already on a grid; `entry` takes a tensor out of a list, tuple or dict that came from outside
    the graph or from an op that the graph can't look into.
    """
    if node.meta.get("entry"):
        return "entry"
    if node.op == "call_module":
        return _module_kind(module_of(node))
    if node.op == "call_function":
        return _function_kind(node)
    if node.op == "call_method":
        return _METHODS.get(node.target, "other")
    return node.op


def _module_kind(module: nn.Module) -> str:
    if isinstance(module, nn.Upsample):
        return "move" if module.mode == "nearest" else "other"
    for base in type(module).__mro__:
        if base in _MODULES:
            return _MODULES[base]
    return "other"


def _function_kind(node: Node) -> str:
    if node.target is F.pad:
        return "move" if _pads_with_zero(node) else "other"
    if node.target is F.interpolate:
        mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else "nearest")
        return "move" if mode == "nearest" else "other"
    return _FUNCTIONS.get(node.target, "other")


def _pads_with_zero(node: Node) -> bool:
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    return mode == "constant" and value in (None, 0, 0.0)


def module_of(node: Node) -> nn.Module | None:
    """The module that a call_module node calls, else None."""
    if node.op != "call_module":
        return None
    return node.graph.owning_module.get_submodule(node.target)


def is_non_negative(node: Node) -> bool:
    """Whether the value can be shown to hold no negative number."""
    name = kind(node)
    if name == "relu":
        return True
    if name == "activation":
        if node.op == "call_module":
            return isinstance(module_of(node), _BOUNDED_BELOW_BY_ZERO)
        return node.target in _BOUNDED_FUNCTIONS
    if name in ("move", "average", "add", "mul", "concat"):
        if name in ("add", "mul") and _has_negative_number(node):
            return False
        sources = tensor_inputs(node)
        return bool(sources) and all(is_non_negative(source) for source in sources)
    return False


def _has_negative_number(node: Node) -> bool:
    """Whether a plain number, as in `x - 1` written as `x + (-1)`, may bring in a sign."""
    numbers = (*node.args, *node.kwargs.values())
    return any(isinstance(number, int | float) and number < 0 for number in numbers)


def tensor_inputs(node: Node) -> list[Node]:
    """Nodes that this one reads whose value is a tensor."""
    return [parent for parent in node.all_input_nodes if "shape" in parent.meta]


def sources(node: Node) -> list[Node]:
    """Where the numbers of `node` come from once ops that only move them are looked through."""
    if kind(node) != "move":
        return [node]
    return [origin for parent in tensor_inputs(node) for origin in sources(parent)]


def consumers(node: Node) -> list[tuple[Node, Node]]:
    """Pairs (value, user) of every op that reads the numbers of `node`, moves looked through.

    `value` is `node` itself or the moved form of it that `user` reads.
    """
    found: list[tuple[Node, Node]] = []
    for user in node.users:
        if kind(user) == "move" or is_redundant_relu(user):
            found += consumers(user)
        else:
            found.append((node, user))
    return found


def is_redundant_relu(node: Node) -> bool:
    """A ReLU of a value that holds no negative number."""
    return kind(node) == "relu" and all(is_non_negative(parent) for parent in tensor_inputs(node))
