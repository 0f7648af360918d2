"""When a student's training leads away from its teacher, with numbers that are finite still."""

from __future__ import annotations

from collections.abc import Sequence

from fxquant.datafree.objective import Objective
from fxquant.datafree.recipe import Term
from fxquant.errors import DivergenceError

# Steps in a row that must all be bad: a batch or two on which teacher and student differ is what
# a sampler seeks.
BLOCK = 20
# How many times as wrong as features that are all zero, or as the student was when it began.
FACTOR = 2.0


def require_convergence(
    curves: dict[str, list[float]], objective: Objective, terms: Sequence[Term]
) -> None:
    """Raise DivergenceError where the student's features are worse than none at all.

    All of the newest BLOCK steps must be FACTOR times as wrong as a student whose features are
    zero, and as this student was in its first step, when it was as calibrated.
    """
    name = "fine-tuning/student.features"
    values = curves.get(name, [])
    term = next((term for term in terms if term.loss == "features"), None)
    if term is None or len(values) <= BLOCK:
        return
    began = values[0]
    worst = FACTOR * max(objective.error_of_zeros(term), began)
    newest = values[-BLOCK:]
    if min(newest) > worst:
        raise DivergenceError(
            f"training diverged: {name} was at least {min(newest):.3g} in the last {BLOCK} of "
            f"{len(values)} steps; it began at {began:.3g}, and a student whose features are all "
            f"zero has {objective.error_of_zeros(term):.3g}",
            "lower the learning rates (schedule.student_lr, schedule.scale_lr) in recipe.toml",
        )
