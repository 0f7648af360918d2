"""Layered graphs: boxes on ranks from top to bottom, and lanes that keep room for long edges.

Vertices are numbers: boxes first, in an order in which every box comes after those it reads, then
lanes. A value that is read further down than on the next rank has one lane on each rank in
between, which all its readers share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Layered:
    """`ranks` are vertices from left to right; `above` and `below` neighbours on the ranks beside.

    `widths` are in pixels; `owner` is the box whose value a vertex carries, itself for a box.
    """

    ranks: list[list[int]]
    above: list[list[int]]
    below: list[list[int]]
    widths: list[float]
    owner: list[int]

    def is_lane(self, vertex: int) -> bool:
        """Whether a vertex only keeps room for an edge."""
        return self.owner[vertex] != vertex

    def segments(self) -> list[tuple[int, int]]:
        """Pairs of neighbours (upper, lower): what edges are drawn of."""
        return [(u, v) for rank in self.ranks for u in rank for v in self.below[u]]


def layered(sources: Sequence[Sequence[int]], widths: Sequence[float], lane: float) -> Layered:
    """The layered graph of boxes; `sources[i]` are those that box i reads, all below i.

    `lane` is the width of a lane. Within a rank the order is that of the boxes, lanes last.
    """
    rank = _ranks(sources)
    graph = Layered(
        ranks=[[] for _ in range(max(rank, default=-1) + 1)],
        above=[[] for _ in widths],
        below=[[] for _ in widths],
        widths=list(widths),
        owner=list(range(len(widths))),
    )
    for box, level in enumerate(rank):
        graph.ranks[level].append(box)
    readers: list[list[int]] = [[] for _ in widths]
    for box, read in enumerate(sources):
        for source in dict.fromkeys(read):
            readers[source].append(box)
    for source, boxes in enumerate(readers):
        _connect(graph, source, boxes, rank, lane)
    return graph


def _ranks(sources: Sequence[Sequence[int]]) -> list[int]:
    """Longest path from the top; what doesn't come from box 0 lies just above what reads it."""
    rank: list[int] = []
    from_input: list[bool] = []
    for box, read in enumerate(sources):
        rank.append(max((rank[source] + 1 for source in read), default=0))
        from_input.append(not box or any(from_input[source] for source in read))
    highest_reader = [len(rank)] * len(rank)
    for box in reversed(range(len(rank))):
        if not from_input[box] and highest_reader[box] < len(rank):
            rank[box] = highest_reader[box] - 1
        for source in sources[box]:
            highest_reader[source] = min(highest_reader[source], rank[box])
    return rank


def _connect(graph: Layered, source: int, readers: list[int], rank: list[int], lane: float) -> None:
    """Lead the value of `source` down to its readers, by lanes where they are further away."""
    carrier = source
    last = max((rank[box] for box in readers), default=0)
    for level in range(rank[source] + 1, last + 1):
        for box in readers:
            if rank[box] == level:
                _link(graph, carrier, box)
        if level < last:
            vertex = len(graph.widths)
            graph.widths.append(lane)
            graph.owner.append(source)
            graph.above.append([])
            graph.below.append([])
            graph.ranks[level].append(vertex)
            _link(graph, carrier, vertex)
            carrier = vertex


def _link(graph: Layered, upper: int, lower: int) -> None:
    graph.below[upper].append(lower)
    graph.above[lower].append(upper)
