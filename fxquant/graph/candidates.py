"""Graphs that may take the place of a module: how they are made, and what they are worth."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.leaves import HOST
from fxquant.graph.probes import Call, run, same
from fxquant.graph.proxies import map_values
from fxquant.graph.recording import Recording

_MISSING = object()
RIGHT, AT_THIS_SIZE, WRONG = "right", "right at the traced size alone", "wrong"


@dataclass(frozen=True)
class Candidate:
    """A graph of the module `name`, what it is worth, and the ids of the tensors it shows.

    `fixed` where it may be used at the traced size alone.
    """

    name: str
    graph: GraphModule
    recording: Recording
    verdict: str
    seen: frozenset[int]
    fixed: bool = False


class Part(GraphModule):
    """A graph in place of a module inside a model, with that module's plain attributes and methods.

    The code around it may read more of it than what a call gives.
    """

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            meta = self.__dict__.get("meta", {})
            if name in meta.get("attributes", {}):
                return meta["attributes"][name]
            found = inspect.getattr_static(meta.get("class"), name, _MISSING)
            if found is _MISSING:
                raise
            return found.__get__(self, meta["class"]) if hasattr(found, "__get__") else found


def build(
    module: nn.Module, recording: Recording, name: str, calls: Iterable[Call], leaves: tuple
) -> Candidate:
    """The candidate that a recording of `module` gives, judged by its calls."""
    for key, tensor in recording.constants.items():
        setattr(module, key, tensor)
    try:
        kind = Part if name else GraphModule
        graph = kind(module, recording.graph, class_name=type(module).__name__)
    finally:
        for key in recording.constants:
            delattr(module, key)
    graph.meta["region"] = name
    if name:
        graph.meta["class"] = type(module)
        graph.meta["attributes"] = _plain_attributes(module)
    verdict = _judge(graph.eval(), calls) if _fits_bound(module, recording, calls) else WRONG
    return Candidate(name, graph, recording, verdict, _seen(graph, recording, leaves))


def _plain_attributes(module: nn.Module) -> dict:
    names = {name for name in vars(module) if not name.startswith("_")} - {"training", "forward"}
    return {name: vars(module)[name] for name in names if not _holds_modules(vars(module)[name])}


def _holds_modules(value) -> bool:
    found: list[bool] = []
    map_values(lambda v: found.append(isinstance(v, nn.Module | Tensor)), value)
    return any(found)


def _fits_bound(module: nn.Module, recording: Recording, calls: Iterable[Call]) -> bool:
    """Whether all calls give the arguments that are constants in the graph the same values."""
    signature = inspect.signature(module.forward)
    for call in calls:
        given = signature.bind(*call.args, **call.kwargs)
        given.apply_defaults()
        if not all(same(given.arguments[name], v) for name, v in recording.bound.items()):
            return False
    return True


def _judge(graph: GraphModule, calls: Iterable[Call]) -> str:
    for call in sorted(calls, key=lambda call: call.other_size):
        if not agrees(graph, call):
            return AT_THIS_SIZE if call.other_size else WRONG
    return RIGHT


def agrees(module: nn.Module, call: Call) -> bool:
    """Whether a module gives the output of a call."""
    try:
        # A graph that is called as a module prints its code where that fails.
        with redirect_stderr(StringIO()):
            return same(run(module.forward, call.args, call.kwargs), call.output)
    except Exception:  # a graph with another size's numbers in it fails in any way
        return False


def _seen(graph: GraphModule, recording: Recording, leaves: tuple) -> frozenset[int]:
    """Ids of the parameters and buffers that the graph shows, in layers or as values."""
    seen: set[int] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = graph
            for key in node.target.split("."):
                value = getattr(value, key)
            seen.add(id(value))
        elif node.op == "call_module" and node.target not in recording.failures:
            module = graph.get_submodule(node.target)
            if not getattr(module, HOST, False) and not isinstance(module, leaves):
                seen |= {id(t) for t in (*module.parameters(), *module.buffers())}
    return frozenset(seen)


def put_in_place(
    model: nn.Module, modules: dict[str, nn.Module], regions: dict[str, Candidate]
) -> tuple[nn.Module, list[tuple[nn.Module, str, nn.Module]]]:
    """`model` with each region's graph in place of its module, and what that has replaced.

    A graph's own layers stay; only in what it leaves to itself are there regions. What was
    replaced is a list of parents, names and the modules that were there.
    """
    by_module = {id(modules[name]): region.graph for name, region in regions.items()}
    by_graph = {id(region.graph): region for region in regions.values()}
    whole = regions[""].graph if "" in regions else model
    queue, done, replaced = [whole], set(), []
    while queue:
        module = queue.pop()
        if id(module) in done:
            continue
        done.add(id(module))
        if id(module) in by_graph:
            queue += _left_to_itself(by_graph[id(module)])
            continue
        for key, child in list(module.named_children()):
            graph = by_module.get(id(child), child)
            if graph is not child:
                setattr(module, key, graph)
                replaced.append((module, key, child))
            queue.append(graph)
    return whole, replaced


def _left_to_itself(region: Candidate) -> list[nn.Module]:
    """The modules that a graph calls without looking into them."""
    called = {n.target: region.graph.get_submodule(n.target) for n in _module_calls(region.graph)}
    hosts = [m for m in called.values() if getattr(m, HOST, False)]
    return [m for name, m in called.items() if name in region.recording.failures] + hosts


def _module_calls(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "call_module"]


def mark_network_input(graph: GraphModule) -> None:
    """Mark the placeholders of a region that reads the network's own input, and their entries."""
    for node in graph.graph.nodes:
        source = node
        while source.meta.get("entry") and source.args:
            source = source.args[0]
        if source.op == "placeholder":
            node.meta["network_input"] = True
