"""Write signed activations as unsigned ones, which integer kernels can fuse with a Clip."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fxquant.exporters.constants import scalar
from fxquant.exporters.grids import Grid, grids

_SHIFT = 128


def unsign_activations(model: ir.Model) -> int:
    """Shift the integers of int8 activations by 128, and their zero points; the number shifted.

    It changes no number. ONNX Runtime leaves a layer in floating point that reads or writes int8
    with a Clip, and from opset 21 on can't load int8 that MaxPool or another op moves.
    """
    signed = [grid for grid in grids(model) if grid.zero_point.dtype == np.int8]
    for grid in signed:
        unsign(model.graph, grid)
    return len(signed)


def unsign(graph: ir.Graph, grid: Grid) -> None:
    """Shift one int8 grid to uint8, with all that dequantizes it."""
    set_zero_point(graph, grid, _shifted(grid.zero_point))
    if grid.clip is not None:
        for i, bound in ((1, grid.low), (2, grid.high)):
            if len(grid.clip.inputs) > i and grid.clip.inputs[i] is not None:
                grid.clip.replace_input_with(i, scalar(graph, np.uint8(bound + _SHIFT)))


def set_zero_point(graph: ir.Graph, grid: Grid, numbers: np.ndarray) -> None:
    """Give the grid another zero point, and with it another type, wherever it is read."""
    for node in (*grid.integers.consumers(), grid.quantize):
        node.replace_input_with(2, scalar(graph, numbers[()]))


def _shifted(zero_point: np.ndarray) -> np.ndarray:
    return (zero_point.astype(np.int16) + _SHIFT).astype(np.uint8)
