"""The order of vertices within each rank, in which few edges cross."""

from __future__ import annotations

from itertools import pairwise

from fxquant.drawing.layered import Layered

SWEEPS = 12


def reduce_crossings(graph: Layered) -> None:
    """Sort each rank by the mean place of the neighbours, down and up; the best order is kept."""
    best, fewest = [list(rank) for rank in graph.ranks], count_crossings(graph)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        levels = range(1, len(graph.ranks)) if down else range(len(graph.ranks) - 2, -1, -1)
        for level in levels:
            _sort(graph, level, graph.above if down else graph.below, -1 if down else 1)
        crossings = count_crossings(graph)
        if crossings < fewest:
            best, fewest = [list(rank) for rank in graph.ranks], crossings
    graph.ranks[:] = best


def _sort(graph: Layered, level: int, neighbours: list[list[int]], beside: int) -> None:
    place = {vertex: i for i, vertex in enumerate(graph.ranks[level + beside])}
    rank = graph.ranks[level]
    wanted = {
        vertex: sum(place[n] for n in neighbours[vertex]) / len(neighbours[vertex])
        if neighbours[vertex]
        else float(i)
        for i, vertex in enumerate(rank)
    }
    rank.sort(key=wanted.__getitem__)


def count_crossings(graph: Layered) -> int:
    """How many pairs of edges cross."""
    return sum(_crossings_between(graph, upper, lower) for upper, lower in pairwise(graph.ranks))


def _crossings_between(graph: Layered, upper: list[int], lower: list[int]) -> int:
    """Pairs of edges in the wrong order, counted in a binary indexed tree of ends seen so far."""
    place = {vertex: i for i, vertex in enumerate(lower)}
    ends = [end for u in upper for end in sorted(place[v] for v in graph.below[u])]
    tree = [0] * (len(lower) + 1)
    crossings = 0
    for seen, end in enumerate(ends):
        not_beyond, i = 0, end + 1
        while i:
            not_beyond += tree[i]
            i -= i & -i
        crossings += seen - not_beyond
        i = end + 1
        while i < len(tree):
            tree[i] += 1
            i += i & -i
    return crossings
