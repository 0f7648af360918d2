"""JSON of files from anywhere: read within bounds, and one way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NoReturn

# Python takes up to thirty bytes for one of a list without values.
MOST_CONTAINERS = 1_000_000


def parse_json(content: bytes | str) -> Any:
    """JSON of a file; raises ValueError also for what is nested too deep or says a key twice."""
    marks = (b"[", b"{") if isinstance(content, bytes) else ("[", "{")
    if sum(map(content.count, marks)) > MOST_CONTAINERS:
        raise ValueError(f"it has more than {MOST_CONTAINERS:,} lists and tables")
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice in one table")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
