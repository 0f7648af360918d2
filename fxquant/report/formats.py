"""Values of a report as a person reads them, in English; what is missing is said to be."""

from __future__ import annotations

import math
from typing import Any

from jinja2 import Undefined
from markupsafe import Markup, escape

from fxquant.wording import shown

TOP_SQNR_DB = 200.0  # stands for no noise at all
NOT_MEASURED = "not measured"
DASH = "\N{EN DASH}"
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def is_missing(value: Any) -> bool:
    """Whether a report lacks the value, or holds one that is not finite."""
    return (
        value is None
        or isinstance(value, Undefined)
        or (isinstance(value, float) and not math.isfinite(value))
    )


def is_number(value: Any) -> bool:
    """Whether the value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not is_missing(value)


def number(value: Any, digits: int = 2, signed: bool = False) -> str:
    """A number with thousands separated and a true minus sign; other values as text."""
    if is_missing(value):
        return NOT_MEASURED
    if not is_number(value):
        return str(value)
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def whole(value: Any) -> str:
    """A number without decimals."""
    return number(value, 0)


def amount(value: Any) -> str:
    """Three digits and a decimal prefix: 41.6 G."""
    if not is_number(value):
        return number(value)
    scale, prefix = next((unit for unit in UNITS if abs(value) >= unit[0]), (1, ""))
    scaled = value / scale
    digits = 0 if scaled >= 100 or scaled == int(scaled) else 1 if scaled >= 10 else 2
    return f"{number(scaled, digits)} {prefix}".rstrip()


def size(value: Any) -> str:
    """Bytes with a decimal prefix: 1.07 MB."""
    if not is_number(value):
        return number(value)
    text = amount(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def db(value: Any) -> str:
    """A ratio in dB, one digit; the value that stands for no noise as such."""
    return f"≥ {TOP_SQNR_DB:.0f}" if is_number(value) and value >= TOP_SQNR_DB else number(value, 1)


def percent(value: Any, digits: int = 1) -> str:
    """A percentage that is 100 only where nothing is missing."""
    if not is_number(value):
        return number(value)
    most = 100 - 10.0**-digits
    return f"> {number(most, digits)} %" if most < value < 100 else f"{number(value, digits)} %"


def words(value: Any) -> str:
    """A plain value of a settings file as text."""
    if is_missing(value):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(words(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(value: Any, scale: float, digits: int) -> str:
    """A number in units of `scale` for a table; a dash where it is missing."""
    if not is_number(value):
        return DASH
    tiny = 0 < value / scale < 0.5 * 10.0**-digits
    return f"<{10.0**-digits:g}" if tiny else number(value / scale, digits)


def times(factors: Any) -> str:
    """A shape: 3 × 32 × 32."""
    listed = [] if is_missing(factors) else [str(factor) for factor in factors]
    return " \N{MULTIPLICATION SIGN} ".join(listed) or DASH


def count(n: int, noun: str) -> str:
    """1 layer, 2 layers."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def breakable(name: Any) -> Markup:
    """A name that may go on in a new line after each dot and underscore."""
    return escape(shown(name)).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>"))
