"""From a student to the integer network that is written to a file."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.errors import ExportError
from fxquant.exporters.custom_ops import DEQUANTIZE, QUANTIZE_DEQUANTIZE
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.insert_taps import Tap
from fxquant.graph.ops import module_of, module_table
from fxquant.graph.snap_biases import bias_of, input_quantizer, quantize_bias
from fxquant.quantizer import Quantizer


class FrozenQuantizer(nn.Module):
    """A quantizer of activations whose scale and zero point are constants."""

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        spec = quantizer.spec
        self.qmin, self.qmax, self.axis = spec.qmin, spec.qmax, spec.channel_axis
        zero_point = quantizer.zero_point.round().to(torch.int8 if spec.signed else torch.uint8)
        self.register_buffer("scale", quantizer.scale.detach().clone())
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Tensor:
        grid = (self.scale, self.zero_point, self.qmin, self.qmax, self.axis)
        return QUANTIZE_DEQUANTIZE(x, *grid)


@torch.no_grad()
def freeze(student: GraphModule) -> GraphModule:
    """The integer network that `student` stands for: a copy on the CPU, in eval mode.

    Weights are int8 buffers under the names of the parameters that they replace, biases of
    integer layers int32 buffers, each followed by a visible `fxquant::dequantize`; activation
    quantizers are `fxquant::quantize_dequantize` with constants; taps are gone. It computes
    what the student does. Raises ExportError where a quantizer is not calibrated or a bias not
    snapped.
    """
    _check_calibrated(student)
    frozen = copy.deepcopy(student).cpu().eval().requires_grad_(False)
    _remove_taps(frozen)
    modules = module_table(frozen)
    layers = quantized_layers(frozen)
    biases = {layer: _integer_bias(frozen, layer, modules) for layer in layers}
    for layer in layers:
        _freeze_weight(frozen, layer, modules)
        _freeze_bias(frozen, layer, biases[layer])
    for name, module in modules.items():
        if isinstance(module, Quantizer):
            frozen.set_submodule(name, FrozenQuantizer(module))
    frozen.delete_all_unused_submodules()
    frozen.graph.lint()
    frozen.recompile()
    return frozen


def _check_calibrated(student: GraphModule) -> None:
    called = {node.target for node in student.graph.nodes if node.op == "call_module"}
    quantizers = {n: m for n, m in module_table(student).items() if isinstance(m, Quantizer)}
    if not quantizers:
        raise ExportError("the model holds no quantizers; expected a student made by prepare()")
    for name, quantizer in quantizers.items():
        if name in called and not quantizer.enabled:
            raise ExportError(
                f"quantizer '{name}' is not calibrated", "call calibrate(student, images) first"
            )


def _remove_taps(gm: GraphModule) -> None:
    modules = module_table(gm)
    for node in list(gm.graph.nodes):
        if isinstance(module_of(node, modules), Tap):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)


def _integer_bias(
    gm: GraphModule, layer: Node, modules: dict[str, nn.Module]
) -> tuple[Tensor, Tensor] | None:
    """The layer's bias as int32 and its scale, each (channels,); None where it stays float."""
    bias, source = bias_of(gm, layer), input_quantizer(layer, modules)
    if bias is None or source is None:
        return None
    scale = source.scale * modules[layer.args[1].target].scale
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


def _freeze_weight(gm: GraphModule, layer: Node, modules: dict[str, nn.Module]) -> None:
    quantized: Node = layer.args[1]
    quantizer, source = modules[quantized.target], quantized.args[0]
    owner, attribute = _owner(gm, source)
    weight = getattr(owner, attribute)
    if weight.is_floating_point():  # else an earlier call of the same layer has frozen it
        _set_buffer(owner, attribute, quantizer.quantize(weight).to(torch.int8))
        _set_buffer(owner, f"{attribute}_scale", quantizer.scale)
    _replace_argument(gm, layer, 1, source.target, quantizer.spec.channel_axis)
    for node in (quantized, source):
        if not node.users:
            gm.graph.erase_node(node)


def _freeze_bias(gm: GraphModule, layer: Node, bias: tuple[Tensor, Tensor] | None) -> None:
    if bias is None:
        return
    source: Node = layer.args[2]
    owner, attribute = _owner(gm, source)
    for name, value in zip((attribute, f"{attribute}_scale"), bias, strict=True):
        _set_buffer(owner, name, value)
    _replace_argument(gm, layer, 2, source.target, 0)
    if not source.users:
        gm.graph.erase_node(source)


def _replace_argument(
    gm: GraphModule, layer: Node, index: int, target: str, axis: int | None
) -> None:
    """Let the layer read `dequantize(target, target_scale)` as its argument at `index`."""
    with gm.graph.inserting_before(layer):
        q, scale = gm.graph.get_attr(target), gm.graph.get_attr(f"{target}_scale")
        value = gm.graph.call_function(DEQUANTIZE, (q, scale, axis))
    layer.update_arg(index, value)


def _owner(gm: GraphModule, node: Node) -> tuple[nn.Module, str]:
    name, _, attribute = str(node.target).rpartition(".")
    return gm.get_submodule(name), attribute


def _set_buffer(owner: nn.Module, name: str, value: Tensor) -> None:
    if hasattr(owner, name):
        delattr(owner, name)
    owner.register_buffer(name, value.detach().clone())
