"""Images of somebody's own to compare a file on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fxquant.report.evaluate import EvaluationData
from fxquant.restore import Restored

MOST_BYTES = 1 << 29  # in memory; check_parity copies them in double precision


def own_images(
    run: Restored, path: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """The first images of a file of evaluation data, as many as there is room for."""
    data = EvaluationData(path, mean, std)
    data.check(run.settings.input_shape)
    batches, left = [], MOST_BYTES
    for images, _ in data.batches():
        batches.append(torch.from_numpy(images))
        left -= images.nbytes
        if left <= 0:
            break
    return torch.cat(batches)
