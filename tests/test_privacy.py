"""Nothing tells anybody what is run here."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
from fxquant.exporters.runtime import make_session
from onnx import TensorProto, helper
values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
opsets = [helper.make_opsetid("", 21)]
make_session(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
"""


def test_onnx_runtime_keeps_no_identifier_of_the_machine(tmp_path):
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment = {**kept, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", CODE], env=environment, check=True)
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []
