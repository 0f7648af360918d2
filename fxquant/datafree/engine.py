"""The data-free engine: runs any recipe, phase by phase, on one teacher and its student."""

from __future__ import annotations

import copy
import logging
import time
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calibration import adjust_layers, calibrate
from fxquant.datafree import processes
from fxquant.datafree.checks import check_recipe, find_unsound
from fxquant.datafree.choice import Choice
from fxquant.datafree.divergence import require_convergence
from fxquant.datafree.history import History
from fxquant.datafree.importance import Importance, measure_importance
from fxquant.datafree.objective import Objective
from fxquant.datafree.optimizer import set_learning_rates, student_optimizer
from fxquant.datafree.phases import Phase
from fxquant.datafree.pixel_scale import SCALES, measure_scale
from fxquant.datafree.recipe import HELD_BACK, Recipe, Term
from fxquant.datafree.reconstruct import Reconstructor
from fxquant.datafree.samplers import (
    SAMPLERS,
    GeneratorSampler,
    PixelSampler,
    Replay,
    cosine,
    make_polisher,
)
from fxquant.datafree.steps import Steps
from fxquant.datafree.watcher import Watcher
from fxquant.errors import DivergenceError
from fxquant.graph.correct_biases import correct_biases
from fxquant.graph.passes import run_passes
from fxquant.mixed.choose import WidthChooser, WidthPlan
from fxquant.mixed.shares import set_widths
from fxquant.ranges import ESTIMATORS

logger = logging.getLogger(__name__)

FLUSH_EVERY = 20


