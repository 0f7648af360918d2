"""Work out what depends on parameters alone: standardised weights, position biases, ..."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from fxquant.graph.forms.nodes import (
    drop_unread,
    free_name,
    get_attribute,
    parameters_read,
    replace,
)
from fxquant.graph.forms.out_of_place import may_write, written
from fxquant.graph.ops import module_of, tensor_of


@torch.no_grad()
def fold_constants(gm: GraphModule) -> int:
    """Replace each value that no input has a part in by a tensor of its own; the number replaced.

    It takes the place and name of the first tensor that it is made of where it has its shape and
    nothing else reads that one, and stands beside it otherwise. It is a parameter if it is made
    of one.
    """
    roots = _roots(gm)
    ends = [
        node
        for node in roots
        if node.op != "get_attr" and any(user not in roots for user in node.users)
    ]
    values = _values(gm, roots)
    ends = [node for node in ends if isinstance(values[node], Tensor)]
    before, made = parameters_read(gm), {}
    for node in ends:
        key = str(_first_tensor(roots[node]).target)
        target = next((t for t in made.get(key, []) if _same(gm, t, values[node])), None)
        if target is None:
            target = _own_tensor(gm, node, roots[node], values[node])
            made.setdefault(key, []).append(target)
        with gm.graph.inserting_before(node):
            replace(node, get_attribute(gm, target, values[node]))
    for node in reversed([node for node in roots if node not in ends]):
        if not node.users:
            gm.graph.erase_node(node)
    drop_unread(gm, before)
    gm.delete_all_unused_submodules()
    return len(ends)


def _roots(gm: GraphModule) -> dict[Node, list[Node]]:
    """For each node without an input's part in it, the nodes that bring in a tensor."""
    roots: dict[Node, list[Node]] = {}
    changed = written(gm)
    for node in gm.graph.nodes:
        parents = node.all_input_nodes
        if node in changed or may_write(node):
            continue
        if node.op == "get_attr" and isinstance(tensor_of(node), Tensor):
            roots[node] = [node]
        elif parents and _always_the_same(node) and all(parent in roots for parent in parents):
            found = [root for parent in parents for root in roots[parent]]
            roots[node] = list(dict.fromkeys([*found, *([node] if _has_weights(node) else [])]))
    return roots


def _always_the_same(node: Node) -> bool:
    """Whether a call gives the same for the same arguments."""
    if node.op == "call_module":
        return not isinstance(module_of(node), GraphModule)
    return node.op == "call_method" or (node.op == "call_function" and not node.is_impure())


def _has_weights(node: Node) -> bool:
    return node.op == "call_module" and any(True for _ in module_of(node).parameters())


def _values(gm: GraphModule, nodes: dict[Node, list[Node]]) -> dict[Node, object]:
    interpreter = Interpreter(gm)
    for node in nodes:
        interpreter.env[node] = interpreter.run_node(node)
    return interpreter.env


def _first_tensor(roots: list[Node]) -> Node:
    """The first parameter of the roots, or the first buffer."""
    tensors = [root for root in roots if root.op == "get_attr"]
    return next((root for root in tensors if _is_trained(root)), tensors[0])


def _is_trained(root: Node) -> bool:
    return root.op == "call_module" or isinstance(tensor_of(root), nn.Parameter)


def _same(gm: GraphModule, target: str, value: Tensor) -> bool:
    owner, _, attribute = target.rpartition(".")
    return torch.equal(getattr(gm.get_submodule(owner), attribute), value)


def _own_tensor(gm: GraphModule, node: Node, roots: list[Node], value: Tensor) -> str:
    """Keep the value of `node` as a tensor of the model; its name."""
    first = _first_tensor(roots)
    target = str(first.target)
    trained = value.is_floating_point() and any(_is_trained(root) for root in roots)
    if value.shape != tensor_of(first).shape or not _is_only_for(gm, target, node):
        target = free_name(gm, f"{target}_folded")
    owner, _, attribute = target.rpartition(".")
    module = gm.get_submodule(owner)
    if hasattr(module, attribute):
        delattr(module, attribute)
    value = value.detach().clone()
    if trained:
        module.register_parameter(attribute, nn.Parameter(value, requires_grad=False))
    else:
        module.register_buffer(attribute, value)
    return target


def _is_only_for(gm: GraphModule, target: str, end: Node) -> bool:
    """Whether all that is computed from the tensor `target` goes into `end`."""
    owner = target.rpartition(".")[0]
    waiting = [node for node in gm.graph.nodes if node.op == "get_attr" and node.target == target]
    seen = {end}
    if any(node.op == "call_module" and node.target == owner for node in gm.graph.nodes):
        return False
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            if not node.users:
                return False
            waiting += node.users
    return True
