"""Finds the largest parts of a model that can be traced."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from fxquant.graph.candidates import AT_THIS_SIZE, RIGHT, WRONG, Candidate, agrees, build
from fxquant.graph.failures import Failure, failure
from fxquant.graph.leaves import HOST, is_leaf
from fxquant.graph.names import NameRefusedError
from fxquant.graph.probes import Call, Probes, clone
from fxquant.graph.recorder import Recorder
from fxquant.graph.recording import CalledTwiceError, Recording, Way

logger = logging.getLogger(__name__)

_WORDS = {
    AT_THIS_SIZE: "what torch.fx records of it is right at the traced size alone",
    WRONG: "what torch.fx records of it does not compute what it does",
}
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, FrozenBatchNorm2d)
_ATTEMPTS = 8
# How many modules' arguments are kept at a time.
_CHUNK = 64


class Search:
    """What is known while one model is traced: `regions` by name, and what failed, by name."""

    def __init__(self, model: nn.Module, probes: Probes, leaves: Collection[type[nn.Module]]):
        self.model = model
        self.probes = probes
        self.leaves = tuple(leaves)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.regions: dict[str, Candidate] = {}
        self.failures: dict[str, Failure] = {}
        self._weights = self._find_weights()
        self._all_weights = set().union(*self._weights.values())

    def cover(self, name: str, calls: list[Call]) -> None:
        """Trace the module `name`, or else the largest parts of it that can be traced."""
        if isinstance(self.modules[name], self.leaves):
            return
        if getattr(self.modules[name], HOST, False):
            self.cover_parts([name])
            return
        best = self._attempt(name, calls)
        if best is not None and best.verdict == RIGHT:
            self.regions[name] = best
            self._cover_leaves(best, calls)
            if self._is_used_from_outside(self.regions[name]):
                self.failures[name] = Failure("", 0, "the code around it calls modules inside it")
                self._drop_inside([name])
                self.cover_parts([name])
            return
        self.cover_parts([name])
        if self.hidden(name):
            self._accept_fixed(best or self._record_and_judge(name, calls, {}, {""})[0], [name])

    def cover_parts(self, names: Iterable[str]) -> None:
        """Cover the outermost modules inside these that are called and have weights."""
        unseen = self.hidden("")
        parts = [part for name in names for part in self._parts(name, unseen)]
        for first in range(0, len(parts), _CHUNK):
            chunk = parts[first : first + _CHUNK]
            for part, calls in self.probes.calls(self.model, chunk).items():
                if calls:
                    self.cover(part, calls)

    def hidden(self, name: str) -> set[str]:
        """Modules inside `name` with weights that take part and that no region shows."""
        seen = set().union(*(region.seen for region in self.regions.values()))
        return {
            owner
            for owner, tensors in self._weights.items()
            if is_inside(owner, name) and tensors - seen
        }

    def _cover_leaves(self, region: Candidate, calls: list[Call]) -> None:
        """Go into the leaves that tracing made; with values where weights stay unseen."""
        failed = {_join(region.name, n): why for n, why in region.recording.failures.items()}
        self.failures.update(failed)
        hosts = [n for n in self._called_by(region) if getattr(self.modules[n], HOST, False)]
        self.cover_parts(name for name in (*failed, *hosts) if self.hidden(name))
        unseen = [name for name in failed if self.hidden(name)]
        if unseen:
            values = {_relative(name, region.name) for name in unseen}
            kept = {n: why for n, why in region.recording.failures.items() if n not in values}
            found = self._record_and_judge(region.name, calls, kept, values)[0]
            self._accept_fixed(found, unseen)

    def _accept_fixed(self, found: Candidate | None, instead_of: list[str]) -> None:
        """Take a region for the traced size, if it shows more than the regions inside these."""
        if found is None or found.verdict == WRONG:
            return
        before = dict(self.regions), dict(self.failures)
        hidden_before = self.hidden(found.name)
        self._drop_inside(instead_of)
        fixed = found.verdict == AT_THIS_SIZE or bool(found.recording.values)
        self.regions[found.name] = replace(found, fixed=fixed)
        leaves = {_join(found.name, n) for n in found.recording.failures}
        self.cover_parts(name for name in leaves if self.hidden(name))
        if len(self.hidden(found.name)) >= len(hidden_before):
            self.regions, self.failures = before
            return
        for name in [n for n in self.failures if is_inside(n, found.name)]:
            if not any(is_inside(name, leaf) for leaf in leaves):
                del self.failures[name]
        self._note(found)

    def _is_used_from_outside(self, region: Candidate) -> bool:
        """Whether modules inside are called, but neither by the graph nor by what it leaves out."""
        left = [_join(region.name, n) for n in region.recording.failures]
        left += [n for n in self._called_by(region) if getattr(self.modules[n], HOST, False)]
        missed = self.hidden(region.name) & self.probes.called
        return any(not any(is_inside(n, outer) for outer in left) for n in missed)

    def _drop_inside(self, names: Collection[str]) -> None:
        for name in [n for n in self.regions if any(is_inside(n, outer) for outer in names)]:
            del self.regions[name]

    def _note(self, region: Candidate) -> None:
        for leaf, why in region.recording.failures.items():
            self.failures.setdefault(_join(region.name, leaf), why)

    def _attempt(self, name: str, calls: list[Call]) -> Candidate | None:
        """The best graph of a module; wrong ones mended by making leaves of the culprits inside."""
        forced: dict[str, Failure] = {}
        best = None
        for _ in range(_ATTEMPTS):
            found, why = self._record_and_judge(name, calls, forced)
            if found is None:
                self.failures[name] = why
                return best
            if found.recording.failures and not found.seen & self._all_weights:
                self._note(found)
                return best
            if found.verdict == RIGHT:
                self.failures.pop(name, None)
                return found
            self.probes.check_deterministic(self.model)
            self.failures[name] = Failure("", 0, _WORDS[found.verdict])
            if found.verdict == AT_THIS_SIZE and best is None:
                best = found
            culprits = self._culprits(name) - set(forced)
            if not culprits:
                break
            forced.update(dict.fromkeys(culprits, Failure("", 0, _WORDS[found.verdict])))
        return best

    def _record_and_judge(
        self, name: str, calls: list[Call], forced: dict[str, Failure], values: Collection = ()
    ) -> tuple[Candidate | None, Failure | None]:
        """The best of the ways of recording a module, or why there is none."""
        best, why, ways = None, None, [Way()]
        for way in ways:
            result = self._record(name, calls[0], forced, values, way)
            if isinstance(result, Failure):
                why = why or result
            else:
                found = self._checked(build(self.modules[name], result, name, calls, self.leaves))
                if found.verdict == RIGHT:
                    return found, None
                if best is None or best.verdict == WRONG:
                    best = found
            if way == Way():
                ways += _other_ways(self.modules[name], calls[0], result)
        return best, why

    def _record(
        self, name: str, call: Call, forced: dict, values: Collection, way: Way
    ) -> Recording | Failure:
        forced = dict(forced)
        while True:
            recorder = Recorder(self.leaves, forced, values, way)
            try:
                return recorder.record(self.modules[name], clone(call.args), clone(call.kwargs))
            except CalledTwiceError as error:
                forced[error.name] = error.reason
            except NameRefusedError:
                raise
            except Exception as error:
                logger.debug("%s can't be traced", name or "the model", exc_info=True)
                return failure(error)

    def _checked(self, found: Candidate) -> Candidate:
        """A candidate that is wrong for one image of the traced size too is wrong altogether."""
        if found.verdict != AT_THIS_SIZE:
            return found
        runs = self.probes.single(self.model)
        calls = self.probes.calls(self.model, [found.name], runs)[found.name]
        is_right = all(agrees(found.graph, call) for call in calls)
        return found if is_right else replace(found, verdict=WRONG)

    def _culprits(self, name: str) -> set[str]:
        """The smallest modules inside `name` whose own graph is not right, relative to it."""
        wrong: set[str] = set()
        for part, calls in self.probes.calls(self.model, self._called_inside(name)).items():
            found = self._record_and_judge(part, calls, {})[0] if calls else None
            if found is not None and found.verdict != RIGHT:
                wrong |= {_join(part, n) for n in self._culprits(part)} or {part}
        return {_relative(part, name) for part in wrong}

    # Names.

    def _parts(self, name: str, unseen: set[str]) -> list[str]:
        parts: list[str] = []
        for key, _ in self.modules[name].named_children():
            part = _join(name, key)
            if any(is_inside(owner, part) for owner in unseen):
                parts += [part] if part in self.probes.called else self._parts(part, unseen)
        return parts

    def _called_inside(self, name: str) -> list[str]:
        found: list[str] = []
        for key, child in self.modules[name].named_children():
            part = _join(name, key)
            if part not in self.probes.called:
                found += self._called_inside(part)
            elif not is_leaf(child, self.leaves):
                found.append(part)
        return found

    def _called_by(self, region: Candidate) -> list[str]:
        targets = {str(n.target) for n in region.graph.graph.nodes if n.op == "call_module"}
        return [_join(region.name, target) for target in sorted(targets)]

    def _find_weights(self) -> dict[str, set[int]]:
        """For each module with weights of its own that take part, their ids."""
        users = [name for name, m in self.modules.items() if isinstance(m, self.leaves)]
        found = {}
        for name, module in self.modules.items():
            own = {id(t) for t in (*module._parameters.values(), *module._buffers.values())}
            is_layer = isinstance(module, _LAYERS)
            tensors = own & (self.probes.used if is_layer else self.probes.multiplied)
            if tensors and not any(is_inside(name, leaf) for leaf in users):
                found[name] = tensors
        return found


def _other_ways(module: nn.Module, call: Call, result: Recording | Failure) -> list[Way]:
    """Ways that may do better than a result that is no graph, or not the right one."""
    failed = isinstance(result, Failure)
    ways = [Way(plain_buffers=True)] if failed and module._buffers else []
    ways += [Way(bind_numbers=True)] if _has_numbers(call) else []
    return ways + ([Way(in_place=True)] if not failed and result.augmented else [])


def _has_numbers(call: Call) -> bool:
    values = [*call.args, *call.kwargs.values()]
    while values:
        value = values.pop()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True
        values += value.values() if isinstance(value, dict) else ()
        values += value if isinstance(value, tuple | list) else ()
    return False


def _join(outer: str, inner: str) -> str:
    return ".".join(part for part in (outer, inner) if part)


def _relative(name: str, outer: str) -> str:
    return name[len(outer) + 1 :] if outer else name


def is_inside(name: str, outer: str) -> bool:
    """Whether a qualified name is that of `outer` or of a module inside it."""
    return not outer or name == outer or name.startswith(f"{outer}.")
