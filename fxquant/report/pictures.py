"""Pictures of report.html as data URIs: generated images, loss curves and layer importance.

The same facts give the same bytes: no dates, no versions, a fixed salt for the identifiers.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from fxquant.wording import shown

MOST_IMAGES = 64
MOST_SIDE = 56  # pixels: keeps 64 colour images near 0.8 MB even where they are pure noise
MOST_POINTS = 200
MOST_NAMES = 36
TOTAL = "total"
LOG_SPREAD = 30.0  # largest over smallest, from which a linear axis would hide the small ones


@dataclass(frozen=True)
class Picture:
    """A picture as data URI, with a twin for dark screens; `width` is in CSS pixels.

    `title` is what stands above or below it.
    """

    light: str
    dark: str | None
    alt: str
    width: int
    title: str = ""


TEXT, LINE, BAR = "#414851", "#dfe3e8", "#7fb0df"  # bars are light enough for whiskers over them
SERIES = ("#0b62b8", "#b9500a", "#0d7a5a", "#7b4aa5", "#8a6d00")
DARK = {
    **{TEXT: "#bcc3cc", LINE: "#343b44", BAR: "#3a6ea3"},
    **dict(zip(SERIES, ("#6cb2ff", "#ffa861", "#5fd0a2", "#c9a0f0", "#e3c64f"), strict=True)),
}

_STYLE = {
    "svg.hashsalt": "fxquant",
    "svg.fonttype": "none",  # text stays text: small, and set in the reader's fonts
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "text.parse_math": False,  # a layer may be named with dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
}


def image_grid(images: Tensor) -> Picture | None:
    """The first 64 of `images`, (n, channels, height, width), each scaled from its own min to max.

    Images of 1 or 3 channels are shown as they are, of others the first channel as grey; larger
    ones are made smaller. None where there is nothing to show.
    """
    if images.dim() != 4 or 0 in images.shape:
        return None
    count, channels, height, width = images.shape
    shown = _fit(_display(images[:MOST_IMAGES].detach().cpu().float()))
    sheet = _sheet(shown, _columns(len(shown), *shown.shape[2:]))
    file = io.BytesIO()
    imsave(file, sheet, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    zoom = max(1, min(16, 800 // sheet.shape[1]))
    which = f"{len(shown)} of {count}" if count > len(shown) else str(count)
    alt = f"{which} generated images, {channels} by {height} by {width} values each"
    note = "" if channels in (1, 3) else f"of {channels} channels the first is shown, as grey"
    return Picture(_uri("image/png", file.getvalue()), None, alt, sheet.shape[1] * zoom, note)


def curve_panels(curves: dict[str, list[float]]) -> list[Picture]:
    """One panel of loss curves for each phase and whoever learns in it, in order of appearance.

    `curves` has one value a step by `phase/who.term`. Long curves are drawn as means of blocks of
    steps, with their range as a band; the axis is logarithmic for positive values that vary much.
    """
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name, values in curves.items():
        phase, _, rest = name.rpartition("/")
        who, _, term = rest.partition(".")
        numbers = np.array([math.nan if v is None else v for v in values], dtype=float)
        if np.isfinite(numbers).any():
            title = f"{phase}: {who}" if phase else who
            panels.setdefault(title, {})[term.replace("_", " ") or TOTAL] = numbers
    terms = sorted({term for lines in panels.values() for term in lines} - {TOTAL})
    return [_curve_panel(title, lines, terms) for title, lines in panels.items()]


def importance_chart(importance: dict[str, Any]) -> Picture | None:
    """Bars of the average Hessian trace by layer in graph order, whiskers of one standard error."""
    names = [shown(name) for name in importance.get("layers") or []]
    trace = np.array(importance.get("trace") or [], dtype=float)
    errors = np.array(importance.get("standard_error") or np.zeros(len(names)), dtype=float)
    if not len(names) == len(trace) == len(errors) or not np.isfinite(trace).any():
        return None
    most = int(np.nanargmax(trace))
    least = int(np.nanargmin(trace))
    alt = (
        f"Bar chart of the importance of {len(names)} layers: largest {names[most]} "
        f"({trace[most]:.3g}), smallest {names[least]} ({trace[least]:.3g})"
    )

    def draw(axes: Axes) -> None:
        _bars(axes, names, trace, errors)

    return chart(draw, 8.6, 3.6, alt, "Average Hessian trace by layer")


def _display(images: Tensor) -> Tensor:
    """(n, 1 or 3, height, width) in [0, 1], every image from its own minimum to its maximum."""
    images = torch.nan_to_num(images if images.shape[1] in (1, 3) else images[:, :1])
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-12)


def _fit(images: Tensor) -> Tensor:
    """Smaller images whose longer side is at most MOST_SIDE, by averaging."""
    height, width = images.shape[2:]
    factor = MOST_SIDE / max(height, width)
    if factor >= 1:
        return images
    return F.interpolate(
        images, (max(1, round(height * factor)), max(1, round(width * factor))), mode="area"
    )


def _columns(count: int, height: int, width: int) -> int:
    """Columns that make the sheet about as wide as high."""
    return max(1, min(count, round(math.sqrt(count * height / width))))


def _sheet(images: Tensor, columns: int) -> np.ndarray:
    """All images on one transparent sheet, uint8 (height, width, 4), row by row."""
    count, _, height, width = images.shape
    gap = max(1, max(height, width) // 16)
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 4)
    sheet = np.zeros(shape, dtype=np.uint8)
    pixels = (images.expand(-1, 3, -1, -1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width, :3] = image
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet


def _curve_panel(title: str, lines: dict[str, np.ndarray], terms: list[str]) -> Picture:
    """A panel in which each of `terms` has the color that it has in all panels."""
    finite = {term: values[np.isfinite(values)] for term, values in lines.items()}
    low, high = min(v.min() for v in finite.values()), max(v.max() for v in finite.values())
    logarithmic = low > 0 and high / low > 3  # else a log axis may have no round number to show
    ends = "; ".join(f"{term} from {v[0]:.3g} to {v[-1]:.3g}" for term, v in finite.items())

    def draw(axes: Axes) -> None:
        colors = {term: SERIES[i % len(SERIES)] for i, term in enumerate(terms)}
        handles = [_line(axes, v, colors.get(term, TEXT)) for term, v in lines.items()]
        if logarithmic:
            log_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel("loss (log)" if logarithmic else "loss")
        labels = [shown(term) for term in lines]
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1),  # above the axes, where no curve is
            ncols=3,
            frameon=False,
            labelcolor=TEXT,
        )

    return chart(draw, 5.0, 3.0, f"Loss curves of {title}: {ends}", title)


def _line(axes: Axes, values: np.ndarray, color: str):
    """Draw a curve; a long one as means of equal blocks with the range of each as a band."""
    steps = np.arange(1, len(values) + 1)
    if len(values) <= MOST_POINTS:
        marker = "o" if len(values) == 1 else None
        return axes.plot(steps, values, color=color, linewidth=1.2, marker=marker)[0]
    blocks = np.array_split(np.flatnonzero(np.isfinite(values)), MOST_POINTS)
    blocks = [block for block in blocks if len(block)]
    middle = [steps[b].mean() for b in blocks]
    low, high = [values[b].min() for b in blocks], [values[b].max() for b in blocks]
    axes.fill_between(middle, low, high, color=color, alpha=0.22, linewidth=0)
    return axes.plot(middle, [values[b].mean() for b in blocks], color=color, linewidth=1.2)[0]


def _bars(axes: Axes, names: list[str], trace: np.ndarray, errors: np.ndarray) -> None:
    places = np.arange(len(names))
    whiskers = {
        "ecolor": TEXT,
        "elinewidth": 0.8,
        "capsize": 1.5 if len(names) <= MOST_NAMES else 0,
    }
    small, large = np.nanmin(trace), np.nanmax(trace)
    logarithmic = small > 0 and large / small > LOG_SPREAD
    if logarithmic:
        errors = np.stack([np.minimum(errors, trace * 0.9), errors])  # a log axis ends above 0
    axes.bar(places, trace, color=BAR, yerr=errors, error_kw=whiskers)
    if logarithmic:
        log_axis(axes)
        axes.set_ylim(bottom=small / 2)
    axes.set_xlim(-0.8, len(names) - 0.2)
    axes.set_ylabel("average Hessian trace")
    ticks = places[:: -(-len(names) // MOST_NAMES)]
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.set_xticklabels([_shorten(names[i]) for i in ticks], rotation=90)


def _shorten(name: str, most: int = 24) -> str:
    """A long qualified name by its end, which tells layers apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers: at 1, 2, 5, or at powers of ten on a wide range."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs: Sequence[float] = (1, 2, 5) if high / max(low, 1e-300) < 200 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def chart(
    draw: Callable[[Axes], None], width: float, height: float, alt: str, title: str
) -> Picture:
    """Draw a chart of `width` by `height` inches, and change its colors for dark screens."""
    light = dark = _compact(_svg(draw, (width, height)))
    for by_day, by_night in DARK.items():
        dark = dark.replace(by_day, by_night)
    uris = (_uri("image/svg+xml", svg.encode()) for svg in (light, dark))
    return Picture(*uris, alt, round(width * 96), title)


def _svg(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever style the caller uses, the report looks the same
        matplotlib.rcParams.update(_STYLE)
        warnings.simplefilter("ignore", UserWarning)  # glyphs that DejaVu lacks, a reader may have
        figure = Figure(size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.tick_params(colors=TEXT, length=2.5, width=0.6)
        axes.spines[["left", "bottom"]].set_color(LINE)
        draw(axes)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(TEXT)
        file = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return file.getvalue().decode()


def _compact(svg: str) -> str:
    """Coordinates to a hundredth of a point, and the reader's own font instead of matplotlib's."""

    def shorten(tag: re.Match) -> str:
        return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])

    return re.sub("<[^>]+>", shorten, svg.replace("'DejaVu Sans'", "system-ui, sans-serif"))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
