"""HardSigmoid as a sum on integers: the same numbers, refusals, and the kernels that it gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from test_layout_passes import graph, ops, run
from torch import Tensor, nn

from fxquant.calibration import calibrate
from fxquant.exporters.hard_sigmoids import sum_hard_sigmoids
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.exporters.runtime import make_session
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig

GRID = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
BEHIND = " r = QuantizeLinear(h, t, z) y = DequantizeLinear(r, t, z)"


@pytest.mark.parametrize("numbers", ["", "<alpha = 0.16666667, beta = 0.5>"])
def test_between_two_grids_it_is_a_sum_and_a_clip(numbers):
    model = graph("float t = {0.06}", f"{GRID} h = HardSigmoid {numbers} (d) {BEHIND}")
    before = run(model)
    assert sum_hard_sigmoids(model) == 1
    assert Counter(ops(model)) == Counter(
        {"DequantizeLinear": 3, "QuantizeLinear": 2, "Add": 1, "Clip": 1}
    )
    np.testing.assert_array_equal(run(model), before)
    assert sum_hard_sigmoids(model) == 0


@pytest.mark.parametrize(
    "body",
    [
        f"h = HardSigmoid(x) {BEHIND}",
        f"{GRID} y = HardSigmoid(d)",
        f"{GRID} h = HardSigmoid <beta = 0.0> (d) {BEHIND}",
    ],
    ids=["of a float", "into a float", "without an offset"],
)
def test_any_other_stays(body):
    model = graph("float t = {0.06}", body)
    before = ops(model)
    assert sum_hard_sigmoids(model) == 0
    assert ops(model) == before


class Mobile(nn.Module):
    """Hardswish, and a gate of Hardsigmoid, as in MobileNetV3."""

    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.first(x))
        return self.last(x * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(x, 1))))


@pytest.mark.parametrize("bits", [8, 4])
def test_mobilenet_s_activations_run_on_integers(bits, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(8, 3, 8, 8)
    student = prepare(Mobile().eval(), QConfig(bits, bits), (3, 8, 8)).student
    calibrate(student, images)
    path = tmp_path / "net.onnx"
    export_onnx(student, path, input_shape=(3, 8, 8))
    assert check_parity(student, path, images).passed
    optimized = tmp_path / "optimized.onnx"
    make_session(path, optimized_to=optimized)
    kernels = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    assert kernels["QLinearAdd"] == kernels["QLinearMul"] == 2
    assert kernels["QLinearConv"] == 3
    assert not {"HardSigmoid", "HardSwish", "Mul", "Add"} & set(kernels)
