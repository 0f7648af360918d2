"""Insert taps: visible identity nodes at which values can be recorded while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.ops import KIND, is_softmax, kind, module_of, tensor_inputs
from fxquant.graph.regions import all_nodes, qualify, regions, value_name

BN_TAPS = "bn_taps"
FEATURE_TAPS = "feature_taps"
ATTENTION_TAPS = "attention_taps"
OUTPUT = "output"


class Tap(nn.Module):
    """Returns its input, and records it under `name` while inside `record` of its group."""

    def __init__(self, group: str, name: str):
        super().__init__()
        self.group, self.name = group, name
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
    return [m for m in model.modules() if isinstance(m, Tap) and m.group == group]


def tap_names(model: nn.Module, group: str) -> list[str]:
    """Names of a group's taps, region after region in graph order."""
    nodes = [node for node in all_nodes(model) if is_tap(node, group)]
    return list(dict.fromkeys(module_of(node).name for node in nodes))


def count_taps(model: nn.Module, group: str) -> int:
    """Number of taps of a group that `model` has."""
    return len(_taps(model, group))


def insert_bn_taps(gm: GraphModule) -> int:
    """Tap the input of every batch norm with running statistics, under the module's name."""
    count = 0
    for node in [n for n in gm.graph.nodes if kind(n) == "batchnorm"]:
        source = node.args[0]
        if getattr(module_of(node), "running_mean", None) is None or is_tap(source, BN_TAPS):
            continue
        name = qualify(gm, str(node.target))
        tap = _insert(gm, BN_TAPS, name, source, f"bn{count}")
        node.replace_input_with(source, tap)
        count += 1
    return count


def insert_feature_taps(gm: GraphModule, names: list[str]) -> int:
    """Tap those of the named values of the traced model that this region computes."""
    count = 0
    # A value's own quantizer comes after it: the last node with its name is what others read.
    by_name = {value_name(node): node for node in gm.graph.nodes}
    for name in [name for name in names if name in by_name]:
        count += _tap_value(gm, FEATURE_TAPS, name, by_name[name], f"feature{count}")
    return count


def insert_attention_taps(gm: GraphModule) -> int:
    """Tap what each attention gives: the product of a softmax with the values that it weighs."""
    count = 0
    for node in [node for node in gm.graph.nodes if _is_attention(node)]:
        count += _tap_value(gm, ATTENTION_TAPS, value_name(node), node, f"attention{count}")
    return count


def _is_attention(node: Node) -> bool:
    if kind(node) != "matmul" or len(node.meta.get("shape", ())) < 3:
        return False
    weights = node.args[0] if node.args else None
    while isinstance(weights, Node) and kind(weights) == "move" and weights.args:
        weights = weights.args[0]
    return isinstance(weights, Node) and is_softmax(weights)


def _tap_value(gm: GraphModule, group: str, name: str, node: Node, key: str) -> int:
    """Let all that reads a value read it behind a tap; 0 where there is one already."""
    users = list(node.users)
    if any(is_tap(user, group) for user in users):
        return 0
    tap = _insert(gm, group, name, node, key)
    for user in users:
        user.replace_input_with(node, tap)
    return 1


def is_tap(node: Node, group: str) -> bool:
    """Whether a node is a tap of this group."""
    return node.op == "call_module" and str(node.target).startswith(f"{group}.")


def _insert(gm: GraphModule, group: str, name: str, source: Node, key: str) -> Node:
    target = f"{group}.{key}"
    gm.add_submodule(target, Tap(group, name))
    with gm.graph.inserting_after(source):
        node = gm.graph.call_module(target, (source,))
    kept = {key: source.meta[key] for key in ("shape", "dtype") if key in source.meta}
    node.meta.update(kept, tapped=name, **{KIND: "move"})
    return node


def choose_features(model: nn.Module) -> list[str]:
    """Names of the values to compare: of each residual block's output, and each region's output.

    Where a region has no residual blocks, the last value before each change of resolution.
    `model` is a traced model with recorded shapes, before any other pass.
    """
    return [name for region in regions(model) for name in _features_of(region)]


def _features_of(gm: GraphModule) -> list[str]:
    chosen = [_after_activation(n) for n in gm.graph.nodes if _is_residual(n)]
    chosen = chosen or _before_resolution_changes(gm)
    chosen += tensor_inputs(next(n for n in gm.graph.nodes if n.op == "output"))
    return list(
        dict.fromkeys(
            qualify(gm, n.name) for n in chosen if kind(n) not in ("placeholder", "entry")
        )
    )


def _is_residual(node: Node) -> bool:
    if kind(node) != "add" or len(tensor_inputs(node)) < 2:
        return False
    shapes = [parent.meta.get("shape") for parent in tensor_inputs(node)]
    return all(shape is not None and shape == shapes[0] and len(shape) > 2 for shape in shapes)


def _after_activation(node: Node) -> Node:
    users = list(node.users)
    follows = len(users) == 1 and kind(users[0]) in ("relu", "activation")
    return users[0] if follows else node


def _before_resolution_changes(gm: GraphModule) -> list[Node]:
    """Values that a convolution or pooling reads and gives back at another resolution."""
    found = []
    for node in gm.graph.nodes:
        if kind(node) not in ("conv", "average", "move"):
            continue
        after = node.meta.get("shape", ())
        for parent in tensor_inputs(node):
            before = parent.meta["shape"]
            same_rank = len(before) == len(after) > 2
            computed = kind(parent) not in ("placeholder", "entry", "get_attr")
            if computed and same_rank and before[2:] != after[2:]:
                found.append(parent)
    return found
