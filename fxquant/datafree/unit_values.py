"""What goes into a unit and what should come out of it, on given images."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from fxquant.graph.regions import all_nodes, interpreted
from fxquant.graph.units import Unit, tapped_name


@dataclass(frozen=True)
class UnitValues:
    """Values at one call of a unit's region, (images, ...) each, in the order of the unit's nodes.

    `inputs` are what the student computes before the unit, `float_inputs` and `targets` what the
    teacher computes in their place and in place of the unit's outputs.
    """

    inputs: tuple[Tensor, ...]
    float_inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]


@torch.no_grad()
def collect_values(
    unit: Unit, teacher: nn.Module, student: nn.Module, images: Tensor, *, batch: int = 64
) -> list[UnitValues]:
    """One item for each call of the unit's region, on `images`, (n, channels, height, width).

    Empty where the values can't be paired: where the teacher computes no such value, or a value
    has no entry for each image.
    """
    before, after = list(unit.inputs), _counterparts(teacher, unit.outputs)
    truth_before = _counterparts(teacher, unit.inputs)
    if None in after + truth_before:
        return []
    found = _record(student, before, images, batch)
    truth = _record(teacher, truth_before + after, images, batch)
    lists = [*found, *truth]
    values = [value for calls_of_one in lists for value in calls_of_one]
    calls = len(lists[0])
    if any(len(item) != calls for item in lists) or any(len(v) != len(images) for v in values):
        return []
    count = len(before)
    return [
        UnitValues(tuple(row[:count]), tuple(row[count : 2 * count]), tuple(row[2 * count :]))
        for row in zip(*lists, strict=True)
    ]


def _counterparts(teacher: nn.Module, nodes: tuple[Node, ...]) -> list[Node | None]:
    """The teacher's nodes that compute what these nodes of the student do."""
    known = {tapped_name(n): n for n in all_nodes(teacher) if n.op not in ("get_attr", "output")}
    return [known.get(tapped_name(node)) for node in nodes]


class _Complete(Exception):  # noqa: N818
    """All that was asked for has been computed: no error, the rest need not run."""


def _record(model: nn.Module, nodes: list[Node], images: Tensor, batch: int) -> list[list[Tensor]]:
    """For each node its values, one for each call of its region in a pass over all images."""
    seen: dict[Node, list[Tensor]] = {node: [] for node in nodes}
    # A model that is one graph is run once, and no further than needed.
    ordered = [n for n in model.graph.nodes if n in seen] if isinstance(model, GraphModule) else []
    last = ordered[-1] if len(ordered) == len(seen) else None

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            if n in seen:
                seen[n].append(value)
            if n is last:
                raise _Complete
            return value

    parts = images.split(batch)
    with interpreted(model, Recorder):
        for part in parts:
            with suppress(_Complete):
                model(part)
    return [_joined(seen[node], len(parts)) for node in nodes]


def _joined(values: list[Tensor], parts: int) -> list[Tensor]:
    """For each call in one pass, the values of all passes joined."""
    calls = len(values) // parts
    return [torch.cat(values[call::calls]) for call in range(calls)]
