"""What a student costs: bits of its parameters, and bit operations of what multiplies in it."""

from __future__ import annotations

import math

from torch import nn
from torch.fx import Node

from fxquant.graph.insert_quantizers import quantized_layers
from fxquant.graph.ops import kind, module_of, tensor_inputs
from fxquant.graph.regions import region_of
from fxquant.graph.snap_biases import input_quantizer, quantizer_of
from fxquant.quantizer import Quantizer

FLOAT_BITS = 32
MATMUL = "matmul"


def parameter_bits(student: nn.Module) -> int:
    """Bits of all parameters: quantized weights at their widths, biases and the rest at 32.

    The scales of quantizers are not counted: a few thousandths of the weights.
    """
    widths = {
        id(weight_of(node)): module_of(node.args[1]).spec.bits for node in quantized_layers(student)
    }
    scales = [m.log_scale for m in student.modules() if isinstance(m, Quantizer)]
    widths |= {id(scale): 0 for scale in scales}
    return sum(p.numel() * widths.get(id(p), FLOAT_BITS) for p in student.parameters())


def weight_of(layer: Node) -> nn.Parameter:
    """The weight that a quantized layer's node fake-quantizes."""
    return region_of(layer).get_submodule(layer.meta["layer"]).weight


def input_bits(layer: Node) -> int | None:
    """Width of the activations that enter a quantized layer; None where they are floats."""
    source = input_quantizer(layer)
    return source.spec.bits if source else None


def product_bits(node: Node) -> tuple[int, ...]:
    """Widths of the values that a product multiplies; empty where one is not quantized."""
    found = [quantizer_of(value) for value in tensor_inputs(node)]
    return tuple(q.spec.bits for q in found if q) if all(found) else ()


def product_is_quantized(node: Node) -> bool:
    """Whether a node is a product of two values on grids."""
    return kind(node) == MATMUL and bool(product_bits(node)) and not node.meta.get("float_reason")


def bitops_per_mac(node: Node | str, quantized: set[Node]) -> int:
    """Width times width of what a node, or a module that no graph shows, multiplies."""
    if node in quantized:
        return module_of(node.args[1]).spec.bits * (input_bits(node) or FLOAT_BITS)
    if isinstance(node, Node) and product_is_quantized(node):
        return math.prod(product_bits(node))
    return FLOAT_BITS**2
