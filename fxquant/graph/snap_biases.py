"""Put each quantized layer's bias on the int32 grid on which an integer kernel adds it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxquant.errors import ExportError
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.insert_taps import Tap
from fxquant.graph.ops import LIMITS, is_transposed, kind, limits, module_of
from fxquant.graph.regions import region_of
from fxquant.quantizer import Quantizer

logger = logging.getLogger(__name__)

# Half of int32's range: the sum of products that the kernel adds to the bias needs the rest.
LARGEST_BIAS = 2**30


@torch.no_grad()
def snap_biases(student: nn.Module) -> int:
    """Round each quantized layer's bias to a multiple of (input scale x weight scale), in place.

    An integer kernel adds the bias as int32 on that grid; afterwards the student adds the same
    number. Where a channel's weights are so small that its bias would not fit, the scale of the
    channel's weights is raised until it does: that changes the output by less than
    fan_in * 1.2e-7 of the bias. A layer called more than once gets a bias for each call, as each
    input has a grid of its own. Layers whose input is no quantizer's value are left alone, with
    the reason logged, and so are transposed convolutions, which no integer kernel computes. Call
    it after training; a second call changes nothing. Returns the number of biases that changed.
    Raises ExportError where a bias or scale is not a finite number.
    """
    layers = [_Layer.of(node) for node in separate_biases(student)]
    layers = [layer for layer in layers if layer is not None]
    for layer in layers:
        layer.check_finite()
        layer.make_room()
    return sum(layer.snap() for layer in layers)


@dataclass(frozen=True)
class _Layer:
    """A quantized layer with a bias, its weights' quantizer and the one its input comes from."""

    name: str
    bias: Tensor
    weights: Quantizer
    source: Quantizer

    @classmethod
    def of(cls, node: Node) -> _Layer | None:
        name, source = layer_name(node), input_quantizer(node)
        if source is None:
            logger.info("bias of %s is not snapped: its input is not quantized", name)
            return None
        return cls(name, bias_of(node), module_of(node.args[1]), source)

    def check_finite(self) -> None:
        values = {
            "bias": self.bias,
            "input scale": self.source.scale,
            "weight scale": self.weights.scale,
        }
        for what, value in values.items():
            if not torch.isfinite(value).all():
                raise ExportError(
                    f"the {what} of layer '{self.name}' holds a value that is not finite"
                )

    def make_room(self) -> None:
        """Raise the weight scale of channels whose bias would leave the int32 range."""
        # A hair more than needed, so that rounding in exp(log(scale)) can't undo it.
        least = self.bias.abs().double() / self.source.scale.double() / LARGEST_BIAS
        short = least * (1 + 5e-5) > self.weights.scale.double()
        if short.any():
            raised = (least * (1 + 1e-4)).log().float()
            self.weights.log_scale.copy_(torch.where(short, raised, self.weights.log_scale))
            logger.info(
                "%d channels of %s have weights too small beside their bias for an int32 bias: "
                "their weight scale is raised",
                int(short.sum()),
                self.name,
            )

    def snap(self) -> int:
        """Round the bias to its grid; whether that changed it."""
        before = self.bias.clone()
        scale = self.source.scale * self.weights.scale
        self.bias.copy_(quantize_bias(self.bias, scale).double() * scale)
        return int(not torch.equal(before, self.bias))


def separate_biases(student: nn.Module) -> list[Node]:
    """The quantized layers with a bias, which no two of them share from here on."""
    seen: set[int] = set()
    layers = [
        node
        for node in quantized_layers(student)
        if bias_of(node) is not None and adds_integers(node)
    ]
    for node in layers:
        if id(bias_of(node)) in seen:
            _copy_bias(node)
        seen.add(id(bias_of(node)))
    return layers


def _copy_bias(node: Node) -> None:
    region, shared = region_of(node), node.args[2]
    path, _, attribute = str(shared.target).rpartition(".")
    owner, number = region.get_submodule(path), 1
    while hasattr(owner, f"{attribute}_{number}"):
        number += 1
    bias = getattr(owner, attribute)
    copied = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    owner.register_parameter(f"{attribute}_{number}", copied)
    with region.graph.inserting_before(node):
        node.update_arg(2, region.graph.get_attr(f"{shared.target}_{number}"))
    if not shared.users:
        region.graph.erase_node(shared)
    region.recompile()


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Integer grid values of `bias`, int32: `round(bias / scale)` in double precision.

    Double, because a bias has up to 30 bits, more than float32 can hold.
    """
    q = torch.round(bias.double() / scale.double())
    return torch.where(bias == 0, 0.0, q).clamp(-LARGEST_BIAS, LARGEST_BIAS).int()


def bias_of(layer: Node) -> Tensor | None:
    """The bias parameter of a quantized layer's node, shape (channels,), or None."""
    argument = layer.args[2] if len(layer.args) > 2 else None
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return None
    owner, _, attribute = str(argument.target).rpartition(".")
    return getattr(region_of(layer).get_submodule(owner), attribute)


def adds_integers(layer: Node) -> bool:
    """Whether integer kernels add the layer's bias: those of a transposed convolution don't exist.

    Its numbers are multiplied and summed in floating point, and so is its bias added.
    """
    return not is_transposed(layer)


def input_quantizer(layer: Node) -> Quantizer | None:
    """The quantizer on whose grid the layer's input is; None where there is none."""
    return quantizer_of(layer.args[0])


def quantizer_of(value: object) -> Quantizer | None:
    """The quantizer on whose grid a value is; None where there is none.

    Ops that only move numbers of one grid, ReLUs and taps are looked through.
    """
    while isinstance(value, Node):
        module = module_of(value)
        if isinstance(module, Quantizer):
            return module
        if not _keeps_the_grid(value, module) or not value.args:
            return None
        value = value.args[0]
    return None


def _keeps_the_grid(node: Node, module: nn.Module | None) -> bool:
    if isinstance(module, Tap) or kind(node) == "move":
        return True
    # Zero is on every grid.
    return kind(node) in LIMITS and limits(node) == (0, math.inf)
