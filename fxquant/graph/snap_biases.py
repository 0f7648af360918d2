"""Put each quantized layer's bias on the int32 grid on which an integer kernel adds it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.errors import ExportError
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.insert_taps import Tap
from fxquant.graph.ops import kind, module_of, module_table
from fxquant.quantizer import Quantizer

logger = logging.getLogger(__name__)

# Half of int32's range: the sum of products that the kernel adds to the bias needs the rest.
LARGEST_BIAS = 2**30


@torch.no_grad()
def snap_biases(student: GraphModule) -> int:
    """Round each quantized layer's bias to a multiple of (input scale x weight scale), in place.

    An integer kernel adds the bias as int32 on that grid; afterwards the student adds the same
    number. Where a channel's weights are so small that its bias would not fit, the scale of the
    channel's weights is raised until it does: that changes the output by less than
    fan_in * 1.2e-7 of the bias. Layers whose input is no quantizer's value are left alone, with
    the reason logged. Call it after training; a second call changes nothing. Returns the number
    of biases that changed. Raises ExportError where a bias or scale is not a finite number.
    """
    modules, changed = module_table(student), 0
    snapped: set[int] = set()
    for node in quantized_layers(student):
        bias = bias_of(student, node)
        source = input_quantizer(node, modules)
        if bias is None or id(bias) in snapped:
            continue
        if source is None:
            logger.info("bias of %s is not snapped: its input is not quantized", layer_name(node))
            continue
        snapped.add(id(bias))
        before = bias.clone()
        weights = module_of(node.args[1], modules)
        _check_finite(node, bias, source.scale, weights.scale)
        _make_room(node, bias, source.scale, weights)
        scale = source.scale * weights.scale
        bias.copy_(quantize_bias(bias, scale).double() * scale)
        changed += int(not torch.equal(before, bias))
    return changed


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Integer grid values of `bias`, int32: `round(bias / scale)` in double precision.

    Double, because a bias has up to 30 bits, more than float32 can hold.
    """
    q = torch.round(bias.double() / scale.double())
    return torch.where(bias == 0, 0.0, q).clamp(-LARGEST_BIAS, LARGEST_BIAS).int()


def bias_of(student: GraphModule, layer: Node) -> Tensor | None:
    """The bias parameter of a quantized layer's node, shape (channels,), or None."""
    argument = layer.args[2] if len(layer.args) > 2 else None
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return None
    owner, _, attribute = str(argument.target).rpartition(".")
    return getattr(student.get_submodule(owner), attribute)


def input_quantizer(layer: Node, modules: Mapping[str, nn.Module]) -> Quantizer | None:
    """The quantizer on whose grid the layer's input is; None where there is none.

    Ops that only move numbers of one grid, ReLUs and taps are looked through.
    """
    node = layer.args[0]
    while isinstance(node, Node):
        module = module_of(node, modules)
        if isinstance(module, Quantizer):
            return module
        if not _keeps_the_grid(node, module, modules) or not node.args:
            return None
        node = node.args[0]
    return None


def _keeps_the_grid(node: Node, module: nn.Module | None, modules: Mapping[str, nn.Module]) -> bool:
    if isinstance(module, Tap) or kind(node, modules) in ("move", "relu"):
        return True
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    return node.target is F.pad and mode != "constant"


def _check_finite(node: Node, bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> None:
    values = {"bias": bias, "input scale": input_scale, "weight scale": weight_scale}
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise ExportError(
                f"the {name} of layer '{layer_name(node)}' holds a value that is not finite"
            )


def _make_room(node: Node, bias: Tensor, input_scale: Tensor, weights: Quantizer) -> None:
    """Raise the weight scale of channels whose bias would leave the int32 range."""
    # A hair more than needed, so that rounding in exp(log(scale)) can't undo it.
    needed = bias.abs().double() / input_scale.double() / LARGEST_BIAS * (1 + 1e-4)
    short = needed > weights.scale.double() * (1 + 5e-5)
    if short.any():
        weights.log_scale.copy_(torch.where(short, needed.log().float(), weights.log_scale))
        logger.info(
            "%d channels of %s have weights too small beside their bias for an int32 bias: "
            "their weight scale is raised",
            int(short.sum()),
            layer_name(node),
        )
