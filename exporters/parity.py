"""Whether an exported file computes in ONNX Runtime what the student computes in torch.

A file is wrong, or the processor is: x86 without VNNI saturates some sums of int8 weights. What
differs with `session.x64quantprecision` and without it, and is right with it, is the processor's.
"""

from __future__ import annotations

import copy
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxquant.errors import ExportError, ParityError
from fxquant.exporters.detections import raw_predictions
from fxquant.exporters.divergence import first_divergence
from fxquant.exporters.external import size_on_disk
from fxquant.exporters.kernels import count_kernels
from fxquant.exporters.marks import mark
from fxquant.exporters.processor import saturates
from fxquant.exporters.runtime import BATCH, make_session, run_batches, run_onnx
from fxquant.exporters.saturation import saturating_names, saturation_note
from fxquant.inputs import Inputs, as_inputs, flatten, split
from fxquant.report.closeness import sqnr_db

logger = logging.getLogger(__name__)

__all__ = ["Difference", "Parity", "check_parity", "require_parity", "run_onnx"]

# Integer kernels compute what the student does: on the ResNet-20s measured they leave 50 dB and
# more. A wrong scale, weight or zero point leaves less than 20 dB.
MIN_SQNR_DB = 25.0
MAX_DECISIONS_CHANGED = 0.005
# Without integer kernels sums round, and where one lies on the border between two grid values the
# two sides take neighbours, which later layers carry on: at 4 bits 27 dB were seen.
MIN_ROUGH_SQNR_DB = 15.0
MAX_ROUGH_DECISIONS_CHANGED = 0.05
# Of few images one may change: a single neighbouring grid value can decide it.
MAX_IMAGES_CHANGED = 1

MARK = "fxquant.parity"


@dataclass(frozen=True)
class Difference:
    """How far the file's outputs are from the student's, over all images.

    `sqnr_db` is that of the worst output. `agreement` is the share of images whose largest value
    is the same one; `decisions_changed` the share where the file's choice is not even a tie for
    the student, a tie being a gap within the noise that the bound on `sqnr_db` allows. Both are
    None where no output is (images, classes).
    """

    max_difference: float
    sqnr_db: float
    agreement: float | None
    decisions_changed: float | None
    images: int

    @property
    def passed(self) -> bool:
        """Whether it is as close as integer kernels are."""
        return self._within(MIN_SQNR_DB, MAX_DECISIONS_CHANGED)

    @property
    def roughly_passed(self) -> bool:
        """Whether it is as close as floating-point kernels are."""
        return self._within(MIN_ROUGH_SQNR_DB, MAX_ROUGH_DECISIONS_CHANGED)

    def _within(self, sqnr_db: float, decisions: float) -> bool:
        changed = round((self.decisions_changed or 0.0) * self.images)
        return self.sqnr_db >= sqnr_db and changed <= max(
            MAX_IMAGES_CHANGED, decisions * self.images
        )


