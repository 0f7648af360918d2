"""What a run says about how far to trust it."""

from __future__ import annotations

import pytest

from fxquant.report.trust import judge


@pytest.mark.parametrize(
    ("sqnr", "level"),
    [(30.0, "high"), (14.0, "high"), (13.9, "fair"), (10.0, "fair"), (-3.0, "low")],
)
def test_the_level_follows_the_ratio_and_says_so(sqnr, level):
    trust = judge(sqnr)
    assert trust.level == level
    assert f"{sqnr:.1f} dB" in trust.reason
    assert "point" in trust.reason
