"""From a student to the integer network that is written to a file."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxquant.errors import ExportError
from fxquant.exporters.custom_ops import DEQUANTIZE, QUANTIZE_DEQUANTIZE
from fxquant.graph.insert_quantizers import is_activation_quantizer, layer_name, quantized_layers
from fxquant.graph.insert_taps import Tap
from fxquant.graph.ops import module_of
from fxquant.graph.regions import all_nodes, qualify, region_of, regions
from fxquant.graph.snap_biases import (
    adds_integers,
    bias_of,
    input_quantizer,
    quantize_bias,
)
from fxquant.quantizer import Quantizer
from fxquant.spec import QSpec


class FrozenQuantizer(nn.Module):
    """A quantizer of activations whose scale and zero point are constants."""

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        spec = quantizer.spec
        self.qmin, self.qmax, self.axis = spec.qmin, spec.qmax, spec.channel_axis
        self.register_buffer("scale", quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.round().to(_integers(spec)))

    def forward(self, x: Tensor) -> Tensor:
        grid = (self.scale, self.zero_point, self.qmin, self.qmax, self.axis)
        return QUANTIZE_DEQUANTIZE(x, *grid)


@torch.no_grad()
def freeze(student: nn.Module) -> nn.Module:
    """The integer network that `student` stands for: a copy on the CPU, in eval mode.

    Weights are int8 buffers (uint8 on grids with a zero point) under the names of the parameters
    that they replace, biases of integer layers int32 buffers, each followed by a visible
    `fxquant::dequantize`; activation quantizers are `fxquant::quantize_dequantize` with
    constants; taps are gone. It computes
    what the student does. Raises ExportError where a quantizer is not calibrated or a bias not
    snapped.
    """
    _check_quantizers(student)
    frozen = copy.deepcopy(student).cpu().eval().requires_grad_(False)
    _remove_taps(frozen)
    layers = quantized_layers(frozen)
    biases = {layer: _integer_bias(layer) for layer in layers}
    for layer in layers:
        _freeze_weight(layer)
        _freeze_bias(layer, biases[layer])
    for name, module in list(frozen.named_modules(remove_duplicate=False)):
        if isinstance(module, Quantizer):
            frozen.set_submodule(name, FrozenQuantizer(module))
    for region in regions(frozen):
        region.delete_all_unused_submodules()
        region.graph.lint()
        region.recompile()
    return frozen


def _check_quantizers(student: nn.Module) -> None:
    called = [node for node in all_nodes(student) if isinstance(module_of(node), Quantizer)]
    if not called:
        raise ExportError("the model holds no quantizers; expected a student made by prepare()")
    for node in called:
        if not module_of(node).enabled:
            name = qualify(region_of(node), node.target)
            raise ExportError(
                f"quantizer '{name}' is not calibrated", "call calibrate(student, images) first"
            )
        if is_activation_quantizer(node) and module_of(node).scale.dim():
            raise ExportError(
                f"quantizer '{qualify(region_of(node), node.target)}' has a scale for each channel "
                "of an activation; kernels take one for the whole tensor"
            )


def _remove_taps(model: nn.Module) -> None:
    for node in list(all_nodes(model)):
        if isinstance(module_of(node), Tap):
            node.replace_all_uses_with(node.args[0])
            node.graph.erase_node(node)


def _integer_bias(layer: Node) -> tuple[Tensor, Tensor] | None:
    """The layer's bias as int32 and its scale, each (channels,); None where it stays float."""
    bias, source = bias_of(layer), input_quantizer(layer)
    if bias is None or source is None or not adds_integers(layer):
        return None
    scale = source.scale * module_of(layer.args[1]).scale
    q = quantize_bias(bias, scale)
    _check_snapped(layer, bias, q, scale)
    return q, scale


def _check_snapped(layer: Node, bias: Tensor, q: Tensor, scale: Tensor) -> None:
    # A student that was snapped on another device has a scale with another last bit.
    slack = 0.01 * scale.double() + 1e-6 * bias.double().abs()
    if ((q.double() * scale - bias).abs() > slack).any():
        raise ExportError(
            f"the bias of layer '{layer_name(layer)}' is not on the grid of its integer kernel",
            "call snap_biases(student) after training, before the student is measured",
        )


def _freeze_weight(layer: Node) -> None:
    quantized: Node = layer.args[1]
    quantizer, source = module_of(quantized), quantized.args[0]
    owner, attribute = _owner(source)
    weight = getattr(owner, attribute)
    if weight.is_floating_point():  # else an earlier call of the same layer has frozen it
        integers = _integers(quantizer.spec)
        _set_buffer(owner, attribute, quantizer.quantize(weight).to(integers))
        _set_buffer(owner, f"{attribute}_scale", quantizer.scale)
        if not quantizer.spec.signed:
            _set_buffer(owner, f"{attribute}_zero_point", quantizer.zero_point.round().to(integers))
    _replace_argument(layer, 1, source.target, quantizer.spec.channel_axis)
    for node in (quantized, source):
        if not node.users:
            layer.graph.erase_node(node)


def _freeze_bias(layer: Node, bias: tuple[Tensor, Tensor] | None) -> None:
    if bias is None:
        return
    source: Node = layer.args[2]
    owner, attribute = _owner(source)
    for name, value in zip((attribute, f"{attribute}_scale"), bias, strict=True):
        _set_buffer(owner, name, value)
    _replace_argument(layer, 2, source.target, 0)
    if not source.users:
        layer.graph.erase_node(source)


def _replace_argument(layer: Node, index: int, target: str, axis: int | None) -> None:
    """Let the layer read `dequantize(target, target_scale)` as its argument at `index`."""
    graph, owner = layer.graph, region_of(layer).get_submodule(target.rpartition(".")[0])
    offset = f"{target}_zero_point"
    with graph.inserting_before(layer):
        q, scale = graph.get_attr(target), graph.get_attr(f"{target}_scale")
        has_offset = hasattr(owner, offset.rpartition(".")[2])
        zero_point = graph.get_attr(offset) if has_offset else None
        value = graph.call_function(DEQUANTIZE, (q, scale, zero_point, axis))
    layer.update_arg(index, value)


def _integers(spec: QSpec) -> torch.dtype:
    """The type that holds the grid, whose sign is the grid's."""
    return torch.int8 if spec.signed else torch.uint8


def _owner(node: Node) -> tuple[nn.Module, str]:
    name, _, attribute = str(node.target).rpartition(".")
    return region_of(node).get_submodule(name), attribute


def _set_buffer(owner: nn.Module, name: str, value: Tensor) -> None:
    if hasattr(owner, name):
        delattr(owner, name)
    owner.register_buffer(name, value.detach().clone())