@dataclass(frozen=True)
class Parity:
    """Outcome of a parity check, without and with ONNX Runtime's graph optimisations.

    Layers are counted in the file, and those in integer kernels in what ONNX Runtime makes of it
    on this machine. `diverges_at` names the first activation quantizer in graph order that is
    wrong by itself, `output` where none is, and is None where the check passed. `amplified` says
    that outputs are further apart than that, but no step on the way is: the network enlarges
    single neighbouring grid values, as no rounding of sums can avoid.

    `saturating_layers` are those that x86 processors without VNNI can get wrong; `saturates_here`
    says that there are some, and that this is such a processor. `precise` is the difference with
    optimisations and `session.x64quantprecision`, None where there are no such layers or ONNX
    Runtime can't load the file so. A file that only the processor gets wrong passes.
    """

    unoptimized: Difference
    optimized: Difference
    convolutions: int
    convolutions_integer: int
    linears: int
    linears_integer: int
    file_bytes: int
    images: int
    diverges_at: str | None
    amplified: bool = False
    saturating_layers: int = 0
    saturates_here: bool = False
    precise: Difference | None = None

    @property
    def integers_passed(self) -> bool:
        """Whether integer kernels compute what the student does, exact ones at least."""
        if self.optimized.passed or not self.saturates_here:
            return self.optimized.passed
        return self.precise.passed if self.precise else self.unoptimized.roughly_passed

    @property
    def passed(self) -> bool:
        return self.amplified or (self.unoptimized.roughly_passed and self.integers_passed)

    @property
    def processor_note(self) -> str | None:
        """What to do where the file is not right on every processor; None where it is."""
        option = self.precise is not None
        return saturation_note(self.saturating_layers, here=self.saturates_here, option=option)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, whether the check passed, and what to know of processors."""
        said = {"passed": self.passed, "processor_note": self.processor_note}
        return {**said, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Parity:
        """The inverse of `to_dict`."""
        parts = {key: values[key] for key in values.keys() - {"passed", "processor_note"}}
        for key in ("unoptimized", "optimized", "precise"):
            if parts.get(key) is not None:
                parts[key] = Difference(**parts[key])
        return cls(**parts)


@torch.no_grad()
def check_parity(
    student: nn.Module, path: str | Path, images: Inputs, *, record: bool = True
) -> Parity:
    """Run `images`, (n, channels, height, width), through the student and the file and compare.

    Where the model takes several inputs, `images` has one such tensor each. `student` is the one
    that was exported, or its frozen form. The outcome is written to the file's metadata as
    `fxquant.parity`, `passed` or `failed`, unless `record` is False. Raises ExportError where
    ONNX Runtime can't load the file. Of a file with detections the predictions inside are compared.
    """
    path = Path(path)
    student = copy.deepcopy(student).cpu().eval()
    images = tuple(x.detach().float().cpu() for x in as_inputs(images))
    # In float32 and in double precision: sums that lie on the border between two grid values
    # round to either side, and a file is right if it agrees with the student in one of them.
    references = [_student_outputs(student, images)]
    doubles = tuple(x.double() for x in images)
    with suppress(RuntimeError):  # of a network that makes numbers in float32 by itself
        references.append(_student_outputs(copy.deepcopy(student).double(), doubles))
    with raw_predictions(path) as raw:
        off = _closest(references, _file_outputs(raw, images, optimize=False))
        on = _closest(references, _file_outputs(raw, images))
        saturating = len(saturating_names(raw))
        precise = _precise(references, raw, images) if saturating else None
        here = saturating > 0 and saturates()
        parity = Parity(
            unoptimized=off,
            optimized=on,
            **asdict(count_kernels(path)),
            file_bytes=0,
            images=len(images[0]),
            diverges_at=None,
            saturating_layers=saturating,
            saturates_here=here,
            precise=precise,
        )
        if not parity.passed:
            parity = _located(parity, student, raw, images)
    if record:
        mark(path, {MARK: "passed" if parity.passed else "failed"})
    return replace(parity, file_bytes=size_on_disk(path))


def _precise(
    references: list[list[np.ndarray]], path: Path, images: tuple[Tensor, ...]
) -> Difference | None:
    """The difference with kernels that are exact everywhere, None where they can't be had.

    ONNX Runtime fails to exchange weights that two layers share.
    """
    try:
        return _closest(references, _file_outputs(path, images, precise=True))
    except ExportError as error:
        logger.debug("not loaded with session.x64quantprecision: %s", error)
        return None


def _located(parity: Parity, student: nn.Module, path: Path, images: tuple[Tensor, ...]) -> Parity:
    """The outcome of a check that failed, with the first step that is wrong by itself."""
    close = {False: parity.unoptimized.roughly_passed, True: parity.integers_passed}
    precise = parity.precise is not None
    found = [
        first_divergence(
            student,
            path,
            images,
            optimize=optimize,
            precise=precise and optimize,
            min_sqnr_db=MIN_SQNR_DB,
        )
        for optimize, is_close in close.items()
        if not is_close
    ]
    diverges_at = next((name for name in found if name is not None), None)
    return replace(parity, diverges_at=diverges_at, amplified=diverges_at is None)


def require_parity(parity: Parity) -> None:
    """Raise ParityError, which says how far off the file is and where that begins, if it failed."""
    if parity.passed:
        return
    exact = parity.precise if parity.saturates_here else None
    worst = parity.unoptimized if parity.integers_passed else exact or parity.optimized
    changed = worst.decisions_changed
    decisions = "" if changed is None else f", {changed:.1%} of decisions changed"
    raise ParityError(
        "the exported file does not compute what the student does: its output has an SQNR of "
        f"{worst.sqnr_db:.1f} dB (at least {MIN_SQNR_DB:g} expected){decisions}; "
        f"the first tensor that diverges is {parity.diverges_at}"
    )


def _closest(references: list[list[np.ndarray]], found: list[np.ndarray]) -> Difference:
    return max((compare(r, found) for r in references), key=lambda difference: difference.sqnr_db)


def compare(expected: list[np.ndarray], found: list[np.ndarray]) -> Difference:
    """Difference between two lists of outputs, each (images, ...), in the same order.

    Raises ExportError where they don't have the same shapes.
    """
    shapes = [[list(output.shape) for output in outputs] for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ExportError(
            f"the file's outputs have the shapes {shapes[1]}; the student's have {shapes[0]}"
        )
    pairs = [
        (a.astype(np.float64), b.astype(np.float64)) for a, b in zip(expected, found, strict=True)
    ]
    decisions = [_decisions(a, b) for a, b in pairs if a.ndim == 2]
    return Difference(
        max_difference=max(float(np.abs(a - b).max()) for a, b in pairs),
        sqnr_db=min(
            sqnr_db(float(np.square(a).sum()), float(np.square(a - b).sum())) for a, b in pairs
        ),
        agreement=min(same for same, _ in decisions) if decisions else None,
        decisions_changed=max(changed for _, changed in decisions) if decisions else None,
        images=len(expected[0]),
    )


def _decisions(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Share of rows with the same largest value, and share where the choices are no tie."""
    rows, choice = np.arange(len(expected)), found.argmax(1)
    same = choice == expected.argmax(1)
    tie = np.sqrt(np.square(expected).mean()) * 10 ** (-MIN_SQNR_DB / 20)
    gap = expected.max(1) - expected[rows, choice]
    return float(same.mean()), float((~same & (gap > tie)).mean())


def _student_outputs(student: nn.Module, images: tuple[Tensor, ...]) -> list[np.ndarray]:
    outputs = [flatten(student(*inputs)) for inputs in split(images, BATCH)]
    return _join([[value.numpy() for value in values] for values in outputs])


def _file_outputs(path: Path, images: tuple[Tensor, ...], **how: bool) -> list[np.ndarray]:
    return _join(list(run_batches(make_session(path, **how), images)))


def _join(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Each output over all batches."""
    return [np.concatenate(values) for values in zip(*parts, strict=True)]
