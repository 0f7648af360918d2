"""What will run in integer kernels of ONNX Runtime on a CPU, told from the graph alone.

The rules were measured: tests compare them, layer by layer, with what ONNX Runtime makes of the
exported file. Its kernels take convolutions of one, two and three dimensions, grouped and dilated
ones too, linear layers on rows and on sequences, and products of two values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from fxquant.graph.costs import weight_of
from fxquant.graph.insert_taps import Tap
from fxquant.graph.ops import LIMITS, first_input, is_transposed, kind, module_of
from fxquant.graph.reasons import TRANSPOSED
from fxquant.graph.snap_biases import input_quantizer, quantizer_of
from fxquant.quantizer import Quantizer

INPUT = "its input is not quantized"
OUTPUT = "its output is read in floating point"
# Integers of signed grids are shifted to unsigned ones; what a sum of two products may be.
_SHIFT, _MAX_SUM = 128, 2**15 - 1
EINSUM = "ONNX Runtime has no integer kernel for einsum"

# Functions of one value for which ONNX Runtime has integer kernels.
_FUSED = (
    *(nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.Softmax, "sigmoid", "softmax"),
    *(F.sigmoid, torch.sigmoid, F.hardsigmoid, F.leaky_relu, F.softmax, torch.softmax),
)


def predict_kernel(node: Node) -> str | None:
    """Why a quantized layer will not run in an integer kernel; None where it will."""
    if is_transposed(node):
        return TRANSPOSED
    if input_quantizer(node) is None or _is_changed_in_place(node.args[0]):
        return INPUT
    if kind(node) == "conv":
        # Its kernel writes integers alone; that of a linear layer can write floats.
        return None if _is_quantized_at_once(node) else OUTPUT
    rank = len(node.args[0].meta.get("shape", (1, 1)))
    return OUTPUT if rank <= 2 and _is_limited_alone(node) else None


def _is_limited_alone(node: Node) -> bool:
    """Whether a layer's value goes to a ReLU or clip, and that one's to a single op, in float.

    ONNX Runtime looks for the quantizer behind such a ReLU; where there is none, it leaves the
    layer before it alone as well.
    """
    users = [user for user in _readers(node) if user.op != "output"]
    if len(users) != 1 or kind(users[0]) not in LIMITS:
        return False
    after = _readers(users[0])
    return (
        len(after) == 1
        and after[0].op != "output"
        and not isinstance(module_of(after[0]), Quantizer)
    )


def _readers(node: Node) -> list[Node]:
    """What reads a value, taps looked through."""
    found: list[Node] = []
    for user in node.users:
        found += _readers(user) if isinstance(module_of(user), Tap) else [user]
    return found


def _is_changed_in_place(value: Node) -> bool:
    """Whether a part of the value is changed through a view of it."""
    return any(
        (user.op == "call_method" and user.target.endswith("_"))
        or (kind(user) == "move" and _is_changed_in_place(user))
        for user in value.users
    )


def predict_product(node: Node) -> str | None:
    """Why a product of two quantized values will not run in an integer kernel, or None."""
    return EINSUM if node.target is torch.einsum else None


def may_saturate(node: Node) -> bool:
    """Whether two products of a quantized layer may leave 16 bits.

    There int8 kernels of x86 processors without VNNI saturate; those of depthwise convolutions,
    and of weights that are stored as uint8, do not.
    """
    weight, source = module_of(node.args[1]).spec, input_quantizer(node)
    if source is None or not weight.signed or _is_depthwise(node):
        return False
    largest = source.spec.qmax + (_SHIFT if source.spec.signed else 0)
    return 2 * weight.qmax * largest > _MAX_SUM


def _is_depthwise(node: Node) -> bool:
    """Whether a convolution has one filter a channel."""
    if kind(node) != "conv" or is_transposed(node):
        return False
    shape, groups = weight_of(node).shape, node.args[6]
    return groups > 1 and tuple(shape[:2]) == (groups, 1)


def is_fused(node: Node) -> bool:
    """Whether a function of one value has an integer kernel that reads and writes its grids."""
    target = type(module_of(node)) if node.op == "call_module" else node.target
    on_grid = quantizer_of(first_input(node)) is not None
    return target in _FUSED and on_grid and _is_quantized_at_once(node)


def _is_quantized_at_once(node: Node) -> bool:
    """Whether a quantizer alone reads the value, or its ReLU or clip, which the kernel fuses."""
    users = list(node.users)
    if len(users) != 1:
        return False
    if kind(users[0]) in LIMITS:
        return _is_quantized_at_once(users[0])
    return isinstance(module_of(users[0]), Quantizer)
