"""How the numbers of a student are laid out in ONNX: a layout is a list of passes.

Each pass edits an onnx-ir model in place and returns how often it changed something.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common as passes

from fxquant.errors import ExportError
from fxquant.exporters.constants import share_scalars
from fxquant.exporters.fold_clips import fold_clips
from fxquant.exporters.hard_sigmoids import sum_hard_sigmoids
from fxquant.exporters.native_types import narrow_activations, narrow_weights
from fxquant.exporters.pack_weights import pack_weights
from fxquant.exporters.pool_means import pool_means
from fxquant.exporters.shield_float import shield_float
from fxquant.exporters.sink_dequantize import sink_dequantize
from fxquant.exporters.strip import strip
from fxquant.exporters.tensor_names import name_tensors
from fxquant.exporters.tensorrt import center_activations, float_biases, require_tensorrt
from fxquant.exporters.transpose_weights import transpose_weights
from fxquant.exporters.unsign_activations import unsign_activations
from fxquant.exporters.unsign_weights import unsign_weights
from fxquant.exporters.weight_zero_points import weight_zero_points

logger = logging.getLogger(__name__)

Pass = Callable[[ir.Model], int]

# Made for ONNX Runtime's integer kernels: weights packed on disk and cast to int8, activations
# uint8 with an integer clip to the grid of fewer bits.
RUNTIME: tuple[Pass, ...] = (
    transpose_weights,
    pool_means,
    unsign_activations,
    sum_hard_sigmoids,
    fold_clips,
    sink_dequantize,
    shield_float,
    unsign_weights,
    weight_zero_points,
    pack_weights,
    share_scalars,
    strip,
    name_tensors,
)

# What any reader of Q/DQ files understands: ONNX's own types, and a Clip where there is none.
PORTABLE: tuple[Pass, ...] = (
    transpose_weights,
    pool_means,
    fold_clips,
    narrow_weights,
    pack_weights,
    narrow_activations,
    shield_float,
    unsign_weights,
    weight_zero_points,
    share_scalars,
    strip,
    name_tensors,
)

# What TensorRT takes: int8 around zero, float biases.
TENSORRT: tuple[Pass, ...] = (
    transpose_weights,
    center_activations,
    float_biases,
    weight_zero_points,
    share_scalars,
    strip,
    name_tensors,
    require_tensorrt,
)

LAYOUTS: dict[str, tuple[Pass, ...]] = {
    "runtime": RUNTIME,
    "portable": PORTABLE,
    "tensorrt": TENSORRT,
}
# The processors that a file is to be right on: every one, or those alone whose kernels for int8
# weights are exact, and faster than those for uint8.
PROCESSORS = ("any", "vnni")


def layout_passes(layout: str, processor: str) -> tuple[Pass, ...]:
    """The passes of a layout for these processors; raises ExportError where either is unknown."""
    for what, name, known in (("layout", layout, LAYOUTS), ("processor", processor, PROCESSORS)):
        if name not in known:
            raise ExportError(f"{what} '{name}' is unknown", f"known: {', '.join(known)}")
    edits = LAYOUTS[layout]
    return edits if processor == "any" else tuple(e for e in edits if e is not unsign_weights)


def apply_layout(model: ir.Model, layout: tuple[Pass, ...]) -> dict[str, int]:
    """Run the passes of a layout in order, in place; changes by the name of the pass."""
    counts: dict[str, int] = {}
    for edit in layout:
        counts[edit.__name__] = edit(model)
        logger.debug("layout pass %s: %d changes", edit.__name__, counts[edit.__name__])
    passes.TopologicalSortPass()(model)
    passes.NameFixPass()(model)
    return counts
