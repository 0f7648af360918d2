"""The picture of the quantized graph: where things lie, and what the SVG says."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import nets
import pytest
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant.drawing.frames import choose_frames
from fxquant.drawing.layered import layered
from fxquant.drawing.order import count_crossings, reduce_crossings
from fxquant.drawing.place import Placed, Rect, place
from fxquant.drawing.svg import draw
from fxquant.drawing.words import TIMES
from fxquant.graph.prepare import prepare
from fxquant.report.layers import describe, list_layers
from fxquant.spec import LayerRule, QConfig

SVG = "{http://www.w3.org/2000/svg}"
SHAPE = (3, 16, 16)
UNTIMED = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NETWORKS = {
    **nets.ALL,
    "resnet18": lambda: torchvision.models.resnet18().eval(),
    "densenet121": lambda: torchvision.models.densenet121().eval(),
    "googlenet": lambda: torchvision.models.googlenet(init_weights=False).eval(),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small().eval(),
}


@st.composite
def graphs(draw):
    """Boxes, each with those that it reads, sizes, and modules that they belong to."""
    count = draw(st.integers(1, 25))
    sources = [
        draw(st.lists(st.integers(0, box - 1), max_size=4)) if box else [] for box in range(count)
    ]
    side = st.floats(10, 200)
    sizes = draw(st.lists(st.tuples(side, side), min_size=count, max_size=count))
    names = st.sampled_from(["", "a", "a.b", "a.b.c", "a.d", "e", "e.f"])
    return sources, sizes, draw(st.lists(names, min_size=count, max_size=count))


def check(placed: Placed, sources: list[list[int]], paths: list[str]) -> None:
    """Nothing overlaps, edges go downwards past the boxes, frames hold their own boxes alone."""
    for a, b in itertools.combinations(placed.boxes, 2):
        assert not a.overlaps(b)
    for box in placed.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.right <= placed.width + 1e-6
        assert box.bottom <= placed.height + 1e-6
    for source, pieces in enumerate(placed.edges):
        for piece in pieces:
            assert piece.top <= piece.start < piece.end
            for other, box in enumerate(placed.boxes):
                in_gap = box.y < piece.end - 1e-6 and box.bottom > piece.start + 1e-6
                assert not in_gap
                beside = not box.x < piece.x < box.right
                assert other == source or beside or box.bottom <= piece.top or box.y >= piece.start
    check_ends(placed, sources)
    for path, frame in placed.frames.items():
        for box, owner in zip(placed.boxes, paths, strict=True):
            mine = owner == path or owner.startswith(f"{path}.")
            assert frame.overlaps(box) == mine
    for a, b in itertools.combinations(placed.frames.values(), 2):
        assert not a.overlaps(b)


def check_ends(placed: Placed, sources: list[list[int]]) -> None:
    """The edges of a box lead from its lower border to the upper border of all that read it."""
    for source, pieces in enumerate(placed.edges):
        readers = [box for box, read in enumerate(sources) if source in read]
        box = placed.boxes[source]
        assert bool(pieces) == bool(readers)
        reached = [(piece.end_x, piece.end) for piece in pieces]
        starts = [(piece.x, piece.top) for piece in pieces]
        for x, y in starts:
            assert (x, y) in reached or (y == box.bottom and box.x < x < box.right)
        for reader in readers:
            rect = placed.boxes[reader]
            assert any(rect.x <= x <= rect.right and y == rect.y for x, y in reached)


@settings(UNTIMED, max_examples=150)
@given(graphs())
def test_any_graph_is_laid_out_without_overlaps(graph):
    sources, sizes, paths = graph
    check(place(sources, sizes, paths), sources, paths)


def test_a_chain_is_straight_and_its_shortcut_goes_around():
    sources = [[], [0], [1], [2, 0], [3]]
    placed = place(sources, [(100, 20)] * 5, [""] * 5)
    centres = {round(box.x + box.width / 2, 3) for box in placed.boxes}
    assert len(centres) == 1
    shortcut = [piece for piece in placed.edges[0] if piece.end_x not in centres]
    assert shortcut
    assert min(piece.end_x for piece in shortcut[:1]) > placed.boxes[1].right


def test_branches_lie_side_by_side():
    placed = place([[], [0], [0], [0], [1, 2, 3]], [(80, 20)] * 5, [""] * 5)
    branches = placed.boxes[1:4]
    assert len({box.y for box in branches}) == 1
    assert len({box.x for box in branches}) == 3


def test_what_comes_from_no_input_lies_just_above_what_reads_it():
    # 0 -> 1 -> 2 -> 5, and 3 -> 4 -> 5
    graph = layered([[], [0], [1], [], [3], [2, 4]], [10.0] * 6, 4.0)
    assert graph.ranks == [[0], [1, 3], [2, 4], [5]]


def test_crossings_are_counted_and_reduced():
    # two chains whose boxes are listed crosswise
    graph = layered([[], [], [1], [0], [3], [2]], [10.0] * 6, 4.0)
    assert count_crossings(graph) == 2
    reduce_crossings(graph)
    assert count_crossings(graph) == 0


@settings(UNTIMED, max_examples=50)
@given(graphs())
def test_counting_crossings_agrees_with_comparing_all_pairs(graph):
    sources, sizes, _ = graph
    drawn = layered(sources, [width for width, _ in sizes], 4.0)
    total = 0
    for upper, lower in itertools.pairwise(drawn.ranks):
        edges = [(upper.index(u), lower.index(v)) for u in upper for v in drawn.below[u]]
        total += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(edges, 2))
    assert count_crossings(drawn) == total


def test_frames_are_blocks_of_a_size():
    blocks = [f"features.block{i}.conv{j}" for i in range(6) for j in range(4)]
    frames = choose_frames(["", *blocks, "classifier"])
    assert list(frames) == [f"features.block{i}" for i in range(6)]
    assert frames["features.block0"] == [1, 2, 3, 4]


@dataclass
class Picture:
    """A parsed drawing: its boxes by title, and all of its text."""

    boxes: list[tuple[str, Rect]]
    frames: list[Rect]
    text: list[str]
    tips: list[str]


def parse(source: str) -> Picture:
    root = ElementTree.fromstring(source)
    part = [group for group in root.findall(f"{SVG}g") if "transform" in group.attrib]
    boxes, frames = [], []
    for group in part:
        top = float(group.attrib["transform"].split()[1].rstrip(")"))
        for box in group.findall(f"{SVG}g"):
            if box.attrib["class"].split()[0] == "b":
                boxes.append((box.find(f"{SVG}text").text, _rect(box.find(f"{SVG}rect"), top)))
        frames += [_rect(rect, top) for rect in group.findall(f"{SVG}rect")]
    text = [element.text for element in root.iter(f"{SVG}text")]
    return Picture(boxes, frames, text, [element.text for element in root.iter(f"{SVG}title")])


def _rect(element: ElementTree.Element, top: float) -> Rect:
    x, y, width, height = (float(element.attrib[k]) for k in ("x", "y", "width", "height"))
    return Rect(x, y + top, width, height)


def svg(model: nn.Module, shape=SHAPE, name: str = "net", **widths) -> tuple[str, dict]:
    prepared = prepare(model, QConfig(**widths), shape)
    layers = list_layers(prepared)
    facts = describe(prepared, layers)
    facts["model"]["name"] = name
    facts["settings"] = {"config": prepared.config.to_dict()}
    return draw(prepared, layers, facts), facts


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_in_the_picture_and_no_boxes_overlap(name):
    shape = SHAPE if name in nets.ALL else (3, 64, 64)
    source, facts = svg(NETWORKS[name](), shape, name)
    assert len(source) < 400_000
    picture = parse(source)
    titles = [title for title, _ in picture.boxes]
    for layer in {layer["name"] for layer in facts["layers"]}:
        assert titles.count(layer) == [row["name"] for row in facts["layers"]].count(layer)
    for (_, a), (_, b) in itertools.combinations(picture.boxes, 2):
        assert not a.overlaps(b)
    assert any(name in line for line in picture.text)


def test_boxes_say_widths_taps_and_reasons():
    source, _ = svg(
        nets.ALL["residual"](), weight_bits=3, act_bits=5, layers=(LayerRule("linear", None),)
    )
    picture = parse(source)
    assert f"conv · 3{TIMES}3 /2 · 8→16 · W3 A5 · ReLU" in picture.text
    assert "add + ReLU" in [title for title, _ in picture.boxes]
    tip = next(tip for tip in picture.tips if tip.startswith("layer2.conv1\n"))
    assert "1,168 parameters, 73.7 k MACs" in tip
    assert f"gives 16{TIMES}8{TIMES}8, at 5 bits" in tip
    assert "will run in an integer kernel" in tip
    assert "batch norm tap layer2.bn1" in tip
    tip = next(tip for tip in picture.tips if tip.startswith("conv1\n"))
    assert f"gives 8{TIMES}16{TIMES}16, at 8 bits" in tip  # of which the next layer reads 5
    tip = next(tip for tip in picture.tips if tip.startswith("linear\n"))
    assert "no integer kernel: a layer rule keeps it float" in tip


def test_unfolded_batch_norms_and_float_activations_are_marked():
    source, _ = svg(nets.ALL["pre_activation"]())
    root = ElementTree.fromstring(source)
    marked = [
        group.find(f"{SVG}text").text
        for group in root.iter(f"{SVG}g")
        if group.attrib.get("class") == "b float" and group.find(f"{SVG}text") is not None
    ]
    assert marked == ["bn1", "bn3"]


class Branches(nn.Module):
    """Parts of one value, dropout, an identity, and a size that the graph works with."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1)
        self.drop, self.same = nn.Dropout(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).chunk(2, 1)
        y = self.drop(self.last(F.relu(left))) + self.same(right)
        return y.reshape(y.size(0), -1)


def test_only_what_computes_or_moves_numbers_has_a_box():
    source, _ = svg(Branches().eval())
    titles = [title for title, _ in parse(source).boxes]
    assert titles == ["input x", "conv", "chunk", "relu", "last", "add", "reshape", "output"]


def test_names_are_escaped():
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    source, _ = svg(model, name="</title><script>alert(1)</script> a<b>&c \x1b[2J\u202e")
    assert "<script" not in source
    expected = "</title><script>alert(1)</script> a<b>&c \\x1b[2J\\u202e"
    assert parse(source).text[0].startswith(expected)


def test_the_same_network_gives_the_same_picture():
    assert svg(nets.ALL["concat"]())[0] == svg(nets.ALL["concat"]())[0]