class Engine:
    """Trains `student` to compute what `teacher` does, in place, without any data.

    `image_shape` is (channels, height, width). Everything random comes from `seed`, drawn on the
    host, so that a seed repeats on the same machine. `run` goes through the recipe's phases;
    between two steps `state_dict` holds all there is to continue from. `pixels` is the name of the
    scale that images have.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        recipe: Recipe,
        image_shape: tuple[int, ...],
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        watcher: Watcher | None = None,
        choose: WidthChooser | None = None,
    ):
        self.recipe, self.seed, self.watcher = recipe, seed, watcher or Watcher()
        self.device = torch.device(device)
        layout = {"memory_format": torch.channels_last} if len(image_shape) == 3 else {}
        self.teacher = teacher.to(self.device, **layout)
        self.student = student.to(self.device, **layout)
        check_recipe(recipe, teacher, image_shape)
        processes.require_divisible("schedule.batch", recipe.schedule.batch)
        processes.require_divisible("polish.batch", recipe.polish.batch)
        self.pixels = self._find_pixels(image_shape)
        scale = SCALES[self.pixels]
        self.objective = Objective(self.teacher, self.student, scale)
        self.rng = torch.Generator().manual_seed(seed)
        make_sampler = SAMPLERS[recipe.sampler.kind]
        schedule = recipe.schedule
        self.sampler = make_sampler(
            recipe.sampler, image_shape, schedule.batch, self.rng, self.device, scale
        )
        self.polisher = make_polisher(
            recipe.polish, self.sampler, image_shape, self.rng, self.device
        )
        self.replay = (
            Replay(schedule.replay, schedule.crop, self.rng, self.device)
            if schedule.replay
            else None
        )
        self.float_weights = copy.deepcopy(self.student.state_dict())
        self.reconstructor = Reconstructor(
            self.teacher, self.student, recipe.reconstruction, self.float_weights, self.rng
        )
        self.optimizer = student_optimizer(self.student)
        self.history = History()
        self.steps = Steps(self.objective, self.history, schedule.parts)
        self.importance: Importance | None = None
        self.choose, self.widths = choose, None
        self.held_back: Tensor | None = None
        self.choice = Choice(self.teacher, self.student, schedule)
        self.seconds: dict[str, float] = {}
        self.phase_index, self.step = 0, 0

    def _find_pixels(self, image_shape: tuple[int, ...]) -> str:
        """The scale of images that the recipe names, or the one that fits the teacher."""
        pixels = self.recipe.sampler.pixels
        if pixels == "measured":
            batch = self.recipe.schedule.batch
            pixels = processes.agree(measure_scale(self.teacher, image_shape, batch))
            logger.info("scale of the pixels of generated images: %s", pixels)
        return pixels

    def run(self, *, only: str | None = None) -> None:
        """Go through the phases, or the `only` one, from wherever the state stands."""
        phases = [phase for phase in self.phases() if only in (None, phase.name)]
        while self.phase_index < len(phases):
            phase = phases[self.phase_index]
            if phase.trains and not self.choice.trains:
                self.phase_index += 1
                continue
            self.watcher.phase(phase.name, phase.total)
            start = time.perf_counter()
            while self.step < phase.total:
                phase.run_step(self.step, self.recipe.schedule.batch, self.device)
                self.step += 1
                if self.step % FLUSH_EVERY == 0 or self.step == phase.total:
                    self.watcher.step(self.step, self._flush())
                    now = time.perf_counter()
                    self.seconds[phase.name] = self.seconds.get(phase.name, 0.0) + now - start
                    start = now
                self.watcher.checkpoint(self)
            logger.info(
                "phase %s: %d steps in %.1f s", phase.name, phase.total, self.seconds[phase.name]
            )
            # What each process did by itself came out the same, but for what hardware may round.
            processes.share(self.student)
            self.phase_index, self.step = self.phase_index + 1, 0
        self.watcher.finish(self)

    def _flush(self) -> dict[str, float]:
        """The newest losses; raises DivergenceError that names what is not finite."""
        try:
            values = self.history.flush()
        except DivergenceError as error:
            images = getattr(self.sampler, "network", None) or self.sampler.images
            where = find_unsound({"generator": images, "student": self.student})
            where = where or "all parameters are finite still, so a loss overflowed"
            raise DivergenceError(f"{error.message}; {where}", error.hint) from error
        require_convergence(self.history.curves, self.objective, self.recipe.student_terms)
        return values

    def phases(self) -> list[Phase]:
        """What the recipe asks for, in order; phases without steps are left out."""
        schedule, polish = self.recipe.schedule, self.recipe.polish
        batches = self.recipe.sampler.batches
        fine_tunes = schedule.steps > 0
        weighs = self.recipe.uses_importance or self.choose is not None
        seeks_difference = any(t.needs_student for t in self.recipe.sample_terms)
        adversarial = schedule.adversarial if seeks_difference and not fine_tunes else 0
        phases = [
            Phase("warm-up", schedule.warmup * batches, self._warm_up),
            Phase("importance", int(weighs), self._measure_importance),
            Phase("widths", int(self.choose is not None), self._choose_widths),
            Phase("polish", polish.steps * polish.batches, self._polish),
            Phase("calibration", 1, self._calibrate),
            Phase("adversarial", adversarial, self._adversarial),
            Phase("recalibration", int(adversarial > 0), self._calibrate),
            Phase("reconstruction", self.reconstructor.total, self._reconstruct, trains=True),
            Phase("fine-tuning", schedule.steps, self._fine_tune, trains=True),
        ]
        return [phase for phase in phases if phase.total]

    def _warm_up(self, step: int) -> None:
        """The sampler alone, on the terms that need no student."""
        warmup = self.recipe.schedule.warmup
        rate = cosine(step % warmup, warmup) * 0.9 + 0.1
        self.steps.sampler("warm-up", self.sampler, self._own_terms(), rate)
        if isinstance(self.sampler, PixelSampler) and (step + 1) % warmup == 0:
            self.sampler.finish_batch()

    def _polish(self, step: int) -> None:
        """The pixels of one batch of generated images, on the terms that need no student."""
        steps = self.recipe.polish.steps
        rate = cosine(step % steps, steps)
        self.steps.sampler("polish", self.polisher, self._own_terms(), rate)
        if (step + 1) % steps == 0:
            self.polisher.finish_batch()

    def _own_terms(self) -> list[Term]:
        return [term for term in self.recipe.sample_terms if not term.needs_student]

    def _measure_importance(self, step: int) -> None:
        settings = self.recipe.importance
        images = self.sampler.collect(settings.images).contiguous()
        self.importance = measure_importance(
            self.teacher, images, method=settings.method, probes=settings.probes, rng=self.rng
        )
        self.objective.set_importance(self.importance, settings.normalize)

    def _choose_widths(self, step: int) -> None:
        """Mixed precision: a width for the weights of each layer, by its importance."""
        plan = self.choose(self.teacher, self.student, self.importance)
        self.widths = processes.agree(plan)
        set_widths(self.student, self.widths.bits_by_name())

    def _calibrate(self, step: int) -> None:
        schedule = self.recipe.schedule
        self.student.load_state_dict(self.float_weights)
        images = self._kept_images(max(schedule.calibration_images, schedule.replay))
        calibrate(
            self.student,
            images[: schedule.calibration_images],
            estimator=ESTIMATORS[schedule.ranges],
            input_reach=schedule.input_reach,
        )
        if schedule.analytic_biases:
            run_passes(self.student, [("correct_biases", correct_biases)])
        if schedule.round_weights or schedule.correct_biases:
            adjust_layers(
                self.teacher,
                self.student,
                images[: schedule.calibration_images],
                weights=schedule.round_weights,
                biases=schedule.correct_biases,
            )
        self.reconstructor.begin(images)
        if self.replay is not None:
            self.replay.keep(images[: schedule.replay])
        self.choice.after_calibration(self.held_back)

    def _kept_images(self, count: int) -> Tensor:
        """Images to calibrate and train on; others are held back.

        Of images that are optimised one by one, few as they are, the last part is held back.
        """
        if isinstance(self.sampler, GeneratorSampler) and self.polisher is None:
            self.held_back = self.sampler.collect(HELD_BACK)
            return self.sampler.collect(count)
        images = torch.cat((self.polisher or self.sampler).finished)
        apart = min(HELD_BACK, len(images) // 4)
        self.held_back = images[len(images) - apart :]
        return images[: len(images) - apart][:count]

    def _reconstruct(self, step: int) -> None:
        if step == 0:
            self.choice.before_training()
        self.history.add("reconstruction", self.reconstructor.step(step))
        if step + 1 == self.reconstructor.total:
            self.choice.after_training("reconstructed", self.held_back)

    def _adversarial(self, step: int) -> None:
        """The sampler against a student that stays as it was calibrated."""
        self.steps.sampler("adversarial", self.sampler, self.recipe.sample_terms, 0.1)

    def _fine_tune(self, step: int) -> None:
        """Algorithm 1 of the paper: a sampler step where one is due, then a student step."""
        schedule = self.recipe.schedule
        if step == 0:
            self.choice.before_training()
            set_learning_rates(self.optimizer, self.student, schedule)
        rate = cosine(step, schedule.steps)
        if self.recipe.sample_terms and step % schedule.sampler_every == 0:
            images = self.steps.sampler("fine-tuning", self.sampler, self.recipe.sample_terms, 0.1)
            if self.replay is not None:
                self.replay.add(processes.gather(images))
        with torch.no_grad():
            drawn = self.sampler.draw() if self.replay is None else self.replay.draw(schedule.batch)
        drawn = drawn.contiguous(memory_format=torch.channels_last)
        self.steps.student("fine-tuning", self.optimizer, self.recipe.student_terms, drawn, rate)
        if step + 1 == schedule.steps:
            self.choice.after_training("fine-tuned", self.held_back)

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to continue exactly here; raises DivergenceError."""
        self._flush()
        return {
            "phase_index": self.phase_index,
            "step": self.step,
            "rng": self.rng.get_state(),
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "polisher": self.polisher.state_dict() if self.polisher else None,
            "replay": self.replay.state_dict() if self.replay else None,
            "history": self.history.state_dict(),
            "importance": self.importance and vars(self.importance),
            "widths": self.widths and self.widths.to_dict(),
            "held_back": self.held_back,
            "reconstructor": self.reconstructor.state_dict(),
            "choice": self.choice.state_dict(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where the engine stood that gave this `state_dict`."""
        self.phase_index, self.step = state["phase_index"], state["step"]
        self.rng.set_state(state["rng"].cpu())
        self.student.load_state_dict(state["student"])
        if state["widths"]:
            self.widths = WidthPlan.from_dict(state["widths"])
            set_widths(self.student, self.widths.bits_by_name())
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        if self.polisher is not None:
            self.polisher.load_state_dict(state["polisher"])
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])
        self.history.load_state_dict(state["history"])
        self.reconstructor.load_state_dict(state["reconstructor"], self.step)
        self.choice.load_state_dict(state["choice"])
        if state["importance"]:
            self.importance = Importance(**state["importance"])
            self.objective.set_importance(self.importance, self.recipe.importance.normalize)
        self.held_back, self.seconds = state["held_back"], dict(state["seconds"])
