"""A plot of layer importance like Fig. 2 of Li et al. (2022): average Hessian trace by layer."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from fxquant.datafree.importance import Importance
from fxquant.errors import SettingError
from fxquant.files import write_atomic
from fxquant.wording import shown

FORMATS = (".svg", ".png")
MOST_NAMES = 60
_COLORS = ("#0b62b8", "#b9500a")
_NAMES = {"gauss-newton": "Gauss-Newton", "hessian": "Hessian of the cross-entropy"}


def check_format(path: Path) -> None:
    """Raise SettingError for a file that is neither .svg nor .png."""
    if path.suffix.lower() not in FORMATS:
        raise SettingError(f"--plot {path}: the plot is SVG or PNG", "name a .svg or .png file")


def plot_importance(path: Path, importance: dict[str, Importance], title: str) -> None:
    """Draw a line with whiskers of one standard error for each method; .svg or .png by the name.

    The same numbers give the same bytes.
    """
    check_format(path)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"svg.hashsalt": "fxquant", "text.parse_math": False, "font.size": 9}
        )
        layers = next(iter(importance.values())).layers
        figure = Figure((min(5 + 0.16 * len(layers), 16), 4.8), layout="constrained")
        axes = figure.add_subplot(title=shown(title, 200))
        for (method, values), color in zip(importance.items(), _COLORS, strict=False):
            _draw(axes, values, _NAMES[method], color)
        _label(axes, layers)
        content, kind = io.BytesIO(), path.suffix.lower()[1:]
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    write_atomic(path, lambda temporary: temporary.write_bytes(content.getvalue()))


def _draw(axes: Axes, values: Importance, label: str, color: str) -> None:
    places = range(len(values.layers))
    # On a logarithmic axis a whisker that reaches 0 has no end.
    logarithmic = min(values.trace) > 0
    below = [min(e, 0.9 * h) if logarithmic else e for h, e in _pairs(values)]
    axes.errorbar(
        places,
        values.trace,
        yerr=[below, values.standard_error],
        label=label,
        color=color,
        marker="o",
        markersize=3.5,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )
    if logarithmic and axes.get_yscale() == "linear":
        axes.set_yscale("log")
    elif not logarithmic:  # noise about 0, which symlog shows beside the rest
        axes.set_yscale("symlog", linthresh=max(max(values.standard_error), 1e-12))


def _pairs(values: Importance) -> list[tuple[float, float]]:
    return list(zip(values.trace, values.standard_error, strict=True))


def _shorten(name: str, most: int = 30) -> str:
    """A long qualified name by its end, which tells layers apart."""
    return name or "the model" if len(name) <= most else "…" + name[1 - most :]


def _label(axes: Axes, layers: tuple[str, ...]) -> None:
    ticks = range(0, len(layers), -(-len(layers) // MOST_NAMES))
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.set_xticklabels([_shorten(shown(layers[i])) for i in ticks], rotation=90, fontsize=7)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("average Hessian trace")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.legend(frameon=False)
