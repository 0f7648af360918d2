"""From a model to torch.fx graphs that are known to compute the same, as far as that goes."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fxquant.errors import TraceError
from fxquant.graph.failures import Failure
from fxquant.graph.probes import Probes, run, same
from fxquant.graph.search import Search


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
    search.cover("", probes.root_calls())
    if not search.regions:
        probes.check_deterministic(model)
        raise _nothing_traced(search, types)
    _check_whole(search, probes)
    return Traced(
        search.model,
        tuple(_left_out(search, types)),
        tuple(_notes(search)),
        tuple(name for name, region in search.regions.items() if region.fixed),
    )


def _check_whole(search: Search, probes: Probes) -> None:
    """The model with its regions in place computes what it did."""
    if list(search.regions) == [""]:
        return
    for inputs, expected, other_size in probes.runs:
        fixed = any(region.fixed for region in search.regions.values())
        if not (other_size and fixed) and not same(run(search.model, inputs), expected):
            raise TraceError("the model with its traced parts in place computes something else")


def _left_out(search: Search, types: dict[str, str]) -> list[LeftOut]:
    outer_first = sorted(search.failures)
    found: list[LeftOut] = []
    claimed: set[str] = set()
    for name in reversed(outer_first):
        if name in search.regions:
            continue
        hidden = search.hidden(name) - claimed
        claimed |= hidden
        why = search.failures[name]
        found.append(
            LeftOut(name, types[name], why.file, why.line, why.reason, tuple(sorted(hidden)))
        )
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
