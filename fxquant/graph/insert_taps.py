"""Insert taps: visible identity nodes at which values can be recorded while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.ops import kind, module_table, tensor_inputs

BN_TAPS = "bn_taps"
FEATURE_TAPS = "feature_taps"
OUTPUT = "output"


class Tap(nn.Module):
    """Returns its input, and records it under `name` while inside `record`."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self._sink: dict[str, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._sink is not None:
            self._sink[self.name] = x
        return x

    def extra_repr(self) -> str:
        return self.name


@contextmanager
def record(model: nn.Module, group: str) -> Iterator[dict[str, Tensor]]:
    """Record the taps of one group (BN_TAPS or FEATURE_TAPS) of each call made inside the block.

    Yields a dict that each call fills: tap name to value, gradients intact.
    """
    taps = _taps(model, group)
    values: dict[str, Tensor] = {}
    for tap in taps:
        tap._sink = values
    try:
        yield values
    finally:
        for tap in taps:
            tap._sink = None


def _taps(model: nn.Module, group: str) -> list[Tap]:
    holder = getattr(model, group, None)
    return [] if holder is None else [m for m in holder.modules() if isinstance(m, Tap)]


def tap_names(gm: GraphModule, group: str) -> list[str]:
    """Names of a group's taps in graph order, which is that of `record`'s dict."""
    nodes = [node for node in gm.graph.nodes if _is_tap(node, group)]
    return list(dict.fromkeys(gm.get_submodule(node.target).name for node in nodes))


def count_taps(model: nn.Module, group: str) -> int:
    """Number of taps of a group that `model` has."""
    return len(_taps(model, group))


def insert_bn_taps(gm: GraphModule) -> int:
    """Tap the input of every batch norm with running statistics, under the module's name."""
    modules, count = module_table(gm), 0
    for node in [n for n in gm.graph.nodes if kind(n, modules) == "batchnorm"]:
        source = node.args[0]
        if getattr(modules[node.target], "running_mean", None) is None or _is_tap(source, BN_TAPS):
            continue
        tap = _insert(gm, BN_TAPS, str(node.target), source, f"bn{count}")
        node.replace_input_with(source, tap)
        count += 1
    return count


def insert_feature_taps(gm: GraphModule, names: list[str]) -> int:
    """Tap the values of the traced graph with these node names, and the output."""
    count = 0
    # A value's own quantizer comes after it: the last node with its name is what others read.
    by_name = {node.meta.get("twin", node.name): node for node in gm.graph.nodes}
    for name in names:
        node = by_name[name]
        users = list(node.users)
        if any(_is_tap(user, FEATURE_TAPS) for user in users):
            continue
        tap = _insert(gm, FEATURE_TAPS, name, node, f"feature{count}")
        for user in users:
            user.replace_input_with(node, tap)
        count += 1
    return count


def _is_tap(node: Node, group: str) -> bool:
    return node.op == "call_module" and str(node.target).startswith(f"{group}.")


def _insert(gm: GraphModule, group: str, name: str, source: Node, key: str) -> Node:
    target = f"{group}.{key}"
    gm.add_submodule(target, Tap(name))
    with gm.graph.inserting_after(source):
        node = gm.graph.call_module(target, (source,))
    node.meta.update(shape=source.meta.get("shape"), tapped=name)
    return node


def choose_features(gm: GraphModule) -> list[str]:
    """Names of the values to compare: of each residual block's output, and the graph's output.

    Where the network has no residual blocks, the last value before each change of resolution.
    `gm` is a traced graph with recorded shapes, before any other pass.
    """
    modules = module_table(gm)
    chosen = [_after_activation(n, modules) for n in gm.graph.nodes if _is_residual(n, modules)]
    chosen = chosen or _before_resolution_changes(gm, modules)
    chosen += tensor_inputs(next(n for n in gm.graph.nodes if n.op == "output"))
    return list(dict.fromkeys(n.name for n in chosen if n.op != "placeholder"))


def _is_residual(node: Node, modules: dict[str, nn.Module]) -> bool:
    if kind(node, modules) != "add" or len(tensor_inputs(node)) < 2:
        return False
    shapes = [parent.meta.get("shape") for parent in tensor_inputs(node)]
    return all(shape is not None and shape == shapes[0] and len(shape) > 2 for shape in shapes)


def _after_activation(node: Node, modules: dict[str, nn.Module]) -> Node:
    users = list(node.users)
    follows = len(users) == 1 and kind(users[0], modules) in ("relu", "activation")
    return users[0] if follows else node


def _before_resolution_changes(gm: GraphModule, modules: dict[str, nn.Module]) -> list[Node]:
    """Values that a convolution or pooling reads and gives back at another resolution."""
    rank = len(next(n for n in gm.graph.nodes if n.op == "placeholder").meta["shape"])
    found = []
    for node in gm.graph.nodes:
        if kind(node, modules) not in ("conv", "average", "move"):
            continue
        after = node.meta.get("shape", ())
        for parent in tensor_inputs(node):
            before = parent.meta["shape"]
            same_rank = len(before) == len(after) == rank
            computed = parent.op not in ("placeholder", "get_attr")
            if computed and same_rank and before[2:] != after[2:]:
                found.append(parent)
    return found
