"""Finds the largest parts of a model that can be traced, and puts their graphs in place."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import GraphModule

from fxquant.graph.failures import Failure, failure
from fxquant.graph.probes import Call, Probes, clone, run, same
from fxquant.graph.recorder import HOST, CalledTwiceError, Recorder, Recording, is_leaf

logger = logging.getLogger(__name__)

_RIGHT, _AT_THIS_SIZE, _WRONG = "right", "right at the traced size alone", "wrong"
_WORDS = {
    _AT_THIS_SIZE: "what torch.fx records of it is right at the traced size alone",
    _WRONG: "what torch.fx records of it does not compute what it does",
}
_ATTEMPTS = 8


@dataclass(frozen=True)
class Region:
    """A graph that computes what the module `name` does, at the traced size alone if `fixed`."""

    name: str
    graph: GraphModule
    recording: Recording
    fixed: bool


class Search:
    """The state of tracing one model: what is in place, what failed, what was noted."""

    def __init__(self, model: nn.Module, probes: Probes, leaves: Collection[type[nn.Module]]):
        self.model = model
        self.probes = probes
        self.leaves = tuple(leaves)
        self.regions: dict[str, Region] = {}
        self.failures: dict[str, Failure] = {}
        self._original = dict(model.named_modules(remove_duplicate=False))
        self._owners = _owners(self._original, probes.used)

    def cover(self, name: str, calls: list[Call]) -> None:
        """Trace the module `name`, or else the largest parts of it that can be traced."""
        if getattr(self._original[name], HOST, False):
            self._cover_parts(name)
            return
        region = self._attempt(name, calls)
        if region is None:
            self._cover_parts(name)
            region = self._with_values(name, calls, {""})
            if region is None:
                return
            self._forget(name)
            self._place(region)
        else:
            self._place(region)
            self._cover_leaves(region, calls)

    def hidden(self, name: str) -> set[str]:
        """Modules inside `name` with weights that take part and that no region shows."""
        seen = set().union(
            *(_seen(r.graph, r.recording, self.leaves) for r in self.regions.values())
        )
        return {
            owner
            for owner, tensors in self._owners.items()
            if _is_inside(owner, name) and not self._in_users_leaf(owner) and tensors - seen
        }

    def _cover_leaves(self, region: Region, calls: list[Call]) -> None:
        """Go into the leaves that tracing made; with values where weights stay unseen."""
        inner = [_join(region.name, leaf) for leaf in region.recording.failures]
        hosts = {n for n in self._hosts_in(region) if n not in inner}
        self._note_failures(region)
        for leaf in (*inner, *hosts):
            if self.hidden(leaf):
                self._cover_parts(leaf)
        unseen = {leaf for leaf in inner if self.hidden(leaf)}
        if not unseen:
            return
        valued = {_relative(leaf, region.name) for leaf in unseen}
        better = self._with_values(region.name, calls, valued)
        if better is not None:
            for leaf in unseen - {_join(region.name, n) for n in better.recording.failures}:
                self._forget(leaf)
            self._place(better)

    def _cover_parts(self, name: str) -> None:
        """Cover the outermost modules inside `name` that are called and have weights."""
        parts = self._parts(name)
        if parts:
            for part, calls in self.probes.calls(self.model, parts).items():
                if calls:
                    self.cover(part, calls)

    def _parts(self, name: str) -> list[str]:
        parts: list[str] = []
        for key, child in self._original[name].named_children():
            part = _join(name, key)
            if isinstance(child, self.leaves) or not self.hidden(part):
                continue
            parts += [part] if part in self.probes.called else self._parts(part)
        return parts

    def _attempt(self, name: str, calls: list[Call]) -> Region | None:
        """The region of a module, if its graph is right in all calls and shows any weights."""
        forced: dict[str, Failure] = {}
        fallback = None
        for _ in range(_ATTEMPTS):
            region, verdict = self._try(name, calls, forced)
            if region is None:
                break
            if region.recording.failures and not _seen(region.graph, region.recording, self.leaves):
                self._note_failures(region)
                break
            if verdict == _RIGHT:
                return region
            self.failures.setdefault(name, Failure("", 0, _WORDS[verdict]))
            if verdict == _AT_THIS_SIZE and fallback is None:
                fallback = replace(region, fixed=True)
            wrong = self._wrong_modules(name) - set(forced)
            if not wrong:
                break
            forced.update(dict.fromkeys(wrong, Failure("", 0, _WORDS[verdict])))
        return fallback

    def _note_failures(self, region: Region) -> None:
        for leaf, why in region.recording.failures.items():
            self.failures.setdefault(_join(region.name, leaf), why)

    def _try(
        self, name: str, calls: list[Call], forced: dict[str, Failure], values: Collection[str] = ()
    ) -> tuple[Region | None, str]:
        """A graph of the module and what it is worth; the ways of recording it one by one."""
        best: tuple[Region | None, str] = (None, _WRONG)
        for bind_numbers, in_place in ((False, False), (True, False), (False, True)):
            recording = self._record(name, calls[0], forced, values, bind_numbers, in_place)
            if recording is None:
                continue
            region = Region(name, _build(self._original[name], recording, name), recording, False)
            verdict = _judge(region.graph, calls)
            if verdict == _RIGHT:
                return region, verdict
            if best[0] is None or best[1] == _WRONG:
                best = (region, verdict)
        return best

    def _record(
        self, name: str, call: Call, forced: dict, values, bind_numbers: bool, in_place: bool
    ) -> Recording | None:
        forced = dict(forced)
        while True:
            recorder = Recorder(self.leaves, forced, values, bind_numbers, in_place)
            try:
                return recorder.record(self._original[name], clone(call.args), clone(call.kwargs))
            except CalledTwiceError as error:
                forced[error.name] = error.reason
            except Exception as error:
                self.failures.setdefault(name, failure(error))
                logger.debug("%s can't be traced", name or "the model", exc_info=True)
                return None

    def _with_values(self, name: str, calls: list[Call], values: set[str]) -> Region | None:
        """A region right at the traced size that shows weights which are hidden else, or None."""
        if not self.hidden(name):
            return None
        before = len(self.hidden(name))
        region, verdict = self._try(name, calls, {}, values)
        if region is None or verdict == _WRONG:
            return None
        seen = _seen(region.graph, region.recording, self.leaves)
        after = [n for n, ts in self._owners.items() if _is_inside(n, name) and ts - seen]
        return replace(region, fixed=True) if len(after) < before else None

    def _wrong_modules(self, name: str) -> set[str]:
        """The smallest modules inside `name` whose own graph is not right, relative to it."""
        parts = self._called_inside(name)
        wrong: set[str] = set()
        for part, calls in self.probes.calls(self.model, parts).items():
            region, verdict = self._try(part, calls, {}) if calls else (None, _RIGHT)
            if region is not None and verdict != _RIGHT:
                wrong |= {_join(part, n) for n in self._wrong_modules(part)} or {part}
        return {_relative(part, name) for part in wrong}

    def _called_inside(self, name: str) -> list[str]:
        found: list[str] = []
        for key, child in self._original[name].named_children():
            part = _join(name, key)
            if part not in self.probes.called:
                found += self._called_inside(part)
            elif not is_leaf(child, self.leaves):
                found.append(part)
        return found

    def _place(self, region: Region) -> None:
        self.regions[region.name] = region
        self.model = _put(self.model, region.name, self._original[region.name], region.graph)
        _mark_inputs(region.graph, region.name in self.probes.early)

    def _forget(self, name: str) -> None:
        """Take the regions inside `name` out again."""
        for inner in [n for n in self.regions if _is_inside(n, name)]:
            graph = self.regions.pop(inner).graph
            self.model = _put(self.model, inner, graph, self._original[inner])
        for inner in [n for n in self.failures if _is_inside(n, name)]:
            del self.failures[inner]

    def _hosts_in(self, region: Region) -> list[str]:
        targets = {str(n.target) for n in region.graph.graph.nodes if n.op == "call_module"}
        names = [_join(region.name, target) for target in targets]
        return [name for name in names if getattr(self._original[name], HOST, False)]

    def _in_users_leaf(self, name: str) -> bool:
        above = [n for n in self._original if _is_inside(name, n)]
        return any(isinstance(self._original[n], self.leaves) for n in above)


def _build(module: nn.Module, recording: Recording, name: str) -> GraphModule:
    for key, tensor in recording.constants.items():
        setattr(module, key, tensor)
    try:
        gm = GraphModule(module, recording.graph, class_name=type(module).__name__)
    finally:
        for key in recording.constants:
            delattr(module, key)
    gm.meta["region"] = name
    return gm.eval()


def _judge(graph: GraphModule, calls: list[Call]) -> str:
    for other_size in (False, True):
        for call in calls:
            if call.other_size is other_size and not _agrees(graph, call):
                return _AT_THIS_SIZE if other_size else _WRONG
    return _RIGHT


def _agrees(graph: GraphModule, call: Call) -> bool:
    try:
        return same(run(graph, call.args, call.kwargs), call.output)
    except Exception:  # a graph of another size's numbers fails in any way
        return False


def _seen(graph: GraphModule, recording: Recording, leaves: tuple) -> set[int]:
    """Ids of the parameters and buffers that the graph shows, in leaves or as values."""
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
    return seen


def _owners(modules: dict[str, nn.Module], used: set[int]) -> dict[str, set[int]]:
    """For each module with tensors of its own that take part, the ids of its parameters."""
    owners = {}
    for name, module in modules.items():
        own = [p for p in module._parameters.values() if p is not None]
        own = own or [b for b in module._buffers.values() if b is not None and b.dim()]
        tensors = {id(t) for t in own} & used
        if tensors:
            owners[name] = tensors
    return owners


def _put(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` everywhere in `model` in place of `old`; the model itself at the name ''."""
    if not name:
        return new
    for parent in list(model.modules()):
        for key, child in parent.named_children():
            if child is old:
                setattr(parent, key, new)
    return model


def _mark_inputs(graph: GraphModule, early: bool) -> None:
    for node in graph.graph.nodes:
        source = node
        while source.op == "call_function" and source.meta.get("entry") and source.args:
            source = source.args[0]
        if early and source.op == "placeholder":
            node.meta["network_input"] = True


def _join(outer: str, inner: str) -> str:
    return ".".join(part for part in (outer, inner) if part)


def _relative(name: str, outer: str) -> str:
    return name[len(outer) + 1 :] if outer else name


def _is_inside(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")
