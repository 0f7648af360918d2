"""torch.onnx's part of the export: from a frozen student to an onnx-ir model, not yet laid out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import onnxscript
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset18 as op  # its operators have no attribute that a later one drops
from torch import Tensor, nn

from fxquant.errors import ExportError
from fxquant.exporters.custom_ops import DEQUANTIZE, QUANTIZE_DEQUANTIZE
from fxquant.exporters.signature import input_names, output_names
from fxquant.inputs import Shapes, zeros

# Their warnings are about how torch traces, which the one who exports can't act upon.
_CHATTY = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")
# Two images: torch.export takes a size of one for a constant.
_EXAMPLES = 2
_GRIDS = {ir.DataType.UINT8: np.uint8, ir.DataType.INT8: np.int8}


def capture(frozen: nn.Module, input_shape: Shapes, opset: int) -> ir.Model:
    """The ONNX form of a frozen student, constants folded and nodes simplified.

    `input_shape` is (channels, height, width), or such a shape for each input. Inputs and outputs
    are named as `fxquant.exporters.signature` says, inputs with a dynamic first dimension `batch`.
    Raises ExportError where torch.export or torch.onnx gives up.
    """
    program = to_program(frozen, input_shape)
    with _quiet():
        inputs = zeros(input_shape, _EXAMPLES)
        names = input_names(frozen, len(inputs))
        try:
            model = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=False,  # torch's optimizer merges equal weights, and their names
                opset_version=opset,
                input_names=names,
                output_names=output_names(_run(frozen, inputs), names),
                dynamic_shapes=tuple({0: "batch"} for _ in inputs),
                custom_translation_table=_TRANSLATIONS,
            ).model
        except Exception as error:
            raise ExportError(f"torch.onnx can't translate the model: {_reason(error)}") from error
        _simplify(model)
    return model


def to_program(frozen: nn.Module, input_shape: Shapes) -> torch.export.ExportedProgram:
    """The frozen student as torch.export sees it, for any number of images of `input_shape`.

    Raises ExportError where torch.export gives up.
    """
    inputs, batch = zeros(input_shape, _EXAMPLES), torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs)
    try:
        with _quiet():
            return torch.export.export(frozen, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ExportError(
            f"torch.export can't take the model with a free batch size: {_reason(error)}",
            "the model's forward must work for any number of images",
        ) from error


@torch.no_grad()
def _run(frozen: nn.Module, inputs: tuple[Tensor, ...]):
    return frozen(*inputs)


def _quantize_dequantize(x, scale, zero_point, qmin: int, qmax: int, axis=None):
    where = {"axis": 1 if axis is None else axis}
    q = op.QuantizeLinear(x, scale, zero_point, **where)
    grid = _GRIDS[zero_point.dtype]
    ends = (np.iinfo(grid).min, np.iinfo(grid).max)
    if (qmin, qmax) != ends:
        bounds = zip((qmin, qmax), ends, strict=True)
        q = op.Clip(q, *(None if bound == end else _constant(grid(bound)) for bound, end in bounds))
    return op.DequantizeLinear(q, scale, zero_point, **where)


def _dequantize(q, scale, zero_point=None, axis=None):
    grid = (scale,) if zero_point is None else (scale, zero_point)
    return op.DequantizeLinear(q, *grid, axis=1 if axis is None else axis)


def _constant(value: np.generic):
    return op.Constant(value=ir.tensor(value))


_TRANSLATIONS = {
    QUANTIZE_DEQUANTIZE: _quantize_dequantize,
    DEQUANTIZE: _dequantize,
}


def _simplify(model: ir.Model) -> None:
    """Fold what is constant about shapes; QuantizeLinear and DequantizeLinear are left alone."""
    passes.InlinePass()(model)
    onnxscript.optimizer.fold_constants_ir(model)
    onnxscript.rewriter.rewrite(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.IdentityEliminationPass()(model)
    passes.OutputFixPass()(model)
    passes.RemoveUnusedNodesPass()(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and loggers of the exporting libraries while the block runs."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """First line of the innermost error: those around it say that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
