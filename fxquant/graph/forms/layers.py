"""Let layers that are called as functions be modules, so that all others find their weights."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.forms.nodes import (
    call_owned,
    drop_unread,
    parameters_read,
    replace_by_module,
)
from fxquant.graph.ops import argument, is_real, module_kind, tensor_of

_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
# Of each function the class of its layer, and the arguments after the bias.
_LAYERS = {
    F.linear: (nn.Linear, ()),
    F.conv1d: (nn.Conv1d, _CONV),
    F.conv2d: (nn.Conv2d, _CONV),
    F.conv3d: (nn.Conv3d, _CONV),
    F.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
}
_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
_PRODUCTS = frozenset({operator.matmul, torch.matmul, torch.mm, "matmul", "mm"})


def own_layers(gm: GraphModule) -> int:
    """Replace `F.linear`, `F.conv2d` and the like on a stored weight by a module that owns it.

    That is the layer whose weight is read, where it computes just this, or else a new one beside
    the weight, named after it. A product with a stored matrix is a linear layer too. Returns the
    number of calls replaced.
    """
    before = parameters_read(gm)
    made: dict[int, list[str]] = {}
    layers = [node for node in gm.graph.nodes if node.target in _LAYERS and _are_stored(node)]
    products = [node for node in gm.graph.nodes if node.target in _PRODUCTS and _is_linear(node)]
    for node in layers:
        _own_layer(gm, node, made)
    for node in products:
        _own_product(gm, node)
    drop_unread(gm, before)
    return len(layers) + len(products)


def _are_stored(node: Node) -> bool:
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    stored = _is_stored(weight) and (bias is None or _is_stored(bias))
    return stored and tensor_of(weight).dim() > 1


def _is_stored(value: object) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def _own_layer(gm: GraphModule, node: Node, made: dict[int, list[str]]) -> None:
    """Call the layer that computes this; `made` holds those made before, by their weight."""
    source = argument(node, 1, "weight")
    bias = argument(node, 2, "bias")
    weight, bias = tensor_of(source), None if bias is None else tensor_of(bias)
    base, names = _LAYERS[node.target]
    values = {n: argument(node, i, n, _DEFAULTS[n]) for i, n in enumerate(names, 3)}
    layer = _layer(base, weight, bias, values)
    owner, _, attribute = str(source.target).rpartition(".")
    for target in [owner, *made.get(id(weight), [])]:
        if _is_the_same(gm.get_submodule(target), layer, values):
            replace_by_module(gm, node, target)
            return
    target = call_owned(gm, node, layer, str(source.target), _name(attribute, base))
    made.setdefault(id(weight), []).append(target)


def _layer(base: type, weight: Tensor, bias: Tensor | None, values: dict) -> nn.Module:
    """A layer with these very tensors; a buffer stays one, so that it is not trained."""
    # On meta nothing is drawn, and no memory taken.
    if base is nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    else:
        groups = values["groups"]
        fewer, more = weight.shape[1] * groups, weight.shape[0]
        channels = (more, fewer) if "output_padding" in values else (fewer, more)
        layer = base(*channels, tuple(weight.shape[2:]), device="meta", **values)
    for name, tensor in (("weight", weight), ("bias", bias)):
        delattr(layer, name)
        if tensor is None or isinstance(tensor, nn.Parameter):
            layer.register_parameter(name, tensor)
        else:
            layer.register_buffer(name, tensor)
    return layer.eval()


def _is_the_same(module: nn.Module, layer: nn.Module, values: dict) -> bool:
    if module_kind(module) not in ("conv", "linear") or not isinstance(module, type(layer)):
        return False
    settings = {*values, "padding_mode"} if values else set()
    return (
        module.weight is layer.weight
        and module.bias is layer.bias
        and all(getattr(module, name) == getattr(layer, name) for name in settings)
    )


def _name(attribute: str, base: type) -> str:
    """`qkv` for `qkv_weight`; `linear` or `conv` where the weight has no name but that."""
    name = attribute.removesuffix("_folded").removesuffix("weight").rstrip("_")
    return name or ("linear" if base is nn.Linear else "conv")


def _is_linear(node: Node) -> bool:
    x, matrix = argument(node, 0, "input"), argument(node, 1, "other")
    stored = _is_stored(matrix) and tensor_of(matrix).dim() == 2
    return stored and isinstance(x, Node) and x.op != "get_attr" and is_real(x)


def _own_product(gm: GraphModule, node: Node) -> None:
    source = argument(node, 1, "other")
    stored = tensor_of(source)
    weight = stored.detach().t().contiguous()
    weight = nn.Parameter(weight, False) if isinstance(stored, nn.Parameter) else weight
    name = _name(str(source.target).rpartition(".")[2], nn.Linear)
    call_owned(gm, node, _layer(nn.Linear, weight, None, {}), str(source.target), name)
