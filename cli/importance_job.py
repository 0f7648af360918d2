"""What `fxquant importance` does once its options are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxquant.cli.console import print_json, status
from fxquant.cli.given import given_shape
from fxquant.cli.progress import ProgressWatcher
from fxquant.cli.tables import Column, Page
from fxquant.datafree.importance import Importance
from fxquant.datafree.recipe import IMPORTANCE_METHODS
from fxquant.datafree.recipes import find_recipe
from fxquant.errors import SettingError
from fxquant.graph.prepare import Prepared, prepare
from fxquant.importance import gives_logits, importance_on, matched_images
from fxquant.importance_cache import ImportanceCache, cache_folder, cache_key
from fxquant.models.load import LoadedModel, load_model
from fxquant.pipeline import resolve_device
from fxquant.report.importance_plot import check_format, plot_importance
from fxquant.settings import Settings
from fxquant.spec import QConfig


def run_job(model: str, *, plot: Path | None, as_json: bool, **options: Any) -> int:
    """Load, measure what the cache doesn't hold, print, draw; the exit code."""
    if plot is not None:
        check_format(plot)
    loaded = load_model(model, arch=options["arch"], trust_classes=options["trust_classes"])
    settings = Settings(
        given_shape(loaded, None, options),
        recipe=find_recipe("ddaq", options["preset"]),
        seed=options["seed"],
        device=resolve_device(options["device"]),
    )
    prepared = prepare(loaded.module, QConfig(), settings.input_shape)
    methods = options["methods"] or _methods_for(prepared)
    found = _measure(loaded, prepared, settings, methods, options)
    if plot is not None:
        plot_importance(plot, found, f"{loaded.name}: importance of its layers")
        status(f"drew the plot to {plot}")
    facts = _facts(loaded, prepared, settings, found, options)
    print_json(facts) if as_json else _print(facts)
    return 0


def _methods_for(prepared: Prepared) -> tuple[str, ...]:
    """Both, or for outputs that are no logits the one that takes any."""
    if gives_logits(prepared.teacher, prepared.input_shape):
        return IMPORTANCE_METHODS
    status("the output is not logits, so there is no cross-entropy: gauss-newton alone")
    return IMPORTANCE_METHODS[:1]


def _measure(
    loaded: LoadedModel,
    prepared: Prepared,
    settings: Settings,
    methods: tuple[str, ...],
    options: dict[str, Any],
) -> dict[str, Importance]:
    if "hessian" in methods and not gives_logits(prepared.teacher, prepared.input_shape):
        raise SettingError(
            "method 'hessian' is that of the cross-entropy, and the model's output is not logits "
            "(n, classes)",
            "--method gauss-newton takes any output",
        )
    probes, images = options["probes"], options["images"]
    cache = ImportanceCache(cache_folder())
    keys = {
        method: cache_key(
            loaded.module, prepared.teacher, settings, method, probes=probes, images=images
        )
        for method in methods
    }
    cached = {} if options["no_cache"] else {m: cache.read(key) for m, key in keys.items()}
    missing = [method for method in methods if cached.get(method) is None]
    if missing:
        with ProgressWatcher() as watcher:
            generated = matched_images(prepared, settings, images, watcher)
            watcher.say(f"importance, {' and '.join(missing)}")
            measured = importance_on(prepared.teacher, generated, settings, missing, probes)
        for method, importance in measured.items():
            if not options["no_cache"]:
                cache.write(keys[method], importance)
        cached |= measured
    return {method: cached[method] for method in methods}


def _facts(
    loaded: LoadedModel,
    prepared: Prepared,
    settings: Settings,
    found: dict[str, Importance],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Plain values: for each layer its size, and by method its trace and standard error."""
    layers = next(iter(found.values())).layers
    return {
        "model": {"name": loaded.name, "source": loaded.source},
        "images": options["images"],
        "probes": options["probes"],
        "seed": settings.seed,
        "layers": [
            {
                "name": name,
                "parameters": prepared.teacher.get_submodule(name).weight.numel(),
                **{
                    method: {"trace": h.trace[i], "standard_error": h.standard_error[i]}
                    for method, h in found.items()
                },
            }
            for i, name in enumerate(layers)
        ],
    }


def _print(facts: dict[str, Any]) -> None:
    methods = [key for key in facts["layers"][0] if key in IMPORTANCE_METHODS]
    columns = [Column("layer", fold=True), Column("weights", right=True)]
    columns += [Column(f"{method} (± s.e.)", right=True) for method in methods]
    page = Page()
    page.title(f"{facts['model']['name']}: average Hessian trace of each layer")
    page.table(
        columns,
        [
            [
                layer["name"] or "the model",
                f"{layer['parameters']:,}",
                *(_cell(layer[method]) for method in methods),
            ]
            for layer in facts["layers"]
        ],
    )
    page.text(
        f"on {facts['images']} generated images, {facts['probes']} random probes, "
        f"seed {facts['seed']}"
    )


def _cell(value: dict[str, float]) -> str:
    return f"{value['trace']:.3g} ± {value['standard_error']:.1g}"
