"""Multiply-accumulates of a traced model, counted while it runs on one image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxquant.graph.ops import WEIGHTED, kind, module_of
from fxquant.graph.probes import probe_input
from fxquant.graph.regions import interpreted
from fxquant.shapes import InputShape, input_shapes

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@torch.no_grad()
def count_macs(
    model: nn.Module, input_shape: InputShape, hidden: Collection[str] = ()
) -> Counter[Node | str]:
    """Multiply-accumulates for one image of each layer's node, and of `hidden` layers by name.

    Every call counts: a node of a region that runs once a pyramid level, say, counts them all.
    """
    counts: Counter[Node | str] = Counter()

    class Counting(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            if kind(n) in WEIGHTED:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                counts[n] += _macs_of_node(n, args, kwargs, value)
            return value

    inputs = probe_input(model, input_shapes(input_shape), batch=1)
    with _counting_calls(model, hidden, counts), interpreted(model, Counting):
        model(*inputs)
    return counts


def is_transposed(node: Node) -> bool:
    """Whether a layer's node is a transposed convolution."""
    return node.target in _TRANSPOSED or isinstance(module_of(node), _ConvTransposeNd)


def _macs_of_node(node: Node, args: tuple, kwargs: dict, value: Tensor) -> int:
    x = args[0] if args else kwargs["input"]
    if node.op == "call_module":
        weight = module_of(node).weight
    else:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
    return _macs(x, weight, value, transposed=is_transposed(node))


def _macs(x: Tensor, weight: Tensor, value: Tensor, *, transposed: bool) -> int:
    """Each output of a layer reads `weight[0].numel()` numbers.

    Of a transposed convolution, whose weight is (inputs, outputs / groups, ...), each input is
    multiplied by so many.
    """
    return (x if transposed else value).numel() * math.prod(weight.shape[1:])


@contextmanager
def _counting_calls(
    model: nn.Module, names: Collection[str], counts: Counter[Node | str]
) -> Iterator[None]:
    """Count the calls of named modules that no graph shows, while the block runs."""

    def hook(name: str):
        def count(module: nn.Module, args: tuple, value: object) -> None:
            if args and isinstance(value, Tensor):
                transposed = isinstance(module, _ConvTransposeNd)
                counts[name] += _macs(args[0], module.weight, value, transposed=transposed)

        return count

    modules = {name: model.get_submodule(name) for name in names}
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in modules.items()
        if isinstance(module, _ConvNd | nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
