"""What `fxquant quantize` does once its options are read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from fxquant.cli.console import print_json, print_summary, status
from fxquant.cli.given import given_mixed, given_settings, given_shape, given_widths
from fxquant.cli.interrupts import interrupts
from fxquant.cli.log import log_to
from fxquant.cli.progress import ProgressWatcher
from fxquant.cli.together import follow, release_others, start_others
from fxquant.datafree import processes
from fxquant.datafree.ablation import ablate
from fxquant.datafree.checks import check_recipe
from fxquant.datafree.recipes import find_recipe, fit_recipe, nothing_to_match
from fxquant.datafree.watcher import Watcher, Watchers
from fxquant.errors import OutputError
from fxquant.exporters.artifacts import export
from fxquant.exporters.detections import retinanet_of
from fxquant.exporters.files import Form
from fxquant.exporters.parity import Parity, require_parity
from fxquant.graph.prepare import Prepared, prepare
from fxquant.models.load import LoadedModel, load_model
from fxquant.pipeline import resolve_device, run, width_chooser
from fxquant.report.evaluate import EvaluationData
from fxquant.run_folder import EVENTS, LOG, REPORT, RunFolder, model_hash
from fxquant.settings import Settings
from fxquant.tensorboard import TensorBoardWatcher


def run_job(model: str, *, as_json: bool, output: Path | None, **options: Any) -> int:
    """Load, train, export and report; the exit code."""
    done = _job(model, output, options)
    if done is None:
        return 0
    report, path = done
    parity = _parity_of(report, path)
    print_json(report) if as_json else print_summary(report, path)
    require_parity(parity)
    return 0


def _parity_of(report: dict[str, Any], folder: Path) -> Parity:
    """What a report says of parity; raises OutputError where it says something else."""
    try:
        return Parity.from_dict(report["parity"])
    except TypeError as error:
        raise OutputError(
            f"{folder / REPORT} can't be read: its parity has other keys than a run's",
            "remove it, and the same command does again what it stands for",
        ) from error


def _job(
    model: str, output: Path | None, options: dict[str, Any]
) -> tuple[dict[str, Any], Path] | None:
    """The report and the folder that it is in; None in a process that only trains along."""
    loaded = load_model(model, arch=options["arch"], trust_classes=options["trust_classes"])
    if options["layout"] == "tensorrt":
        options["symmetric"] = True  # it takes nothing else
    settings = make_settings(loaded, options)
    evaluation = _evaluation(options, settings)
    facts = {"name": loaded.name, "source": loaded.source, "sha256": model_hash(loaded.module)}
    if options["arch"]:
        facts["arch"] = options["arch"]
    how = {
        "form": Form(
            options["layout"] or "runtime",
            options["opset"],
            options["nms"],
            options["processor"] or "any",
        ),
        "program": "pt2" in options["formats"],
        "events": options["tensorboard"],
    }
    prepared = prepare(loaded.module, settings.applied_config, settings.input_shape)
    if options["nms"]:
        retinanet_of(prepared.student)
    settings = replace(settings, recipe=fit_recipe(settings.recipe, prepared.teacher))
    note = nothing_to_match(settings.recipe, prepared.teacher)
    if note:
        status(note)
    check_recipe(settings.recipe, prepared.teacher, settings.input_shape)
    width_chooser(prepared, settings)  # refuses what can't be met before a folder is made
    with processes.joined(settings.device):
        if processes.rank():
            return follow(prepared, settings)
        with RunFolder(output or _default_output(loaded, settings), settings, facts) as folder:
            if not folder.finished:
                return _run(prepared, settings, folder, facts, evaluation, how), folder.path
            release_others()
            status(f"this run has already finished: {folder.path}")
            if any(options[name] for name in ("layout", "opset", "processor", "formats")):
                status(f"for another file of it: fxquant export {folder.path}")
            return folder.read_report(), folder.path


def _run(
    prepared: Prepared,
    settings: Settings,
    folder: RunFolder,
    facts: dict[str, Any],
    evaluation: EvaluationData | None,
    how: dict[str, Any],
) -> dict[str, Any]:
    with ExitStack() as stack:
        stack.enter_context(log_to(folder.path / LOG))
        progress = stack.enter_context(ProgressWatcher(folder))
        watcher: Watcher = progress
        if how.pop("events"):
            watcher = Watchers(
                stack.enter_context(TensorBoardWatcher(folder.path / EVENTS)), progress
            )
        state = folder.load_checkpoint()
        if state is not None:
            status(f"continuing an interrupted run in {folder.path}")
        start_others(state)
        with interrupts.deferred():
            result = run(prepared, settings, watcher=watcher, state=state)
        processes.leave()
        progress.say("export and parity")
        report = export(result, folder.path, model=facts, evaluation=evaluation, **how)
        folder.drop_checkpoint()
    return report


def make_settings(loaded: LoadedModel, options: dict[str, Any]) -> Settings:
    """Settings of a recipe.toml where one is given, else the defaults, with options over them."""
    base = given_settings(options)
    shape, config = given_shape(loaded, base, options), given_widths(base, options)
    recipe = base.recipe if base else None
    if recipe is None or options["recipe"] or options["preset"]:
        recipe = find_recipe(options["recipe"] or "ddaq", options["preset"] or "default")
    if options["without"] or options["swap"]:
        recipe = ablate(recipe, without=options["without"], swap=options["swap"])
    if options["no_finetune"]:
        recipe = recipe.without_fine_tuning()
    device = resolve_device(options["device"] or (base.device if base else "auto"))
    seed = options["seed"] if options["seed"] is not None else (base.seed if base else 0)
    return Settings(shape, config, recipe, seed, device, given_mixed(base, options))


def _evaluation(options: dict[str, Any], settings: Settings) -> EvaluationData | None:
    if options["eval_data"] is None:
        return None
    data = EvaluationData(options["eval_data"], options["eval_mean"], options["eval_std"])
    data.check(settings.input_shape)
    return data


def _default_output(loaded: LoadedModel, settings: Settings) -> Path:
    config, mixed = settings.config, "-mixed" if settings.mixed else ""
    return Path(f"{loaded.name}-w{config.weight_bits}a{config.act_bits}{mixed}")
