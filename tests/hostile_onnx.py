"""ONNX files from elsewhere: weights in other people's files, sizes and operators that aren't."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hostile_box import Case
from hostile_pickles import SHAPE
from onnx import NodeProto, TensorProto, helper, numpy_helper


def outside(location: str, length: int = 4) -> TensorProto:
    """A tensor that says that its number lies in a file."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(length))
    return tensor


def written(
    folder: Path,
    nodes: Sequence[NodeProto],
    tensors: Sequence[TensorProto] = (),
    sizes: Sequence[int | str] = ("batch", 3, 8, 8),
) -> None:
    """evil.onnx with these nodes, from `input` to `output`."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", sizes), ("output", None))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "evil.onnx").write_bytes(model.SerializeToString())


ADD = helper.make_node("Add", ["input", "w"], ["output"])
CONSTANT = [
    helper.make_node("Constant", [], ["w"], value=outside("/etc/passwd")),
    ADD,
]


def graph(says: str, *args, link: str | None = None) -> Case:
    def make(folder: Path) -> list[str]:
        if link:
            os.symlink(link, folder / "w.bin")
        written(folder, *args)
        return ["evil.onnx"]

    return Case(make, says, "bench")


def content(data: bytes, says: str, *arguments: str, command: str = "bench") -> Case:
    def make(folder: Path) -> list[str]:
        (folder / "evil.onnx").write_bytes(data)
        return ["evil.onnx", *arguments]

    return Case(make, says, command)


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


OUTSIDE = "which is no file in its folder"
CASES = {
    "ONNX with weights above its folder": graph(OUTSIDE, [ADD], [outside("../../../etc/passwd")]),
    "ONNX with weights at an absolute path": graph(OUTSIDE, [ADD], [outside("/etc/passwd")]),
    "ONNX with weights behind a link": graph(
        OUTSIDE, [ADD], [outside("w.bin")], link="/etc/passwd"
    ),
    "ONNX with weights that are gone": graph(OUTSIDE, [ADD], [outside("gone.bin")]),
    "ONNX with weights of a device": graph("not as large", [ADD], [outside("/dev/zero", 10**12)]),
    "ONNX with a constant outside": graph(OUTSIDE, CONSTANT),
    "ONNX with an operator of its own": graph(
        "ONNX Runtime can't load", [helper.make_node("Evil", ["input"], ["output"], domain="evil")]
    ),
    "ONNX that can't be computed": graph(
        "ONNX Runtime can't",
        [helper.make_node("Reshape", ["input", "s"], ["output"])],
        [integers("s", 7, 7)],
    ),
    "ONNX with a tensor of 4 TB": graph(
        "memory ran out|ONNX Runtime can't",
        [
            helper.make_node("ConstantOfShape", ["s"], ["c"]),
            helper.make_node("Add", ["input", "c"], ["output"]),
        ],
        [integers("s", 10**6, 10**6)],
    ),
    "ONNX of free sizes": graph(
        "and fixed sizes but for the first",
        [helper.make_node("Identity", ["input"], ["output"])],
        [],
        ("batch", "channels", "height"),
    ),
    "ONNX that is cut off": content(b"\x08\x0a\x12\x07pytorch\x3a\xff\xff\x01ab", "read as ONNX"),
    "ONNX that is text": content(b"hello", "can't be read as ONNX"),
    "ONNX that is empty": content(b"", "ONNX Runtime can't load"),
    "ONNX for a model to quantize": content(
        b"\x08\x0a\x12\x07pytorch", "which is already exported", *SHAPE, command="quantize"
    ),
    "ONNX against no run": content(
        b"\x08\x0a", "holds no finished run", "--against", ".", command="verify"
    ),
}
