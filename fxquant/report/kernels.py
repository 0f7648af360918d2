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

from fxquant.graph.ops import LIMITS, first_input, is_transposed, kind, module_of, tensor_inputs
from fxquant.graph.reasons import TRANSPOSED
from fxquant.graph.snap_biases import input_quantizer, quantizer_of
from fxquant.quantizer import Quantizer

INPUT = "its input is not quantized"
OUTPUT = "its output is read in floating point"
EINSUM = "ONNX Runtime has no integer kernel for einsum"

# Functions of one value for which ONNX Runtime has integer kernels.
_FUSED = (
    *(nn.Sigmoid, nn.LeakyReLU, nn.Softmax),
    *(F.sigmoid, torch.sigmoid, F.leaky_relu, F.softmax, torch.softmax, "sigmoid", "softmax"),
)


def predict_kernel(node: Node) -> str | None:
    """Why a quantized layer will not run in an integer kernel; None where it will."""
    if is_transposed(node):
        return TRANSPOSED
    if input_quantizer(node) is None:
        return INPUT
    # A kernel for a linear layer can write floats, one for a convolution writes integers alone.
    return OUTPUT if kind(node) == "conv" and not _is_quantized_at_once(node) else None


def predict_product(node: Node) -> str | None:
    """Why a product of two quantized values will not run in an integer kernel, or None."""
    return EINSUM if node.target is torch.einsum else None


def product_bits(node: Node) -> tuple[int, ...]:
    """Widths of the values that a product multiplies; empty where one is not quantized."""
    found = [quantizer_of(value) for value in tensor_inputs(node)]
    return tuple(q.spec.bits for q in found if q) if all(found) else ()


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
