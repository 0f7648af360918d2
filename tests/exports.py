"""Students ready for export, and what their files hold: shared by the tests of the exporters."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from nets import ALL
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.calibration import calibrate
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.graph.prepare import prepare
from fxquant.graph.snap_biases import snap_biases
from fxquant.spec import QConfig

SHAPE = (3, 16, 16)


def noise(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) + 0.2


def make_student(
    model: nn.Module, config: QConfig, shape: tuple[int, ...] = SHAPE, *, snap: bool = True
) -> GraphModule:
    """A calibrated student of `model` in eval mode."""
    student = prepare(model, config, shape).student.eval()
    calibrate(student, noise(64, shape, seed=1))
    if snap:
        snap_biases(student)
    return student.requires_grad_(False)


@dataclass(frozen=True)
class Exported:
    """A student and its file."""

    student: GraphModule
    path: Path

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def exported(name: str, weight_bits: int, act_bits: int) -> Exported:
    """One of the test networks as student and file; neither may be changed."""
    student = make_student(ALL[name](), QConfig(weight_bits, act_bits))
    path = Path(_folder().name) / f"{name}-{weight_bits}-{act_bits}.onnx"
    export_onnx(student, path, input_shape=SHAPE, metadata={"fxquant.recipe": "none"})
    return Exported(student, path)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def array(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor)
