"""How far a run's own signal says that its student can be trusted, where there is no test data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trust:
    """A level, high, fair or low, and what it rests on in a sentence."""

    level: str
    reason: str


# Least SQNR of the output on generated images held back, in dB, and what classifiers lost there:
# docs/results.md, "How far to trust a run".
_LEVELS = (
    (14.0, "high", "runs with so much lost under a point of accuracy, rarely more"),
    (10.0, "fair", "runs with so much lost up to three points of accuracy"),
    (float("-inf"), "low", "runs with so little lost about a point of accuracy or more, some ten"),
)


def judge(output_sqnr_db: float) -> Trust:
    """What a student's SQNR on held back generated images, in dB, foretells of its accuracy."""
    level, seen = next((name, seen) for least, name, seen in _LEVELS if output_sqnr_db >= least)
    return Trust(level, f"output SQNR {output_sqnr_db:.1f} dB on generated images: {seen}")
