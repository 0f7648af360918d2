"""How passes are run: each edits a graph in place and returns how often it rewrote something."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn
from torch.fx import GraphModule

from fxquant.errors import FxQuantError, TraceError
from fxquant.graph.regions import regions

logger = logging.getLogger(__name__)

Pass = Callable[[GraphModule], int]


def run_passes(model: nn.Module, passes: list[tuple[str, Pass]]) -> dict[str, int]:
    """Run named passes in order over every region of `model`, lint and recompile; rewrites by name.

    Raises TraceError that names the pass that failed and those that had run before it.
    """
    counts: dict[str, int] = {}
    for name, apply in passes:
        try:
            counts[name] = sum(_apply(apply, region) for region in regions(model))
        except FxQuantError:
            raise
        except Exception as error:
            before = ", ".join(list(counts)) or "none"
            raise TraceError(
                f"graph pass '{name}' failed (passes before it: {before}): {error}"
            ) from error
        logger.debug("pass %s: %d rewrites", name, counts[name])
    return counts


def _apply(apply: Pass, region: GraphModule) -> int:
    count = apply(region)
    region.graph.lint()
    region.recompile()
    return count
