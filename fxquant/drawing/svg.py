"""The quantized graph as one SVG file: no scripts, fonts or links, all text selectable."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from fxquant.drawing import words
from fxquant.drawing.boxes import Box, Part, fold
from fxquant.drawing.place import Placed, Rect, Segment, place
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS
from fxquant.graph.prepare import Prepared
from fxquant.inputs import input_shapes
from fxquant.report.formats import amount, count, percent, size
from fxquant.report.layers import Layer
from fxquant.wording import shown

CHARACTER, SMALL = 6.63, 5.73  # widths of a monospaced character at 11 and 9.5 pixels
LAYER_HEIGHT, PLAIN_HEIGHT = 44.0, 28.0
MARGIN, PADDING = 24.0, 10.0
PILL, BN_PILL, TAP_PILL = 18.0, 22.0, 26.0
LINE = 150  # characters
FONT = {"h1": 20.0, "h2": 15.0, "p": 12.0, "t": 11.0}  # pixels

BOX_LOOKS = (
    *((f"w{bits}", f"layer, weights of {bits} bits") for bits in (2, 4, 8)),
    ("w4 slow", "no integer kernel"),
    ("float", "in floating point"),
    ("grid", "op between layers"),
    ("move", "only moves numbers"),
)
MARK_LOOKS = (
    ("q", "4", "bits of a value"),
    ("x", "fp", "value in floating point"),
    ("bn", "BN", "value that a batch norm read: matched by data-free recipes"),
    ("tap", "tap", "feature compared with the original's"),
)

STYLE = """
svg { background: #fff; }
text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1b1f24; }
.h1 { font-size: 20px; font-weight: bold; } .h2 { font-size: 15px; font-weight: bold; }
.p { font-size: 12px; fill: #444c56; }
.t { font-size: 11px; } .d { font-size: 9.5px; fill: #444c56; }
.b rect { stroke: #5b6b7c; stroke-width: 1; }
.b:hover rect { stroke-width: 2.5; }
.w8 > rect { fill: #e6f1fb; } .w7 > rect { fill: #d9eaf9; } .w6 > rect { fill: #cbe2f6; }
.w5 > rect { fill: #bbd9f3; } .w4 > rect { fill: #a9cff0; } .w3 > rect { fill: #93c2eb; }
.w2 > rect { fill: #79b2e4; } .w1 > rect { fill: #fff; }
.grid > rect { fill: #eceff2; } .move > rect { fill: #fff; stroke: #aab4be; }
.float > rect { fill: #fde4d6; stroke: #b8431d; stroke-dasharray: 4 2; }
.slow > rect { stroke: #b8431d; stroke-width: 2; }
.e { fill: none; stroke: #6b7a8a; stroke-width: 1.4; } .e:hover { stroke-width: 3.5; }
.f { stroke: #b8431d; stroke-dasharray: 5 3; }
.pill { font-size: 9.5px; text-anchor: middle; fill: #fff; }
.q > rect { fill: #24588f; } .x > rect { fill: #b8431d; } .bn > rect { fill: #6b4e9b; }
.tap > rect { fill: #0f6b45; }
.frame { fill: #f7f8fa; stroke: #d0d7de; }
.ft { font-size: 11px; font-weight: bold; fill: #57606a; }
"""


def draw(prepared: Prepared, layers: Sequence[Layer], facts: dict[str, Any]) -> str:
    """SVG of a prepared model with its layers; `facts` are those of `describe`, with its name."""
    page = _Page()
    title, summary = _head(facts)
    page.line(title, "h1", 18)
    page.line(summary, "p", 22)
    page.add(*_legend(MARGIN, page.top + 16), height=64)
    for part in fold(prepared, layers):
        if part.name:
            page.line(part.name, "h2", 20)
        drawn, placed = _part(part, page.top + 8)
        page.add(drawn, MARGIN + placed.width, height=placed.height + 20)
    for line in _left_out(facts):
        page.line(line, "p", 18)
    return page.document(title)


class _Page:
    """The drawing so far: its elements, how far down and to the right they go."""

    def __init__(self) -> None:
        self.body: list[str] = []
        self.top, self.right = MARGIN, 0.0

    def add(self, elements: list[str], right: float, height: float) -> None:
        """Put elements below what there is."""
        self.body += elements
        self.top, self.right = self.top + height, max(self.right, right)

    def line(self, text: str, look: str, height: float) -> None:
        """Put text below what there is, wrapped where it is long."""
        for row in textwrap.wrap(text, LINE) or [""]:
            width = len(row) * CHARACTER * FONT[look] / FONT["t"]
            self.add([_text(MARGIN, self.top + height, row, look)], MARGIN + width, height)

    def document(self, title: str) -> str:
        """The whole as an SVG file."""
        sides = (round(self.right + MARGIN), round(self.top + MARGIN))
        sized = 'width="{0}" height="{1}" viewBox="0 0 {0} {1}"'.format(*sides)
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {sized}>',
                f"<title>{_escape(title)}</title>",
                f"<style>{STYLE}</style>",
                '<rect width="100%" height="100%" fill="#fff"/>',
                *self.body,
                "</svg>\n",
            ]
        )


def _head(facts: dict[str, Any]) -> tuple[str, str]:
    """What is drawn, and what becomes of it, in a line each."""
    model, config, summary = facts["model"], facts["settings"]["config"], facts["summary"]
    total = summary["layers_quantized"] + summary["layers_float"]
    widths = f"W{config['weight_bits']}A{config['act_bits']}"
    shapes = input_shapes(model["input_shape"])
    shape = " and ".join(words.TIMES.join(map(str, each)) for each in shapes)
    sizes = " to ".join(size(facts["size"][key]) for key in ("float_bytes", "weights_bytes"))
    return (
        f"{model['name']}, {widths}, input {shape}",
        f"{summary['layers_quantized']} of {count(total, 'layer')} quantized, "
        f"{percent(100 * summary['macs_quantized'])} of {amount(model['macs'])} MACs; "
        f"{summary['layers_integer']} in integer kernels; weights {sizes}",
    )


def _legend(left: float, top: float) -> tuple[list[str], float]:
    """Samples of what boxes and marks mean, in two rows; where they end."""
    body, x = [], left
    for look, text in BOX_LOOKS:
        body.append(f'<g class="b {look}">{_rect(Rect(x, top, 20, 14), 3)}</g>')
        body.append(_text(x + 26, top + 11, text, "d"))
        x += 26 + len(text) * SMALL + 16
    right, x = x, left
    for look, label, text in MARK_LOOKS:
        body.append(_pill(x, top + 31, look, label, 26, text))
        body.append(_text(x + 32, top + 34, text, "d"))
        x += 32 + len(text) * SMALL + 16
    return body, max(right, x)


def _part(part: Part, top: float) -> tuple[list[str], Placed]:
    """A region's frames, edges and boxes, below `top`."""
    placed = place(
        [box.sources for box in part.boxes],
        [_size(box) for box in part.boxes],
        [box.path.removeprefix(f"{part.name}.") for box in part.boxes],
    )
    body = [f'<g transform="translate({MARGIN:.0f} {top:.0f})">']
    for path, rect in placed.frames.items():
        body.append(_rect(rect, 6, "frame"))
        body.append(_text(rect.x + 8, rect.y + 12, path, "ft"))
    for box, pieces in zip(part.boxes, placed.edges, strict=True):
        if pieces:
            body.append(_edge(box, pieces))
    for box, rect in zip(part.boxes, placed.boxes, strict=True):
        body.append(_box(box, rect))
    return [*body, "</g>"], placed


def _size(box: Box) -> tuple[float, float]:
    title, detail = words.title(box), words.detail(box)
    if box.row is not None:
        width = max(len(title) * CHARACTER, len(detail) * SMALL)
        return max(width, 90.0) + 2 * PADDING, LAYER_HEIGHT
    return len(title) * CHARACTER + len(detail) * SMALL + 3 * PADDING, PLAIN_HEIGHT


def _box(box: Box, rect: Rect) -> str:
    look = words.style(box)
    if box.row is not None and box.row["kernel_reason"] and look != "float":
        look += " slow"
    title, detail = words.title(box), words.detail(box)
    x = rect.x + PADDING
    parts = [f'<g class="b {look}"><title>{_escape(chr(10).join(words.tips(box)))}</title>']
    parts.append(_rect(rect, 4))
    parts.append(_text(x, rect.y + 17, title, "t"))
    if box.row is not None:
        parts.append(_text(x, rect.y + 32, detail, "d"))
    elif detail:
        parts.append(_text(x + len(title) * CHARACTER + PADDING, rect.y + 17, detail, "d"))
    parts.append("</g>")
    return "".join(parts) + _marks(box, rect)


def _marks(box: Box, rect: Rect) -> str:
    """The width of the value and its taps, on the lower border of the box."""
    if box.node.op == "output":
        return ""
    y, parts = rect.bottom + 2, []
    look, label = ("x", "fp") if box.bits is None else ("q", str(box.bits))
    parts.append(_pill(rect.x + rect.width / 2 - PILL / 2, y, look, label, PILL, words.title(box)))
    right = rect.right - 4
    for group, look, label, width in (
        (FEATURE_TAPS, "tap", "tap", TAP_PILL),
        (BN_TAPS, "bn", "BN", BN_PILL),
    ):
        names = box.taps.get(group)
        if names:
            right -= width
            parts.append(_pill(right, y, look, label, width, ", ".join(names)))
            right -= 3
    return "".join(parts)


def _edge(box: Box, pieces: list[Segment]) -> str:
    value = f"{words.title(box)}: {words.shape(box.node)}"
    look = "e" if box.bits is not None else "e f"
    steps = "".join(_curve(piece) for piece in pieces)
    return f'<path class="{look}" d="{steps}"><title>{_escape(value)}</title></path>'


def _curve(piece: Segment) -> str:
    start = f"M{_n(piece.x)} {_n(piece.top)}"
    start += f"V{_n(piece.start)}" if piece.start > piece.top else ""
    if abs(piece.x - piece.end_x) < 0.1:
        return f"{start}V{_n(piece.end)}"
    middle = _n((piece.start + piece.end) / 2)
    end = f"{_n(piece.end_x)} {_n(piece.end)}"
    return f"{start}C{_n(piece.x)} {middle} {_n(piece.end_x)} {middle} {end}"


def _pill(x: float, y: float, look: str, label: str, width: float, tip: str) -> str:
    rect = _rect(Rect(x, y - 7, width, 14), 7)
    text = _text(x + width / 2, y + 3.5, label, "pill")
    return f'<g class="{look}"><title>{_escape(tip)}</title>{rect}{text}</g>'


def _rect(rect: Rect, radius: float, cls: str = "") -> str:
    place = f'x="{_n(rect.x)}" y="{_n(rect.y)}"'
    sides = f'width="{_n(rect.width)}" height="{_n(rect.height)}"'
    look = f" class={quoteattr(cls)}" if cls else ""
    return f'<rect {place} {sides} rx="{radius:g}"{look}/>'


def _text(x: float, y: float, text: str, cls: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{cls}">{_escape(text)}</text>'


def _escape(text: str) -> str:
    """Text for XML, which can't hold control characters."""
    return escape("\n".join(map(shown, text.split("\n"))))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _left_out(facts: dict[str, Any]) -> list[str]:
    """What no graph shows, as lines below the drawing."""
    return [
        f"not looked into: {part['name'] or 'the model'} ({part['type']}): {part['reason']}"
        for part in facts["left_out"]
    ]
