"""OpenVINO, where it is installed, reads the files and agrees with the student."""

from __future__ import annotations

import numpy as np
import pytest
from exports import exported, noise

from fxquant.exporters.parity import compare

openvino = pytest.importorskip("openvino")


@pytest.mark.parametrize("layout", ["portable", "runtime"])
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("name", ["plain", "concat", "residual"])
def test_openvino_agrees(name, bits, layout):
    if (layout, bits) == ("runtime", 2):
        pytest.skip("OpenVINO does not know int2, which this layout stores weights of 2 bits in")
    file = exported(name, bits, bits, layout)
    # At full precision: by default it computes in bfloat16 where the processor can.
    compiled = openvino.Core().compile_model(
        str(file.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = compiled(noise(64).numpy())[0]
    difference = compare([file.student(noise(64)).numpy()], [np.asarray(found)])
    assert difference.passed, difference
