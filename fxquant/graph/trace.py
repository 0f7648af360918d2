"""From a model to torch.fx graphs that are known to compute the same, as far as that goes."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fxquant.errors import TraceError
from fxquant.graph.candidates import Candidate, agrees, mark_network_input, put_in_place
from fxquant.graph.failures import Failure
from fxquant.graph.probes import Probes
from fxquant.graph.search import Search, is_inside


@dataclass(frozen=True)
class LeftOut:
    """A module that the tracer could not look into.

    `name` is its qualified name, '' for the model itself, `type` its class; `file` and `line` say
    where tracing stopped in the user's or the zoo's code ('' and 0 where that is unknown), `reason`
    why, in a person's words. `hidden` has the names of the modules with weights inside it that no
    region shows; it is empty where everything inside was traced in turn.
    """

    name: str
    type: str
    file: str
    line: int
    reason: str
    hidden: tuple[str, ...]


@dataclass(frozen=True)
class Traced:
    """A model with regions: torch.fx graphs in place of the modules that could be traced.

    `model` is a copy in eval mode without gradients, itself a graph where it traces whole.
    `fixed_size` names the regions that are right at the traced size alone; `notes` says which
    guards were taken as passing, and which numbers of the example were used.
    """

    model: nn.Module
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    fixed_size: tuple[str, ...]


def trace(
    model: nn.Module, input_shape: tuple, *, leaves: Collection[type[nn.Module]] = ()
) -> Traced:
    """Trace a copy of `model` in eval mode, and check each part of it against the original.

    `input_shape` is (channels, height, width) without the batch, or a tuple of such shapes where
    the model takes several inputs. Modules of the classes `leaves` are never looked into. Raises
    SettingError where the model doesn't take such an input, TraceError where nothing that has
    weights can be traced, or where the model is random.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    types = {name: type(m).__name__ for name, m in model.named_modules(remove_duplicate=False)}
    probes = Probes(model, input_shape)
    search = Search(model, probes, leaves)
    search.cover("", probes.runs)
    if not search.regions:
        probes.check_deterministic(model)
        raise _nothing_traced(search, types)
    whole = _put_together(search)
    if not search.regions:
        raise _nothing_traced(search, types)
    return Traced(
        whole,
        tuple(_left_out(search, types)),
        tuple(_notes(search)),
        tuple(name for name, region in search.regions.items() if region.fixed),
    )


def _put_together(search: Search) -> nn.Module:
    """The model with its regions in place, without those that the code around doesn't fit."""
    for name in search.probes.early & set(search.regions):
        mark_network_input(search.regions[name].graph)
    if not _fits(search, search.regions):
        kept: dict[str, Candidate] = {}
        for name, region in search.regions.items():
            if _fits(search, kept | {name: region}):
                kept[name] = region
            else:
                search.failures[name] = Failure("", 0, "the code around it needs more than a graph")
        search.regions = kept
    return put_in_place(search.model, search.modules, search.regions)[0]


def _fits(search: Search, regions: dict[str, Candidate]) -> bool:
    """Whether the model with these regions in place computes what it did."""
    if list(regions) == [""]:
        return True  # checked as a region
    runs = search.probes.runs
    if any(region.fixed for region in regions.values()):
        runs = [run for run in runs if not run.other_size] + search.probes.single(search.model)
    whole, replaced = put_in_place(search.model, search.modules, regions)
    fits = all(agrees(whole, run) for run in runs)
    for parent, key, module in replaced:
        setattr(parent, key, module)
    return fits


def _left_out(search: Search, types: dict[str, str]) -> list[LeftOut]:
    """What failed and is in no region, inner modules first to claim the weights they hide."""
    found: list[LeftOut] = []
    unclaimed = search.hidden("")
    for name in sorted(search.failures, reverse=True):
        hidden = {owner for owner in unclaimed if is_inside(owner, name)}
        if name in search.regions and not hidden:
            continue
        unclaimed -= hidden
        why = search.failures[name]
        found.append(
            LeftOut(name, types[name], why.file, why.line, why.reason, tuple(sorted(hidden)))
        )
    if unclaimed:
        reason = "its code uses these weights outside of what could be traced"
        found.append(LeftOut("", types[""], "", 0, reason, tuple(sorted(unclaimed))))
    return found[::-1]


def _notes(search: Search) -> list[str]:
    passed, values = set(), set()
    for region in search.regions.values():
        passed |= region.recording.passed
        values |= region.recording.values
    return [
        *(f"taken as passing: {place}" for place in sorted(passed)),
        *(f"answered with the numbers of the traced size: {place}" for place in sorted(values)),
    ]


def _nothing_traced(search: Search, types: dict[str, str]) -> TraceError:
    name, why = next(iter(search.failures.items()), ("", Failure("", 0, "it has no weights")))
    where = f"module '{name}' ({types[name]})" if name else types[""]
    line = f", {why.file}:{why.line}" if why.file else ""
    return TraceError(
        f"{where} can't be traced{line}: {why.reason}",
        "torch.fx records what forward does without running it on numbers: move branches and "
        "loops that depend on the input out of this forward, or quantize the part that traces",
    )
