"""Files whose outputs are not those of any student, compared with one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import SHAPE, exported, noise
from hostile_onnx_claims import good
from onnx import TensorProto, helper, numpy_helper

from fxquant.errors import FxQuantError
from fxquant.exporters import tasks
from fxquant.restore import Restored


def giving(*nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, **numbers) -> onnx.ModelProto:
    """A file with these nodes, which reads the images of the student's tests."""
    model = good()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", *SHAPE))
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("output", kind, None))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(v), n) for n, v in numbers.items()
    )
    return model


def node(op: str, *names: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(op, list(names[:-1]), [names[-1]], **attributes)


FLAT = node("Flatten", "input", "f")
FIRST = node("Slice", "f", "s", "e", "a", "g")
TEN = {"s": [0], "e": [10], "a": [1]}


def with_two(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output.extend([onnx.ValueInfoProto(name="f")])
    return model


def marked(model: onnx.ModelProto) -> onnx.ModelProto:
    model.metadata_props.add(key="fxquant.detections", value="nms")
    return model


IDENTITY = node("Identity", "g", "output")
OUTPUTS = {
    "text": (giving(node("Cast", "input", "output", to=8), kind=8), "no array of numbers"),
    "no axes": (giving(node("ReduceSum", "input", "output", keepdims=0)), "a row for each image"),
    "no numbers": (giving(FLAT, FIRST, IDENTITY, s=[0], e=[0], a=[1]), "a row for each image"),
    "a sequence": (
        giving(node("SequenceConstruct", "input", "output")), "ONNX Runtime|no array of numbers",
    ),
    "one row for all": (
        giving(node("ReduceSum", "input", "o", "output", keepdims=1), o=[0]), "outputs have the sh",
    ),
    "five classes": (giving(FLAT, FIRST, IDENTITY, **{**TEN, "e": [5]}), "outputs have the shapes"),
    "images": (giving(node("Relu", "input", "output")), "outputs have the shapes"),
    "two outputs": (with_two(giving(FLAT, FIRST, IDENTITY, **TEN)), "outputs have the shapes"),
    "detections": (marked(giving(FLAT, FIRST, IDENTITY, **TEN)), "ONNX Runtime can't load"),
    "no finite numbers": (
        giving(FLAT, FIRST, node("Div", "g", "z", "output"), **TEN, z=np.float32(0)),
        "values that are not finite",
    ),
    "another input": (
        giving(node("Add", "input", "more", "output")), "ONNX Runtime|inputs",
    ),
}  # fmt: skip


def verified(model: onnx.ModelProto, tmp_path: Path, monkeypatch) -> dict:
    """What verifying a file gives, in this process and without its limits."""
    student = exported("plain", 8, 8).student
    run = Restored(student, None, None, noise(16), {})
    monkeypatch.setattr(tasks, "_restored", lambda order: (run, run.images))
    for name in ("hold_memory", "hold_clock", "hold_processor"):
        monkeypatch.setattr(tasks, name, lambda *_: None)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    order = {"file": str(tmp_path / "m.onnx"), "limits": {"seconds": None, "memory": None}}
    order |= {"called_in": os.getcwd(), "search_path": []}
    (tmp_path / "place").mkdir()
    return tasks.verify(order, tmp_path / "place")


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_no_student_gives(name, tmp_path, monkeypatch):
    model, says = OUTPUTS[name]
    with pytest.raises(FxQuantError, match=says):
        verified(model, tmp_path, monkeypatch)


def test_whole_numbers_are_compared_as_such(tmp_path, monkeypatch):
    model = giving(FLAT, FIRST, node("Cast", "g", "output", to=7), kind=TensorProto.INT64, **TEN)
    assert verified(model, tmp_path, monkeypatch)["passed"] is False


def test_the_file_itself_passes(tmp_path, monkeypatch):
    model = onnx.load(exported("plain", 8, 8).path)
    assert verified(model, tmp_path, monkeypatch)["passed"] is True
