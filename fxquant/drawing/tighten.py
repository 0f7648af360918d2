"""Pull the parts of a laid-out graph together: boxes below each other, lanes close to them.

The four alignments leave lanes far apart where many run side by side. Vertices that lie straight
above each other move as one block, as near to what they connect as their neighbours allow.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from fxquant.drawing.coordinates import separation
from fxquant.drawing.layered import Layered

ROUNDS = 6
STRAIGHT = 0.5


def tighten(graph: Layered, x: list[float]) -> None:
    """Move blocks in place; the order on every rank and the least distances stay as they were."""
    beside = _neighbours(graph)
    for round_ in range(ROUNDS):
        blocks = _blocks(graph, x)
        blocks.sort(key=lambda block: x[block[0]], reverse=bool(round_ % 2))
        for lanes in (False, True):
            for block in blocks:
                if lanes == all(graph.is_lane(vertex) for vertex in block):
                    _move(graph, x, block, beside)


def _neighbours(graph: Layered) -> tuple[dict[int, int], dict[int, int]]:
    """The vertex to the left, and to the right, of each that has one."""
    pairs = [pair for rank in graph.ranks for pair in pairwise(rank)]
    return {right: left for left, right in pairs}, dict(pairs)


def _blocks(graph: Layered, x: list[float]) -> list[list[int]]:
    """Vertices joined by straight edges."""
    block_of: dict[int, list[int]] = {}
    for u, v in graph.segments():
        if abs(x[u] - x[v]) < STRAIGHT:
            upper, lower = block_of.setdefault(u, [u]), block_of.setdefault(v, [v])
            if upper is not lower:
                upper += lower
                block_of.update(dict.fromkeys(lower, upper))
    for vertex in range(len(x)):
        block_of.setdefault(vertex, [vertex])
    return list({id(block): block for block in block_of.values()}.values())


def _move(
    graph: Layered,
    x: list[float],
    block: list[int],
    beside: tuple[dict[int, int], dict[int, int]],
) -> None:
    wanted = _wanted(graph, x, block)
    if wanted is None:
        return
    before, after = beside
    least = [x[before[v]] + separation(graph, before[v], v) for v in block if v in before]
    most = [x[after[v]] - separation(graph, v, after[v]) for v in block if v in after]
    place = max([min([wanted, *most]), *least])
    for vertex in block:
        x[vertex] = place


def _wanted(graph: Layered, x: list[float], block: list[int]) -> float | None:
    """The middle of what the block connects to; of a block with boxes, of other boxes if any."""
    inside = set(block)
    ends = [
        (vertex, end)
        for vertex in block
        for end in (*graph.above[vertex], *graph.below[vertex])
        if end not in inside
    ]
    boxes = [e for v, e in ends if not graph.is_lane(v) and not graph.is_lane(e)]
    places = [x[end] for end in (boxes or [end for _, end in ends])]
    return median(places) if places else None


def straighten(graph: Layered, x: list[float]) -> None:
    """Put vertices that are alone on their rank below each other, in place.

    What lies between two of them is moved as a whole, its ends' middle below the upper one: else
    a deep network drifts to one side.
    """
    alone = [level for level, rank in enumerate(graph.ranks) if len(rank) == 1]
    place = {level: x[graph.ranks[level][0]] for level in alone}
    for upper, lower in pairwise([-1, *alone, len(graph.ranks)]):
        ends = [place[level] for level in (upper, lower) if level in place]
        shift = sum(ends) / len(ends) if ends else 0.0
        for rank in graph.ranks[upper + 1 : lower]:
            for vertex in rank:
                x[vertex] -= shift
    for level in alone:
        x[graph.ranks[level][0]] = 0.0
