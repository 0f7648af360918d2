"""Let ops give new values instead of changing the one they read, so that the graph tells all."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.kinds import METHODS
from fxquant.graph.ops import KIND, argument, first_input, is_tensor, module_of

_OPERATORS = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    operator.imatmul: operator.matmul,
    operator.ipow: operator.pow,
}
_FUNCTIONS = {
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    F.elu_: F.elu,
    F.selu_: F.selu,
    F.leaky_relu_: F.leaky_relu,
    F.hardtanh_: F.hardtanh,
}
# Where these take `inplace` as an argument by place.
_PLACES = {
    **dict.fromkeys((F.relu, F.relu6, F.hardswish, F.hardsigmoid, F.silu, F.mish, F.selu), 1),
    **dict.fromkeys((F.elu, F.celu, F.leaky_relu), 2),
    **dict.fromkeys((F.hardtanh, F.threshold), 3),
    F.rrelu: 4,
}
# Methods without a counterpart that gives a new value, and functions that do.
_METHODS = {"zero_": torch.zeros_like, "fill_": torch.full_like}
# Their result shares memory with what they read, or may.
_VIEWS = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze"),
        *("unsqueeze", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"),
        *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select"),
        *("expand", "expand_as", "broadcast_to", "diagonal", "unfold", "contiguous", "detach"),
        "getitem",
    }
)
_VIEW_MODULES = (nn.Flatten, nn.Unflatten)


def out_of_place(gm: GraphModule) -> int:
    """Replace in-place ops by those that give a new value; the number replaced.

    What reads the changed value later reads the new one; where a part of a tensor is changed,
    `x[i].relu_()`, what reads the tensor later reads a copy with the new part in it. An op that
    changes memory of which another view is read later stays as it is.
    """
    order: dict[Node, float] = {node: place for place, node in enumerate(gm.graph.nodes)}
    changing = [node for node in gm.graph.nodes if _has_counterpart(node)]
    kept = {node for node in changing if _is_seen_elsewhere(node, order)}
    # A module is in place for all of its calls.
    modules = {id(module_of(node)) for node in kept if node.op == "call_module"}
    replaced = 0
    for node in changing:
        if _is_seen_elsewhere(node, order) or id(module_of(node)) in modules:
            continue
        _read_later(first_input(node), node, order[node], order)
        if _is_item(first_input(node)):
            _put_back(gm, node, order)
        _give_new_value(node)
        replaced += 1
    return replaced


def set_item(x: Tensor, index: object, value: Tensor | float) -> Tensor:
    """A copy of `x` with `value` at `index`."""
    copied = x.clone()
    copied[index] = value
    return copied


def may_write(node: Node) -> bool:
    """Whether a node may change the value that it reads."""
    if node.op == "call_module":
        return getattr(module_of(node), "inplace", False) is True
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    changes = name.endswith("_") and not name.endswith("__")
    return changes or node.target is operator.setitem or _has_counterpart(node)


def written(gm: GraphModule) -> set[Node]:
    """Nodes whose memory a node of the graph writes to, each by the first of its views."""
    sources = [first_input(node) for node in gm.graph.nodes if may_write(node)]
    return {_base_of(source) for source in sources if source is not None}


def _has_counterpart(node: Node) -> bool:
    """Whether a node is an op that changes what it reads, and that exists in another form."""
    if node.op == "call_module":
        return getattr(module_of(node), "inplace", False) is True
    if node.op == "call_method":
        return node.target in _METHODS or _without_underscore(node.target) is not None
    if node.target in _PLACES:
        return bool(argument(node, _PLACES[node.target], "inplace", False))
    return node.target in (operator.setitem, *_OPERATORS, *_FUNCTIONS)


def _without_underscore(method: str) -> str | None:
    plain = method.removesuffix("_")
    return plain if plain != method and plain in METHODS else None


def _is_seen_elsewhere(node: Node, order: dict[Node, float]) -> bool:
    """Whether another name for the memory that the op writes to is read after it.

    Of a part of a tensor, its own name and that of the tensor don't count.
    """
    source = first_input(node)
    if not is_tensor(source):
        return False
    own = {source, node, *([first_input(source)] if _is_item(source) else [])}
    base = _base_of(source)
    others = {base, *_views_of(base)} - own
    return any(order[user] > order[node] for other in others for user in other.users)


def _base_of(node: Node) -> Node:
    while _is_view(node):
        node = first_input(node)
    return node


def _is_item(node: Node | None) -> bool:
    """Whether a node is a part of a tensor."""
    return node is not None and node.target is operator.getitem and is_tensor(node.args[0])


def _is_view(node: Node) -> bool:
    if first_input(node) is None:
        return False
    if node.op == "call_module":
        return isinstance(module_of(node), _VIEW_MODULES)
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in _VIEWS


def _views_of(node: Node) -> Iterable[Node]:
    for user in node.users:
        if _is_view(user) and first_input(user) is node:
            yield user
            yield from _views_of(user)


def _read_later(source: Node, new: Node, since: float, order: dict[Node, float]) -> None:
    """Let what reads `source` after a point of the graph read `new` instead."""
    if is_tensor(source):
        source.replace_all_uses_with(new, delete_user_cb=lambda user: order[user] > since)


def _put_back(gm: GraphModule, node: Node, order: dict[Node, float]) -> None:
    """Let what reads a tensor later read a copy with its new part, which `node` gives."""
    tensor, index = first_input(node).args
    with gm.graph.inserting_after(node):
        copied = gm.graph.call_function(set_item, (tensor, index, node))
    order[copied] = order[node]
    _note_copy(copied, tensor)
    _read_later(tensor, copied, order[node], order)


def _note_copy(node: Node, tensor: Node) -> None:
    """What is assigned joins the rest, each from a grid of its own."""
    shape = {key: tensor.meta[key] for key in ("shape", "dtype") if key in tensor.meta}
    node.meta.update(shape, **{KIND: "concat"})


def _give_new_value(node: Node) -> None:
    if node.op == "call_module":
        module_of(node).inplace = False
    elif node.target is operator.setitem:
        node.target = set_item
        _note_copy(node, first_input(node))
    elif node.target in _METHODS:
        node.op, node.target = "call_function", _METHODS[node.target]
    elif node.op == "call_method":
        node.target = _without_underscore(node.target)
    elif node.target in _PLACES:
        place = _PLACES[node.target]
        node.args = node.args[:place] + node.args[place + 1 :]
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    else:
        node.target = _OPERATORS.get(node.target) or _FUNCTIONS[node.target]
