"""What all tests share."""

from pathlib import Path

import pytest
import torch

# On networks this small more threads cost more than they give, and sums come out the same each run.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real networks and test images, kept beside the repository, not in it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real networks in {folder}")
    return folder
