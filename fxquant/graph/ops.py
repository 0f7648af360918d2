"""What a node of a torch.fx graph is: one name for the module, function and method forms of an op.

The rest of the package asks these functions and never looks at targets itself.
"""

from __future__ import annotations

import math
import operator

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from fxquant.graph.kinds import FUNCTIONS, METHODS, MODULES, PICKS

# They multiply weights with activations.
WEIGHTED = frozenset({"conv", "linear"})
# They read numbers of one grid or more and give numbers of another.
ARITHMETIC = frozenset({"add", "mul", "elementwise", "concat", "average", "activation"})
DIVISIONS = frozenset(
    {operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide"}
)
# They limit the range of what a kernel computes, which it does as it rounds.
LIMITS = frozenset({"relu", "clip"})

KIND = "kind"
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED_FUNCTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
# What a subclass may not define if it is to count as what it inherits from.
_FORWARDS = ("forward", "__call__", "_conv_forward")


def kind(node: Node) -> str:
    """What the node does to numbers: a kind of `fxquant.graph.kinds`, or `other`.

    Also placeholder, get_attr and output. `entry` takes a tensor out of a list, tuple or dict
    that came from outside the graph or from an op that the graph can't look into. A kind that
    the user gave, in `meta["kind"]`, comes first.
    """
    if KIND in node.meta:
        return node.meta[KIND]
    if node.target is operator.getitem and not is_tensor(node.args[0]):
        return "move" if _is_part_of_a_move(node.args[0]) else "entry"
    if node.op == "call_module":
        return module_kind(module_of(node))
    if node.op == "call_function":
        return _function_kind(node)
    if node.op == "call_method":
        return _method_kind(node)
    return node.op


def module_kind(module: nn.Module) -> str:
    """What a module does to numbers, `other` where it has a forward of its own."""
    if isinstance(module, nn.Upsample):
        return _resize_kind(module.mode)
    if isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d):
        return "move" if module.value == 0 else "other"
    for base in type(module).__mro__:
        if base in MODULES:
            return MODULES[base]
        if any(name in vars(base) for name in _FORWARDS):
            break
    return "other"


def _function_kind(node: Node) -> str:
    if node.target is F.pad:
        return _pad_kind(argument(node, 2, "mode", "constant"), argument(node, 3, "value"))
    if node.target in (F.interpolate, F.upsample):
        return _resize_kind(argument(node, 3, "mode", "nearest"))
    if node.target in PICKS:
        return _pick_kind(node)
    name = FUNCTIONS.get(node.target, "other")
    return "elementwise" if name == "clip" and limits(node) is None else name


def _method_kind(node: Node) -> str:
    if node.target in PICKS:
        return _pick_kind(node)
    name = METHODS.get(node.target, "other")
    return "elementwise" if name == "clip" and limits(node) is None else name


def _pad_kind(mode: object, value: object) -> str:
    """Zeros and copies are on every grid."""
    return "move" if mode != "constant" or value in (None, 0, 0.0) else "other"


def _resize_kind(mode: object) -> str:
    if str(mode).startswith("nearest"):
        return "move"
    return "other" if mode == "bicubic" else "average"


def _pick_kind(node: Node) -> str:
    other = argument(node, 1, "other")
    return "elementwise" if isinstance(other, Node) and is_tensor(other) else "move"


def _is_part_of_a_move(node: object) -> bool:
    return isinstance(node, Node) and node.op.startswith("call") and kind(node) == "move"


def argument(node: Node, index: int, name: str, default: object = None) -> object:
    """An argument of a function or method call, by its place or its keyword."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def module_of(node: Node) -> nn.Module | None:
    """The module that a call_module node calls, else None."""
    if node.op != "call_module":
        return None
    return node.graph.owning_module.get_submodule(node.target)


def tensor_of(node: Node) -> torch.Tensor:
    """The parameter or buffer that a get_attr node reads."""
    owner, _, name = str(node.target).rpartition(".")
    return getattr(node.graph.owning_module.get_submodule(owner), name)


def is_tensor(node: object) -> bool:
    """Whether a node's value is known to be one tensor."""
    return isinstance(node, Node) and "shape" in node.meta


def is_real(node: Node) -> bool:
    """Whether a node's value is a tensor of real numbers, not of indices or truth values."""
    return is_tensor(node) and node.meta.get("dtype", torch.float32).is_floating_point


def tensor_inputs(node: Node) -> list[Node]:
    """Nodes that this one reads whose value is a tensor."""
    return [parent for parent in node.all_input_nodes if is_tensor(parent)]


def first_input(node: Node) -> Node | None:
    """The value that a call works on: its first argument, or the one named input."""
    value = node.args[0] if node.args else node.kwargs.get("input")
    return value if isinstance(value, Node) else None


def is_softmax(node: Node) -> bool:
    """Whether a node computes a softmax, as a module, function or method."""
    if node.op == "call_module":
        return isinstance(module_of(node), nn.Softmax)
    return node.target in (F.softmax, torch.softmax, "softmax")


def is_transposed(layer: Node) -> bool:
    """Whether a convolution is a transposed one, as a module or as a function."""
    return isinstance(module_of(layer), _TRANSPOSED) or layer.target in _TRANSPOSED_FUNCTIONS


def has_number(node: Node) -> bool:
    """Whether an arithmetic op combines one value with plain numbers, as in `x * 0.5`."""
    values = (*node.args, *node.kwargs.values())
    one_tensor = sum(is_tensor(value) for value in values) == 1
    return kind(node) in ("add", "mul", "elementwise") and one_tensor


def limits(node: Node) -> tuple[float, float] | None:
    """Range that a relu or clip leaves; None where it isn't known before the graph runs."""
    module = module_of(node)
    if isinstance(module, nn.Hardtanh):
        bounds = (module.min_val, module.max_val)
    elif isinstance(module, nn.ReLU) or kind_of_target(node) == "relu":
        bounds = (0.0, math.inf)
    elif node.target is F.relu6:
        bounds = (0.0, 6.0)
    elif node.target in (F.hardtanh, F.hardtanh_):
        bounds = (argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0))
    elif node.target in (torch.clamp_max, "clamp_max"):
        bounds = (None, argument(node, 1, "max"))
    else:
        bounds = (argument(node, 1, "min"), argument(node, 2, "max"))
    if any(isinstance(bound, Node | torch.Tensor) for bound in bounds):
        return None
    low, high = bounds
    return (-math.inf if low is None else low, math.inf if high is None else high)


def kind_of_target(node: Node) -> str | None:
    """Kind that the tables give a function or method by its name alone."""
    table = METHODS if node.op == "call_method" else FUNCTIONS
    return table.get(node.target)
