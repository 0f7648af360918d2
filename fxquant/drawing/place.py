"""Where boxes, edges and frames go: pixels from the top left corner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxquant.drawing.coordinates import assign_x
from fxquant.drawing.frames import choose_frames
from fxquant.drawing.layered import Layered, layered
from fxquant.drawing.order import reduce_crossings
from fxquant.drawing.tighten import straighten, tighten

LANE = 4.0
ROW_GAP, MOST_GAP = 28.0, 64.0
FRAME_TITLE, FRAME_MARGIN = 16.0, 9.0
PORT_GAP = 12.0


@dataclass(frozen=True)
class Rect:
    """A rectangle: left, top, width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def overlaps(self, other: Rect) -> bool:
        """Whether the two share more than a border."""
        return (
            self.x < other.right
            and other.x < self.right
            and self.y < other.bottom
            and other.y < self.bottom
        )


@dataclass(frozen=True)
class Segment:
    """A piece of an edge: straight down from `top` to `start`, then a curve to (`end_x`, `end`)."""

    x: float
    top: float
    start: float
    end_x: float
    end: float


@dataclass(frozen=True)
class Placed:
    """Boxes in their order, the pieces of the edges that leave each, and frames by module."""

    boxes: list[Rect]
    edges: list[list[Segment]]
    frames: dict[str, Rect]
    width: float
    height: float


def place(
    sources: Sequence[Sequence[int]],
    sizes: Sequence[tuple[float, float]],
    paths: Sequence[str],
) -> Placed:
    """Lay boxes out from top to bottom.

    `sources[i]` are the boxes that box i reads, all before i; `sizes` are (width, height) and
    `paths` the qualified names of the modules that boxes belong to.
    """
    graph = layered(sources, [width for width, _ in sizes], LANE)
    reduce_crossings(graph)
    x = assign_x(graph)
    tighten(graph, x)
    straighten(graph, x)
    left = min((place - width / 2 for place, width in zip(x, graph.widths, strict=True)), default=0)
    x = [place - left + FRAME_MARGIN for place in x]
    frames = choose_frames(paths)
    rows = _rows(graph, x, [height for _, height in sizes], frames)
    boxes: list[Rect] = [Rect(0, 0, 0, 0)] * len(sizes)
    for level, rank in enumerate(graph.ranks):
        for vertex in rank:
            if not graph.is_lane(vertex):
                width, height = sizes[vertex]
                boxes[vertex] = Rect(x[vertex] - width / 2, rows[level][0], width, height)
    framed = _frames(frames, boxes)
    return Placed(
        boxes,
        _edges(graph, x, rows, boxes),
        framed,
        max((rect.right for rect in [*boxes, *framed.values()]), default=0) + FRAME_MARGIN,
        rows[-1][1] + FRAME_MARGIN if rows else 0,
    )


def _rows(
    graph: Layered, x: list[float], heights: list[float], frames: dict[str, list[int]]
) -> list[tuple[float, float]]:
    """Top and bottom of each rank; a gap is higher where edges go far to the side in it."""
    firsts = {min(boxes) for boxes in frames.values()}
    rows: list[tuple[float, float]] = []
    bottom = FRAME_MARGIN
    for level, rank in enumerate(graph.ranks):
        gap = 0.0
        if level:
            upper = graph.ranks[level - 1]
            far = max((abs(x[u] - x[v]) for u in upper for v in graph.below[u]), default=0)
            gap = min(ROW_GAP + far / 12, MOST_GAP)
        if firsts & set(rank):
            gap += FRAME_TITLE + FRAME_MARGIN
        height = max((heights[v] for v in rank if not graph.is_lane(v)), default=0)
        rows.append((bottom + gap, bottom + gap + height))
        bottom += gap + height
    return rows


def _edges(
    graph: Layered, x: list[float], rows: list[tuple[float, float]], boxes: list[Rect]
) -> list[list[Segment]]:
    """The pieces of the edges that leave each box, each lane's included."""
    ports = _ports(graph, x, boxes)
    edges: list[list[Segment]] = [[] for _ in boxes]
    for level, rank in enumerate(graph.ranks):
        for u in rank:
            top = rows[level][0] if graph.is_lane(u) else boxes[u].bottom
            for v in graph.below[u]:
                end = rows[level + 1][0]
                piece = Segment(x[u], top, rows[level][1], ports[u, v], end)
                edges[graph.owner[u]].append(piece)
    return edges


def _ports(graph: Layered, x: list[float], boxes: list[Rect]) -> dict[tuple[int, int], float]:
    """Where each edge enters its lower end: side by side at a box, in the order of their starts."""
    ports: dict[tuple[int, int], float] = {}
    for v, above in enumerate(graph.above):
        starts = sorted(above, key=x.__getitem__)
        room = boxes[v].width - PORT_GAP if len(starts) > 1 else 0.0
        for u, port in zip(starts, _spread([x[u] for u in starts], x[v], room), strict=True):
            ports[u, v] = port
    return ports


def _spread(starts: list[float], centre: float, room: float) -> list[float]:
    """Places within `room` around `centre`, such that one edge is straight where that can be."""
    last = len(starts) - 1
    gap = min(PORT_GAP, room / last) if last > 0 else 0.0
    ports = [centre + (i - last / 2) * gap for i in range(len(starts))]
    shifts = [start - port for start, port in zip(starts, ports, strict=True)]
    shift = min(shifts, key=abs, default=0.0)
    return [port + shift for port in ports] if abs(shift) <= (room - last * gap) / 2 else ports


def _frames(frames: dict[str, list[int]], boxes: list[Rect]) -> dict[str, Rect]:
    """Frames around the boxes of a module, but for those that would hold or cut anything else."""
    rects = {path: _around([boxes[i] for i in members]) for path, members in frames.items()}
    kept = {}
    for path, rect in rects.items():
        others = [box for i, box in enumerate(boxes) if i not in frames[path]]
        rivals = [other for name, other in rects.items() if name != path]
        if not any(rect.overlaps(other) for other in [*others, *rivals]):
            kept[path] = rect
    return kept


def _around(rects: list[Rect]) -> Rect:
    left = min(rect.x for rect in rects) - FRAME_MARGIN
    top = min(rect.y for rect in rects) - FRAME_TITLE
    right = max(rect.right for rect in rects) + FRAME_MARGIN
    bottom = max(rect.bottom for rect in rects) + FRAME_MARGIN
    return Rect(left, top, right - left, bottom - top)
