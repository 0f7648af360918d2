"""Which recorded ops are questions of structure, and what is left of those that nothing reads."""

from __future__ import annotations

import operator
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from fxquant.graph.proxies import ExampleProxy, example_of, proxies_in

_RANK = {"dim", "ndim", "ndimension"}


class _Tuple(tuple):
    node: Node


class _List(list):
    node: Node


class _Dict(dict):
    node: Node


def is_models_own(kind: str, target) -> bool:
    """Whether a call is that of a function of the model's own, which `fx.wrap` keeps as one."""
    is_function = kind == "call_function" and isinstance(target, FunctionType)
    return is_function and target.__module__.split(".")[0] != "torch"


def hides_weights(args: tuple, kwargs: dict) -> bool:
    """Whether there are weights among the arguments of a call."""
    return any(isinstance(p.example, nn.Parameter) for p in proxies_in(args, kwargs))


def with_node(value, node: Node):
    """A container of proxies that has its node, as `fx.wrap` expects of what it calls."""
    kind = {tuple: _Tuple, list: _List, dict: _Dict}.get(type(value))
    if kind is None:
        return value
    value = kind(value)
    value.node = node
    return value


def is_structure(target, args: tuple, kwargs: dict, result) -> bool:
    """Whether a result is no number and comes from none: the same for every input."""
    if isinstance(result, torch.dtype | torch.layout | str | type):
        return True
    name = args[1] if target is getattr else getattr(target, "__name__", target)
    asked = example_of(args[0]) if args else None
    if isinstance(asked, Tensor):
        is_constant = args[0].constant if type(args[0]) is ExampleProxy else True
        if is_constant and name in ("shape", "size", "numel"):
            return True
        says_kind = target is getattr or str(name).startswith("is_")
        return name in _RANK or (says_kind and isinstance(result, bool))
    examples = [p.example for p in proxies_in(args, kwargs)]
    plain = not any(isinstance(e, Tensor | int | float | torch.Size) for e in examples)
    return isinstance(result, bool) and plain


def describe(proxy: ExampleProxy) -> str:
    """What a traced value is, in a person's words."""
    if isinstance(proxy.example, Tensor):
        return "the values of a tensor"
    ancestors, queue = set(), [proxy.node]
    while queue:
        node = queue.pop()
        if node not in ancestors:
            ancestors.add(node)
            queue += node.all_input_nodes
    if any(node.target in ("item", "tolist") for node in ancestors):
        return "the values of a tensor"
    return "the size of a tensor"


def tidy(graph: Graph) -> None:
    """Drop questions about structure that nothing reads; the input of a layer comes first."""
    for node in reversed(graph.nodes):
        pure = node.op == "get_attr" or node.target in (operator.getitem, getattr, "size")
        number = node.op == "call_function" and getattr(node.target, "__module__", "") in (
            *("_operator", "math", "builtins"),
        )
        is_read = node.users or node.op in ("placeholder", "output")
        unread = not is_read and node.target is not operator.setitem
        if unread and (pure or (number and "shape" not in node.meta)):
            graph.erase_node(node)
        node.meta.pop("entries", None)
        if node.op == "call_module" and not node.args and "input" in node.kwargs:
            rest = dict(node.kwargs)
            node.args, node.kwargs = (rest.pop("input"),), rest
        if node.op == "output":
            node.type = None
