"""Whether a calibrated student is trained, and which of the two is kept: by images held back."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fxquant.datafree import processes
from fxquant.datafree.objective import output_divergence, output_error
from fxquant.datafree.recipe import Schedule

logger = logging.getLogger(__name__)

# Share of the calibrated student's divergence on images held back that may be left by fine-tuning.
WORTH_TUNING = 0.95


class Choice:
    """Decides for one student, by its outputs on images held back.

    Those are generated as well: training on such images draws the student towards them, and where
    calibration leaves next to nothing to gain, at 8 bits say, it takes more than it gives.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, schedule: Schedule):
        self.teacher, self.student, self.schedule = teacher, student, schedule
        self.trains = True
        self.kept = "fine-tuned" if schedule.steps else "calibrated"
        self._calibrated: dict[str, Any] | None = None

    def after_calibration(self, held_back: Tensor) -> None:
        """Leave a student as it was calibrated where it is as close as `train_below` asks for."""
        wanted = self.schedule.train_below
        if not wanted:
            return
        reached = _decibels(self._measure(output_error, held_back))
        self.trains = processes.agree(reached < wanted)
        if not self.trains:
            self.kept = "calibrated"
            logger.info(
                "calibration left %.1f dB SQNR on images held back, and %g are enough: "
                "the student is not trained",
                reached,
                wanted,
            )

    def before_tuning(self) -> None:
        """Remember the student, to go back to it."""
        self._calibrated = copy.deepcopy(self.student.state_dict())

    def keep_the_closer(self, held_back: Tensor) -> None:
        """Go back unless the fine-tuned student diverges less, by WORTH_TUNING at least.

        The divergence of logits foretells decisions where their squared error doesn't.
        """
        tuned = copy.deepcopy(self.student.state_dict())
        found = {"fine-tuned": self._measure(output_divergence, held_back)}
        self.student.load_state_dict(self._calibrated)
        found["calibrated"] = self._measure(output_divergence, held_back)
        if found["fine-tuned"] <= WORTH_TUNING * found["calibrated"]:
            self.student.load_state_dict(tuned)
        else:
            self.kept = "calibrated"
        logger.info("divergence on images held back: %s; the %s student is kept", found, self.kept)

    def _measure(self, distance: Callable[..., float], held_back: Tensor) -> float:
        return distance(self.teacher, self.student, held_back, self.schedule.batch)

    def state_dict(self) -> dict[str, Any]:
        """All that was decided and remembered."""
        return {"trains": self.trains, "kept": self.kept, "calibrated": self._calibrated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.trains, self.kept = state["trains"], state["kept"]
        self._calibrated = state["calibrated"]


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf
