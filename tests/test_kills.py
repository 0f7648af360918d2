"""Runs killed at random moments continue to the same bytes, and leave nothing half."""

from __future__ import annotations

import pytest
from kills import kill_often


def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    figures = kill_often(tmp_path, kills=2, seed=0, steps=10)
    assert figures["kills"] >= 2


@pytest.mark.soak
def test_50_kills(tmp_path, figures):
    figures("SIGKILL at random moments", kill_often(tmp_path, kills=50, seed=1, steps=200))
