"""Random command lines and recipe files: no traceback, no exit code but those documented."""

from __future__ import annotations

import pytest
from fuzz import fuzz


def test_80_invocations(tmp_path):
    ends = fuzz(tmp_path, 80, seed=0)
    assert sum(ends.values()) == 80
    assert ends["exit code 2"] > 20


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_500_invocations(tmp_path, seed, figures):
    figures(f"500 invocations, seed {seed}", fuzz(tmp_path, 500, seed))
