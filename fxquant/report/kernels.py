"""Which layers will run in integer kernels of ONNX Runtime on a CPU, told from the graph alone.

The rules were measured: tests compare them, layer by layer, with what ONNX Runtime makes of the
exported file. Its kernels take convolutions of one, two and three dimensions, grouped and dilated
ones too, and linear layers on rows and on sequences.
"""

from __future__ import annotations

from torch.fx import Node

from fxquant.graph.ops import kind, module_of
from fxquant.graph.snap_biases import input_quantizer
from fxquant.quantizer import Quantizer
from fxquant.report.macs import is_transposed

FLOAT = "it stays in floating point"
INPUT = "its input is not quantized"
OUTPUT = "its output is read in floating point"
TRANSPOSED = "ONNX Runtime has no integer kernel for transposed convolutions"


def predict_kernel(node: Node, *, quantized: bool) -> str | None:
    """Why a layer of a student will not run in an integer kernel; None where it will."""
    if not quantized:
        return FLOAT
    if is_transposed(node):
        return TRANSPOSED
    if input_quantizer(node) is None:
        return INPUT
    # A kernel for a linear layer can write floats, one for a convolution writes integers alone.
    return OUTPUT if kind(node) == "conv" and not _is_quantized_at_once(node) else None


def _is_quantized_at_once(node: Node) -> bool:
    """Whether a quantizer alone reads the value, or the value's ReLU, which the kernel fuses."""
    users = list(node.users)
    if len(users) != 1:
        return False
    if kind(users[0]) == "relu":
        return _is_quantized_at_once(users[0])
    return isinstance(module_of(users[0]), Quantizer)
