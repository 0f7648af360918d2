"""Let batch norms that are called as functions be modules, so that all others find them."""

from __future__ import annotations

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
from fxquant.graph.ops import argument, is_tensor, module_kind, tensor_of

# Places of the arguments after the input.
_PLACES = {
    F.batch_norm: ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: (
        *("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    ),
}
_DEFAULTS = {"training": False, "eps": 1e-5}
_TENSORS = ("running_mean", "running_var", "weight", "bias")
_CLASSES = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def own_batchnorms(gm: GraphModule) -> int:
    """Replace `F.batch_norm` with running statistics by a batch norm module that owns them.

    That is the module whose tensors are read, where it is a plain batch norm, or else a new one
    beside them, `batch_norm`. Returns the number of calls replaced.
    """
    before, replaced = parameters_read(gm), 0
    for node in [node for node in gm.graph.nodes if node.target in _PLACES]:
        places = enumerate(_PLACES[node.target], 1)
        values = {name: argument(node, i, name, _DEFAULTS.get(name)) for i, name in places}
        if values["training"] is not False or not _are_stored(values) or not is_tensor(node):
            continue
        _replace(gm, node, values)
        replaced += 1
    drop_unread(gm, before)
    return replaced


def _are_stored(values: dict[str, object]) -> bool:
    """Whether the statistics, and scale and shift where given, are tensors of the model."""
    statistics = [values["running_mean"], values["running_var"]]
    given = [values[name] for name in _TENSORS if values[name] is not None]
    stored = [isinstance(value, Node) and value.op == "get_attr" for value in given]
    return all(value is not None for value in statistics) and all(stored)


def _replace(gm: GraphModule, node: Node, values: dict[str, object]) -> None:
    tensors = {n: values[n] and tensor_of(values[n]) for n in _TENSORS}
    path = str(values["running_mean"].target)
    owner = path.rpartition(".")[0]
    if _is_that_batchnorm(gm.get_submodule(owner), tensors, values["eps"]):
        replace_by_module(gm, node, owner)
    else:
        module = _batchnorm(tensors, values["eps"], len(node.meta["shape"]))
        call_owned(gm, node, module, path, "batch_norm")


def _is_that_batchnorm(module: nn.Module, tensors: dict[str, Tensor], eps: float) -> bool:
    if module_kind(module) != "batchnorm" or module.eps != eps:
        return False
    return all(getattr(module, name, None) is tensor for name, tensor in tensors.items())


def _batchnorm(tensors: dict[str, Tensor], eps: float, rank: int) -> nn.Module:
    module = _CLASSES[rank](len(tensors["running_mean"]), eps, affine=False).eval()
    for name in ("running_mean", "running_var"):
        setattr(module, name, tensors[name].detach())
    for name in ("weight", "bias"):
        tensor = tensors[name]
        if tensor is not None:
            tensor = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
        module.register_parameter(name, tensor)
    module.affine = tensors["weight"] is not None
    return module
