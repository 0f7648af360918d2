"""The whole job, start to end: from a trained model to a trained student, without data."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxquant.datafree.checks import require_sound
from fxquant.datafree.engine import Engine
from fxquant.datafree.importance import Importance
from fxquant.datafree.recipe import Recipe
from fxquant.datafree.recipes import find_recipe, fit_recipe, nothing_to_match
from fxquant.datafree.resume import resume
from fxquant.datafree.watcher import Watcher
from fxquant.errors import OutputError, SettingError
from fxquant.graph.detectors import DetectorNetwork
from fxquant.graph.prepare import Prepared, prepare
from fxquant.graph.snap_biases import snap_biases
from fxquant.mixed.budget import Mixed
from fxquant.mixed.choose import WidthChooser, WidthPlan
from fxquant.mixed.shares import measure_costs, require_possible
from fxquant.ranges import ESTIMATORS
from fxquant.settings import Settings
from fxquant.spec import QConfig
from fxquant.state_files import CHECKPOINT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished run: the trained student beside its teacher, on the CPU, and what the run saw.

    `images` are generated ones that the student was not trained on, (n, channels, height,
    width); `curves` are losses by `phase/who.term`, one value a step; `seconds` are by phase;
    `kept` is the last stage that was kept: `fine-tuned`, `reconstructed` or `calibrated`;
    `widths` are those of mixed precision, which `settings` then hold as well.
    """

    teacher: nn.Module
    student: nn.Module
    prepared: Prepared
    settings: Settings
    images: Tensor
    importance: Importance | None
    curves: dict[str, list[float]]
    seconds: dict[str, float]
    kept: str
    widths: WidthPlan | None = None

    @property
    def model(self) -> nn.Module:
        """The student as what was quantized: a detector where that is one, else itself."""
        return (
            self.student.detector() if isinstance(self.student, DetectorNetwork) else self.student
        )


def quantize(
    model: nn.Module,
    bits: int | None = None,
    *,
    input_shape: tuple[int, ...],
    config: QConfig | None = None,
    recipe: str | Recipe = "ddaq",
    preset: str = "default",
    finetune: bool = True,
    mixed: bool | Mixed = False,
    seed: int = 0,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> Result:
    """Quantize a trained model without data; the model itself stays as it was.

    `bits` is the width of weights and activations, 2 to 8; a `QConfig` sets all widths apart.
    `input_shape` is (channels, height, width). `recipe` is a name at a `preset`, or a `Recipe`.
    `mixed` gives each layer's weights a width of their own, within the size at `bits` or the budget
    of a `Mixed`. `device` is auto, cpu, cuda or cuda:n. Raises TraceError where the model can't be
    traced, SettingError for settings that can't be used, DivergenceError where training fails.
    """
    if (bits is None) == (config is None):
        raise SettingError("give either bits or a QConfig", "fxquant.quantize(model, bits=4, ...)")
    config = config or QConfig(weight_bits=bits, act_bits=bits)
    recipe = find_recipe(recipe, preset) if isinstance(recipe, str) else recipe
    recipe = recipe if finetune else recipe.without_fine_tuning()
    mixed = Mixed() if mixed is True else mixed or None
    settings = Settings(tuple(input_shape), config, recipe, seed, resolve_device(device), mixed)
    prepared = prepare(model, settings.applied_config, settings.input_shape)
    return run(prepared, settings, watcher=watcher)


def train(
    prepared: Prepared,
    settings: Settings,
    watcher: Watcher | None = None,
    state: dict | None = None,
) -> Engine:
    """Train `prepared.student` in place by the recipe; continue from an engine's `state`."""
    engine = Engine(
        prepared.teacher,
        prepared.student,
        fit_recipe(settings.recipe, prepared.teacher),
        settings.input_shape,
        seed=settings.seed,
        device=settings.device,
        watcher=watcher,
        choose=width_chooser(prepared, settings),
    )
    if state is not None:
        _continue_from(engine, state, settings)
    engine.run()
    return engine


def width_chooser(prepared: Prepared, settings: Settings) -> WidthChooser | None:
    """What chooses the widths of mixed precision, where it is asked for.

    Raises SettingError where no widths are within the budget.
    """
    if settings.mixed is None:
        return None
    costs = measure_costs(prepared, settings.config)
    require_possible(costs, settings.mixed)
    return WidthChooser(costs, settings.mixed, ESTIMATORS[settings.recipe.schedule.ranges])


def _continue_from(engine: Engine, state: dict, settings: Settings) -> None:
    try:
        resume(engine, state, settings.input_shape)
    except Exception as error:
        raise OutputError(
            "the state to continue from is not that of this run: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
            f"remove {CHECKPOINT} to begin anew",
        ) from error


def run(
    prepared: Prepared,
    settings: Settings,
    watcher: Watcher | None = None,
    state: dict | None = None,
) -> Result:
    """Train a prepared model and bring the outcome to the CPU, ready for export."""
    start = time.perf_counter()
    settings = replace(settings, recipe=fit_recipe(settings.recipe, prepared.teacher))
    note = nothing_to_match(settings.recipe, prepared.teacher)
    if note and note not in prepared.notes:
        logger.info(note)
        prepared = replace(prepared, notes=(*prepared.notes, note))
    engine = train(prepared, settings, watcher, state)
    if engine.pixels != settings.recipe.sampler.pixels and engine.pixels != "standard":
        note = f"images were generated with pixels {engine.pixels}: those fit its first batch norm"
        prepared = replace(prepared, notes=(*prepared.notes, note))
    student = engine.student.cpu().requires_grad_(False)
    require_sound(student)
    snap_biases(student)
    logger.info("trained in %.1f s", time.perf_counter() - start)
    if engine.widths is not None:
        chosen = replace(settings.mixed, layers=engine.widths.rules())
        settings = replace(settings, mixed=chosen)
        prepared = replace(prepared, config=settings.applied_config)
    return Result(
        engine.teacher.cpu(),
        student,
        prepared,
        settings,
        engine.held_back.cpu().contiguous(),
        engine.importance,
        engine.history.curves,
        engine.seconds,
        engine.choice.kept,
        engine.widths,
    )


def resolve_device(name: str) -> str:
    """`auto` to cuda where there is one, else cpu; raises SettingError for what isn't there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return name
    if kind != "cuda" or (index and not index.isdecimal()):
        raise SettingError(f"unknown device '{name}'", "auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise SettingError(f"device '{name}' was asked for and there is no CUDA here", "use cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise SettingError(f"device '{name}' does not exist: {torch.cuda.device_count()} found")
    return name
