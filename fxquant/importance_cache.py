"""Measured layer importance, kept on disk by the weights that it was measured on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from fxquant import __version__
from fxquant.datafree.importance import Importance
from fxquant.errors import OutputError
from fxquant.files import read_regular, write_text
from fxquant.graph.regions import regions
from fxquant.json_files import parse_json
from fxquant.run_folder import model_hash
from fxquant.schema import many, number, table, text
from fxquant.settings import Settings

logger = logging.getLogger(__name__)

_PARTS = ("layers", "trace", "standard_error")
_check = table({"layers": many(text), "trace": many(number), "standard_error": many(number)})
# That of a network of a thousand layers has sixty thousand.
MOST_BYTES = 1 << 24


def cache_folder() -> Path:
    """`fxquant/importance` in the user's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fxquant" / "importance"


def cache_key(
    model: nn.Module, teacher: nn.Module, settings: Settings, method: str, **measured: Any
) -> str:
    """A name for one measurement: weights, graph and all that decides the numbers, hashed."""
    facts = {
        "fxquant": __version__,
        "weights": model_hash(model),
        "graph": [region.code for region in regions(teacher)],
        "method": method,
        **measured,
        **settings.to_dict(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class ImportanceCache:
    """Measurements in a folder, a file each; a damaged file counts as none."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, key: str) -> Importance | None:
        """The measurement of this key, or None where there is none."""
        try:
            values = parse_json(read_regular(self.folder / f"{key}.json", MOST_BYTES))
            _check(values, "")
        except (OSError, ValueError):
            return None
        parts = [tuple(values[name]) for name in _PARTS]
        return Importance(*parts) if len(set(map(len, parts))) == 1 else None

    def write(self, key: str, importance: Importance) -> None:
        """Keep a measurement; a folder that can't be written is no failure."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / f"{key}.json", json.dumps(asdict(importance)))
        except (OSError, OutputError) as error:
            logger.warning("importance was not cached: %s", error)
