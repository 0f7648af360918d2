"""Horizontal places of the vertices of a layered graph, after Brandes and Köpf.

"Fast and Simple Horizontal Coordinate Assignment" (Graph Drawing 2001): vertices are aligned with
the median of their neighbours in four ways (upwards and downwards, to the left and to the right),
each is packed, and the mean of the two middle places is taken. Long edges come out straight, and
no two vertices of a rank overlap.
"""

from __future__ import annotations

from itertools import pairwise

from fxquant.drawing.layered import Layered

GAP = 18.0
LANE_GAP = 9.0


def assign_x(graph: Layered) -> list[float]:
    """The centre of each vertex in pixels; the leftmost edge of all is at 0."""
    if not graph.widths:
        return []
    conflicts = _conflicts(graph)
    layouts = [
        _layout(graph, conflicts, upwards=upwards, leftwards=leftwards)
        for upwards in (False, True)
        for leftwards in (False, True)
    ]
    _line_up(graph, layouts)
    middle = [sum(sorted(places)[1:3]) / 2 for places in zip(*layouts, strict=True)]
    left = min(x - width / 2 for x, width in zip(middle, graph.widths, strict=True))
    return [x - left for x in middle]


def _conflicts(graph: Layered) -> set[tuple[int, int]]:
    """Edges that cross a segment between two lanes: they give way, so that lanes stay straight."""
    found: set[tuple[int, int]] = set()
    for upper, lower in pairwise(graph.ranks):
        place = {vertex: i for i, vertex in enumerate(upper)}
        low, done = 0, 0
        for i, vertex in enumerate(lower):
            inner = _inner_above(graph, vertex)
            if inner is None and i < len(lower) - 1:
                continue
            high = len(upper) - 1 if inner is None else place[inner]
            for v in lower[done : i + 1]:
                for u in graph.above[v]:
                    inside = low <= place[u] <= high
                    if not inside and _inner_above(graph, v) != u:
                        found.add((u, v))
            low, done = high, i + 1
    return found


def _inner_above(graph: Layered, vertex: int) -> int | None:
    """The lane above a lane."""
    if graph.is_lane(vertex):
        above = graph.above[vertex][0]
        return above if graph.is_lane(above) else None
    return None


def _layout(
    graph: Layered, conflicts: set[tuple[int, int]], *, upwards: bool, leftwards: bool
) -> list[float]:
    """Places of one of the four alignments; mirrored ones are packed in the mirror."""
    ranks = graph.ranks[::-1] if upwards else graph.ranks
    ranks = [rank[::-1] for rank in ranks] if leftwards else ranks
    neighbours = graph.below if upwards else graph.above
    root = _align(ranks, neighbours, conflicts)
    x = _pack(graph, ranks, root)
    return [-place for place in x] if leftwards else x


def _align(
    ranks: list[list[int]], neighbours: list[list[int]], conflicts: set[tuple[int, int]]
) -> list[int]:
    """Blocks of vertices to put straight above each other: the root of each vertex."""
    count = len(neighbours)
    root, block = list(range(count)), list(range(count))
    place = {vertex: i for rank in ranks for i, vertex in enumerate(rank)}
    for rank in ranks[1:]:
        rightmost = -1
        for vertex in rank:
            beside = sorted(neighbours[vertex], key=place.__getitem__)
            if not beside:
                continue
            for i in sorted({(len(beside) - 1) // 2, len(beside) // 2}):
                other = beside[i]
                crossed = (other, vertex) in conflicts or (vertex, other) in conflicts
                if block[vertex] == vertex and not crossed and rightmost < place[other]:
                    block[other] = vertex
                    root[vertex] = root[other]
                    block[vertex] = root[vertex]
                    rightmost = place[other]
    return root


def _pack(graph: Layered, ranks: list[list[int]], root: list[int]) -> list[float]:
    """Place whole blocks as far left as their neighbours allow, then close gaps from the right."""
    after: dict[int, dict[int, float]] = {vertex: {} for vertex in set(root)}
    before: dict[int, dict[int, float]] = {vertex: {} for vertex in after}
    for rank in ranks:
        for u, v in pairwise(rank):
            distance = max(separation(graph, u, v), after[root[u]].get(root[v], 0.0))
            after[root[u]][root[v]] = before[root[v]][root[u]] = distance
    order = _topological(after, before)
    x: dict[int, float] = {}
    for r in order:
        x[r] = max((x[b] + distance for b, distance in before[r].items()), default=0.0)
    for r in reversed(order):
        if after[r]:
            x[r] = max(x[r], min(x[a] - distance for a, distance in after[r].items()))
    return [x[root[vertex]] for vertex in range(len(root))]


def _topological(after: dict[int, dict[int, float]], before: dict[int, dict]) -> list[int]:
    """Blocks from left to right."""
    waiting = {r: len(before[r]) for r in sorted(after)}
    ready = [r for r, count in waiting.items() if not count]
    order: list[int] = []
    while ready:
        r = ready.pop()
        order.append(r)
        for follower in after[r]:
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    return order


def separation(graph: Layered, left: int, right: int) -> float:
    """Least distance in pixels between the centres of two neighbours on a rank."""
    lanes = graph.is_lane(left) and graph.is_lane(right)
    gap = LANE_GAP if lanes else GAP
    return (graph.widths[left] + graph.widths[right]) / 2 + gap


def _line_up(graph: Layered, layouts: list[list[float]]) -> None:
    """Move each layout so that its left or right border is that of the narrowest."""
    borders = []
    for x in layouts:
        edges = [(p - w / 2, p + w / 2) for p, w in zip(x, graph.widths, strict=True)]
        borders.append((min(left for left, _ in edges), max(right for _, right in edges)))
    narrow = min(borders, key=lambda border: border[1] - border[0])
    for i, (x, (left, right)) in enumerate(zip(layouts, borders, strict=True)):
        shift = narrow[1] - right if i % 2 else narrow[0] - left
        x[:] = [place + shift for place in x]
