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

    What reads the changed value later reads the new one. An op that changes a value of which a
    view is read later stays as it is.
    """
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    changing = [node for node in gm.graph.nodes if is_in_place(node)]
    kept = {node for node in changing if _changes_a_view(node, order)}
    # A module is in place for all of its calls.
    modules = {id(module_of(node)) for node in kept if node.op == "call_module"}
    replaced = 0
    for node in changing:
        if node in kept or (node.op == "call_module" and id(module_of(node)) in modules):
            continue
        _read_result_later(node, order)
        _give_new_value(node)
        replaced += 1
    return replaced


def set_item(x: Tensor, index: object, value: Tensor | float) -> Tensor:
    """A copy of `x` with `value` at `index`."""
    copied = x.clone()
    copied[index] = value
    return copied


def is_in_place(node: Node) -> bool:
    """Whether a node may change the value that it reads."""
    if node.op == "call_module":
        return getattr(module_of(node), "inplace", False) is True
    if node.op == "call_method":
        return _without_underscore(node.target) is not None
    if node.target in _PLACES:
        return bool(argument(node, _PLACES[node.target], "inplace", False))
    return node.target in (operator.setitem, *_OPERATORS, *_FUNCTIONS)


def _without_underscore(method: str) -> str | None:
    plain = method.removesuffix("_")
    return plain if plain != method and plain in METHODS else None


def _changes_a_view(node: Node, order: dict[Node, int]) -> bool:
    """Whether another name for the memory that the op writes to is read after it."""
    source = first_input(node)
    if not is_tensor(source):
        return False
    base = source
    while _is_view(base):
        base = first_input(base)
    others = {base, *_views_of(base)} - {source, node}
    return any(order[user] > order[node] for other in others for user in other.users)


def _is_view(node: Node) -> bool:
    if not isinstance(first_input(node), Node):
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


def _read_result_later(node: Node, order: dict[Node, int]) -> None:
    source = first_input(node)
    if is_tensor(source):
        source.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])


def _give_new_value(node: Node) -> None:
    if node.op == "call_module":
        module_of(node).inplace = False
    elif node.target is operator.setitem:
        node.target = set_item
        # What is assigned joins the rest, each from a grid of its own.
        shape = {key: first_input(node).meta.get(key) for key in ("shape", "dtype")}
        node.meta.update(shape, **{KIND: "concat"})
    elif node.op == "call_method":
        node.target = _without_underscore(node.target)
    elif node.target in _PLACES:
        place = _PLACES[node.target]
        node.args = node.args[:place] + node.args[place + 1 :]
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    else:
        node.target = _OPERATORS.get(node.target) or _FUNCTIONS[node.target]
