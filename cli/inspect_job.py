"""What `fxquant inspect` does once its options are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxquant import __version__
from fxquant.cli.console import print_json, status
from fxquant.cli.given import given_mixed, given_settings, given_shape, given_widths
from fxquant.cli.inspection import print_inspection
from fxquant.drawing.svg import draw
from fxquant.errors import SettingError
from fxquant.files import write_text
from fxquant.graph.prepare import prepare
from fxquant.models.load import load_model
from fxquant.report.layers import describe, list_layers
from fxquant.settings import Settings


def run_job(model: str, *, as_json: bool, graph: Path | None, **options: Any) -> int:
    """Load, prepare, describe, draw; the exit code."""
    if graph is not None and graph.suffix.lower() != ".svg":
        raise SettingError(f"--graph {graph}: the drawing is SVG", "name a file that ends in .svg")
    loaded = load_model(
        model, arch=options["arch"], trust_classes=options["trust_classes"], pretrained=False
    )
    base = given_settings(options)
    shape, config = given_shape(loaded, base, options), given_widths(base, options)
    settings = Settings(shape, config, mixed=given_mixed(base, options))
    prepared = prepare(loaded.module, settings.applied_config, settings.input_shape)
    layers = list_layers(prepared)
    facts = {
        "fxquant": __version__,
        "settings": {"config": settings.applied_config.to_dict()},
        **describe(prepared, layers),
    }
    facts["model"] |= {"name": loaded.name, "source": loaded.source}
    if graph is not None:
        write_text(graph, draw(prepared, layers, facts))
        status(f"drew the quantized graph to {graph}")
    print_json(facts) if as_json else print_inspection(facts)
    return 0
