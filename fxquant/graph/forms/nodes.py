"""Make nodes, and the modules that they call, in a graph whose nodes know their shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from fxquant.graph.ops import KIND, tensor_of

# What a node that takes another one's place takes over from it, beside shape and type.
_KEPT = ("nn_module_stack", "stack_trace", KIND)


def call(graph: Graph, like: Node, function: Callable, *args, **kwargs) -> Node:
    """Add a call of `function`, as part of what `like` computes; its shape is worked out."""
    node = graph.call_function(function, args, kwargs)
    values = map_arg((args, kwargs), _on_meta)
    note_value(node, function(*values[0], **values[1]))
    node.meta.update({key: like.meta[key] for key in _KEPT if key in like.meta})
    return node


def note_value(node: Node, value: Tensor) -> None:
    """Keep shape and type of a value that a node gives."""
    node.meta.update(shape=value.shape, dtype=value.dtype)


def _on_meta(node: Node) -> Tensor:
    dtype = node.meta.get("dtype", torch.float32)
    return torch.empty(node.meta["shape"], dtype=dtype, device="meta")


def get_attribute(gm: GraphModule, target: str, value: Tensor) -> Node:
    """Add a node that reads a parameter or buffer."""
    node = gm.graph.get_attr(target)
    note_value(node, value)
    return node


def replace(node: Node, new: Node) -> None:
    """Put `new`, which computes the same, in the place and under the name of `node`."""
    name = node.name
    for key, value in node.meta.items():
        new.meta.setdefault(key, value)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    new.name = name


def call_owned(gm: GraphModule, node: Node, module: nn.Module, tensor_path: str, name: str) -> str:
    """Let `node` be a call of `module` on its first argument, stored where its weight is.

    `tensor_path` names that weight. Its owner is replaced where it owns nothing else that is
    read, so that the layer keeps the name that it had; otherwise the module goes into it as
    `name`, or that with a number. Returns the module's full name.
    """
    owner, _, attribute = tensor_path.rpartition(".")
    if owner and attribute.startswith("weight") and _owns_nothing_else(gm, owner, module):
        target = owner
        gm.set_submodule(owner, module)
    else:
        target = free_name(gm, f"{owner}.{name}" if owner else name)
        gm.add_submodule(target, module)
    replace_by_module(gm, node, target)
    return target


def _owns_nothing_else(gm: GraphModule, owner: str, module: nn.Module) -> bool:
    """Whether of a module no tensors are read but those of `module`, and nothing is called."""
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    read = {
        id(tensor_of(node))
        for node in gm.graph.nodes
        if node.op == "get_attr" and node.users and str(node.target).startswith(f"{owner}.")
    }
    inside = any(name == owner or name.startswith(f"{owner}.") for name in called)
    return not inside and read <= own


def replace_by_module(gm: GraphModule, node: Node, target: str) -> None:
    """Let `node` be a call of the module `target` on its first argument."""
    x = node.args[0] if node.args else node.kwargs["input"]
    with gm.graph.inserting_before(node):
        new = gm.graph.call_module(target, (x,))
    replace(node, new)


def free_name(gm: GraphModule, name: str) -> str:
    """`name`, or where the model has that attribute already, `name` with a number."""
    path, _, last = name.rpartition(".")
    owner = gm.get_submodule(path)
    number, free = 1, last
    while hasattr(owner, free):
        free, number = f"{last}_{number}", number + 1
    return f"{path}.{free}" if path else free


def parameters_read(gm: GraphModule) -> set[str]:
    """Names of the tensors that the graph reads by get_attr nodes."""
    return {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}


def drop_unread(gm: GraphModule, names: set[str]) -> None:
    """Remove those of the named tensors that nothing reads, neither a node nor a called module."""
    for node in list(gm.graph.nodes):
        if node.op == "get_attr" and not node.users:
            gm.graph.erase_node(node)
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    for name in names - parameters_read(gm):
        owner, _, attribute = name.rpartition(".")
        if owner not in called:
            delattr(gm.get_submodule(owner), attribute)
