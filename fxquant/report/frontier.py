"""The picture of mixed precision: the least criterion for each budget, and what was chosen."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from fxquant.report.formats import amount, size
from fxquant.report.pictures import LINE, SERIES, TEXT, Picture, chart, log_axis


def frontier_chart(mixed: dict[str, Any]) -> Picture | None:
    """Size or bit operations against the criterion, of a report's `mixed`; None without one."""
    measure = mixed.get("measure")
    points, flat = _drawn(mixed.get("frontier"), measure), _drawn(mixed.get("flat"), measure)
    chosen = _drawn([mixed["chosen"]] if mixed.get("chosen") else [], measure)
    if not points or not chosen:
        return None
    text = size if measure == "size" else amount
    alt = (
        f"Frontier of {len(points)} choices of widths from {text(points[0][0])} to "
        f"{text(points[-1][0])}; chosen: {text(chosen[0][0])} at {chosen[0][1]:.3g}"
    )

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*points, strict=True), color=SERIES[0], linewidth=1.4, label="frontier")
        if flat:
            x, y, bits = zip(*flat, strict=True)
            marks = {"marker": "s", "s": 20, "color": SERIES[1], "zorder": 3}
            axes.scatter(x, y, label="the same width everywhere", **marks)
            for place in zip(x, y, bits, strict=True):
                axes.annotate(
                    f"{place[2]}", place[:2], (4, 4), textcoords="offset points", color=TEXT
                )
        axes.scatter(*chosen[0][:2], marker="o", s=42, color=SERIES[2], zorder=4, label="chosen")
        axes.axvline(mixed["budget"], color=LINE, linewidth=1, zorder=0)
        log_axis(axes)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
        axes.set_xlabel("size of all parameters" if measure == "size" else "bit operations")
        axes.set_ylabel("criterion (log)")
        axes.legend(frameon=False, labelcolor=TEXT)

    return chart(draw, 8.6, 3.6, alt, "Pareto frontier")


def _drawn(points: list[dict[str, Any]] | None, measure: str | None) -> list[tuple]:
    """(cost, criterion) of what a logarithmic axis can show; of flat points their bits as well."""
    kept = [p for p in points or [] if p["criterion"] > 0 and math.isfinite(p["criterion"])]
    bits = [(p["bits"],) if p.get("bits") else () for p in kept]
    return [(p[measure], p["criterion"], *b) for p, b in zip(kept, bits, strict=True)]
