"""`fxquant bench` measures what it says it does; no test depends on how fast a machine is."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from exports import SHAPE, exported, make_student, noise
from nets import ALL

from fxquant.cli.main import run
from fxquant.errors import SettingError
from fxquant.exporters.float_onnx import export_float
from fxquant.exporters.latency import benchmark, shares
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.runtime import make_session, run_onnx
from fxquant.spec import QConfig


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "float.onnx"
    return export_float(ALL["residual"](), path, input_shape=SHAPE)


def test_the_float_file_is_the_model(float_file):
    found = run_onnx(float_file, noise(5))
    np.testing.assert_allclose(found, ALL["residual"]()(noise(5)).detach().numpy(), atol=1e-5)
    ops = {node.op_type for node in onnx.load(float_file).graph.node}
    assert not ops & {"QuantizeLinear", "DequantizeLinear"}


def test_figures_of_two_files_side_by_side(float_file, capsys):
    file = exported("residual", 4, 4).path
    arguments = ["--against", str(float_file), "--batch", "3", "--runs", "2", "--json"]
    assert run(["bench", str(file), *arguments]) == 0
    quantized, reference = json.loads(capsys.readouterr().out)
    assert quantized["size_bytes"] == file.stat().st_size
    assert quantized["peak_memory_bytes"] > 0
    for one in (quantized, reference):
        assert {(row["images"], row["runs"]) for row in one["latencies"]} == {(1, 2), (3, 2)}
        assert {row["threads"] for row in one["latencies"]} >= {1}
        for row in one["latencies"]:
            assert row["cpu_ms"] > 0
            assert 0 < row["lower_quartile_ms"] <= row["median_ms"] <= row["upper_quartile_ms"]
        whole = one["integer_share"] + one["conversion_share"] + sum(one["float_ops"].values())
        assert whole == pytest.approx(1)
    assert reference["integer_share"] == reference["conversion_share"] == 0
    assert quantized["integer_share"] > 0.2
    assert "Conv" not in "".join(quantized["float_ops"])


def test_a_table_for_people(float_file, capsys):
    file = exported("residual", 4, 4).path
    assert run(["bench", str(file), "--against", str(float_file), "--runs", "1"]) == 0
    shown = capsys.readouterr().out
    for expected in ("1 thread, 1 image", "size on disk", "time in integer kernels", "ratio"):
        assert expected in shown


def test_float_layers_are_told_from_integer_ones(tmp_path):
    student = make_student(ALL["residual"](), QConfig(4, 4, sum_bits=4))
    file = export_onnx(student, tmp_path / "4.onnx", input_shape=SHAPE, layout="portable")
    integer, _, float_ops = shares(file)
    assert integer == 0  # between 4-bit types ONNX Runtime computes in floating point
    assert any("Conv" in op for op in float_ops)


def test_what_cannot_be_measured(tmp_path, capsys):
    assert run(["bench", "nowhere.onnx"]) == 2
    assert "there is no file 'nowhere.onnx'" in capsys.readouterr().err
    with pytest.raises(SettingError, match="0 runs"):
        benchmark([exported("residual", 4, 4).path], runs=0)
    text = "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Neg(x) }"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]>' + text)
    onnx.save(model, tmp_path / "free.onnx")
    make_session(tmp_path / "free.onnx")
    with pytest.raises(SettingError, match=r"input 'x' is .*fixed sizes but for the first"):
        benchmark([tmp_path / "free.onnx"])
