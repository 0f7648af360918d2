"""Whether a calibrated student is trained, and which of the two is kept: by images held back."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.datafree import processes
from fxquant.datafree.objective import output_distances
from fxquant.datafree.recipe import Schedule

logger = logging.getLogger(__name__)

# How many times as far from its teacher as before training may leave a student, on images held
# back. Nearly always it brings one closer on real images, and what says that it didn't is off by a
# tenth or so (docs/results.md).
TOO_FAR = 1.05
# How often images held back are disturbed to compare students on, and the noise's deviation in
# deviations of the images.
COPIES = 4
NOISE = 0.3


class Choice:
    """Decides for one student, by its outputs on images held back; `kept` says what it is now.

    Those are generated as well: training on such images draws the student towards them, and where
    calibration leaves next to nothing to gain, at 8 bits say, it only costs time.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, schedule: Schedule):
        self.teacher, self.student, self.schedule = teacher, student, schedule
        self.trains, self.kept = True, "calibrated"
        self._before: dict[str, Any] | None = None

    def after_calibration(self, held_back: Tensor) -> None:
        """Leave a student as it was calibrated where it is as close as `train_below` asks for."""
        wanted = self.schedule.train_below
        if not wanted:
            return
        reached = _decibels(self._distances(held_back)[0])
        self.trains = processes.agree(reached < wanted)
        if not self.trains:
            logger.info(
                "calibration left %.1f dB SQNR on images held back, and %g are enough: "
                "the student is not trained",
                reached,
                wanted,
            )

    def before_training(self) -> None:
        """Remember the student, to go back to it."""
        self._before = copy.deepcopy(self.student.state_dict())

    def after_training(self, trained: str, held_back: Tensor) -> None:
        """Keep the student, `trained` as it is now; or go back to what it was.

        It goes back where it is TOO_FAR from its teacher. The distance is the geometric mean of the
        squared error of outputs and the divergence of decisions: images held back are few, on which
        the second depends on a handful near a border, and the first says little of decisions. It is
        measured on `disturbed` images: generated ones are all alike, as real ones are not, and what
        fits them best is not what serves those.
        """
        if self.schedule.keep_closer and self._is_too_far(trained, held_back):
            self.student.load_state_dict(self._before)
        else:
            self.kept = trained
        self._before = None

    def _is_too_far(self, trained: str, held_back: Tensor) -> bool:
        now = copy.deepcopy(self.student.state_dict())
        images = disturbed(held_back)
        found = self._distance(images)
        self.student.load_state_dict(self._before)
        before = self._distance(images)
        self.student.load_state_dict(now)
        too_far = processes.agree(not found <= TOO_FAR * before)  # so is what is not a number
        words = self.kept, before, trained, found, self.kept if too_far else trained
        logger.info("distance on images held back: %s %.4g, %s %.4g; %s is kept", *words)
        return too_far

    def _distance(self, images: Tensor) -> float:
        return math.sqrt(math.prod(self._distances(images)))

    def _distances(self, images: Tensor) -> tuple[float, float]:
        return output_distances(self.teacher, self.student, images, self.schedule.batch)

    def state_dict(self) -> dict[str, Any]:
        """All that was decided and remembered."""
        return {"trains": self.trains, "kept": self.kept, "before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.trains, self.kept = state["trains"], state["kept"]
        self._before = state["before"]


def disturbed(images: Tensor) -> Tensor:
    """COPIES of images (n, ...), each under noise of its own, which is the same in each call."""
    rng = torch.Generator().manual_seed(0)
    copies = images.repeat(COPIES, *[1] * (images.dim() - 1))
    noise = torch.randn(copies.shape, generator=rng).to(copies)
    return copies + NOISE * images.std() * noise


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf
