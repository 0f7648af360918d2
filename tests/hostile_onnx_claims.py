"""ONNX files that claim more than they have, need more than there is, or are no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from hostile_box import Case
from hostile_onnx import ADD, integers
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def stored(folder: Path, model: ModelProto) -> list[str]:
    (folder / "evil.onnx").write_bytes(model.SerializeToString())
    return ["evil.onnx", "--runs", "1"]


def changed(change: Callable[[ModelProto], object], says: str, *arguments: str) -> Case:
    """A good file after a change."""

    def make(folder: Path) -> list[str]:
        model = good()
        change(model)
        return [*stored(folder, model), *arguments]

    return Case(make, says, "bench")


def good() -> ModelProto:
    """A file that there is nothing wrong with: `input`, plus the one number of `w`, is `output`."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", ("batch", 3, 8, 8)), ("output", None))
    ]
    tensors = [numpy_helper.from_array(np.ones(1, np.float32), "w")]
    graph = helper.make_graph([ADD], "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _functions(count: int, calls: int, *, ring: bool = False) -> Callable[[ModelProto], None]:
    """Functions of which each calls the next so many times."""

    def change(model: ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("evil", 1))
        imports = list(model.opset_import)
        for i in range(count):
            last = i + 1 == count and not ring
            op, domain = ("Relu", "") if last else (f"f{(i + 1) % count}", "evil")
            names = ["x", *(f"t{k}" for k in range(calls - 1)), "y"]
            nodes = [helper.make_node(op, [a], [b], domain=domain) for a, b in pairwise(names)]
            body = helper.make_function("evil", f"f{i}", ["x"], ["y"], nodes, imports)
            model.functions.append(body)
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("f0", ["input"], ["output"], domain="evil"))

    return change


def _many_nodes(model: ModelProto, count: int = 50_001) -> None:
    del model.graph.node[:]
    names = ["input", *(f"t{i}" for i in range(count - 1)), "output"]
    for a, b in pairwise(names):
        model.graph.node.add(op_type="Relu", input=[a], output=[b])


def _nodes_inside(model: ModelProto) -> None:
    """All of them in a branch that is never taken."""
    inner = good()
    _many_nodes(inner)
    branch = inner.graph
    del branch.input[:]
    node = helper.make_node("If", ["w"], ["output"], then_branch=branch, else_branch=branch)
    del model.graph.node[:]
    model.graph.node.append(node)


def _loop(model: ModelProto) -> None:
    infos = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("c", "c2")]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), infos[0], x],
        [infos[1], y],
    )
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Loop", ["n", "go", "input"], ["output"], body=body))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "n"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))


def _tensor(**fields: object) -> Callable[[ModelProto], None]:
    """The file's one tensor after a change; `dims` are its sizes."""

    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        if "dims" in fields:
            del tensor.dims[:]
            tensor.dims.extend(fields.pop("dims"))
        for key, value in fields.items():
            setattr(tensor, key, value)

    return change


def _typed(**fields: Sequence[object]) -> Callable[[ModelProto], None]:
    """The file's one tensor in fields of their own kind, fewer numbers than it claims."""

    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.dims[0] = 10**9
        for key, values in fields.items():
            getattr(tensor, key).extend(values)

    return change


def _input(*sizes: int | str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        value = helper.make_tensor_value_info("input", TensorProto.FLOAT, sizes)
        model.graph.input[0].CopyFrom(value)

    return change


def _value(*sizes: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.value_info.append(
            helper.make_tensor_value_info("inner", TensorProto.FLOAT, sizes)
        )

    return change


def _sparse(model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    sparse.dims.extend([2**20, 2**20])


def _computed(*nodes: NodeProto, **numbers: Sequence[int]) -> Callable[[ModelProto], None]:
    """Other nodes, and whole numbers that they read."""

    def change(model: ModelProto) -> None:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(integers(n, *values) for n, values in numbers.items())

    return change


def _node(op: str, *names: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, list(names[:-1]), [names[-1]], **attributes)


SIZE = "not as large as it claims"
MEMORY = "memory|alloc|ONNX Runtime"
GROWN = [
    _node("ConstantOfShape", "s", "c"),
    _node("ReduceSum", "c", "r", keepdims=0),
    _node("Add", "input", "r", "output"),
]
RNN = {"hidden_size": 2**31 - 1, "direction": "forward"}
CASES = {
    "ONNX with functions that double 25 times": changed(_functions(25, 2), "more than 50,000"),
    "ONNX with functions that double 9,000 times": changed(_functions(9000, 2), "more than 50,000"),
    "ONNX with a function that calls itself": changed(_functions(1, 1, ring=True), "call themsel"),
    "ONNX with functions in a ring": changed(_functions(5, 2, ring=True), "call themselves"),
    "ONNX of 50,001 nodes": changed(_many_nodes, "more than 50,000 nodes"),
    "ONNX of 50,001 nodes in a branch": changed(_nodes_inside, "more than 50,000 nodes"),
    "ONNX that never ends": changed(_loop, "takes longer", "--time-limit", "2"),
    "ONNX with an input of 10^9 numbers": changed(_input(1, 3, 20000, 20000), "are taken"),
    "ONNX with an input of 10^18 numbers": changed(_input("b", 10**9, 10**9), "are taken"),
    "ONNX with an input of negative size": changed(_input("b", -3, 8, 8), "are taken"),
    "ONNX with a value of 10^12 numbers": changed(_value(10**6, 10**6), "are taken"),
    "ONNX with a value of 100 dimensions": changed(_value(*[1] * 100), "100 dimensions"),
    "ONNX with a sparse tensor of 10^12": changed(_sparse, "sparse tensor of 1048576 x 1048576"),
    "ONNX with a tensor larger than its bytes": changed(_tensor(dims=[2]), SIZE),
    "ONNX with a tensor of 2^80": changed(_tensor(dims=[2**40, 2**40], raw_data=b""), SIZE),
    "ONNX with a tensor of negative size": changed(_tensor(dims=[-5]), "negative size"),
    "ONNX with a tensor of 1,000 dimensions": changed(_tensor(dims=[1] * 1000), "1,000 dimension"),
    "ONNX with a tensor of another kind": changed(_tensor(data_type=TensorProto.DOUBLE), SIZE),
    "ONNX with a tensor of no kind": changed(_tensor(data_type=77), "ONNX Runtime can't"),
    "ONNX with a billion floats in one": changed(_typed(float_data=[1.0]), SIZE),
    "ONNX with a billion numbers in none": changed(_typed(), SIZE),
    "ONNX with a billion texts in two": changed(_typed(string_data=[b"a", b"b"]), SIZE),
    "ONNX that grows 12 GB": changed(_computed(*GROWN, s=[3, 10**9]), MEMORY),
    "ONNX that spreads one number": changed(
        _computed(
            _node("Expand", "w", "s", "c"),
            _node("ReduceSum", "c", "r", keepdims=0),
            GROWN[2],
            s=[10**5, 10**5],
        ),
        MEMORY,
    ),
    "ONNX that repeats its input": changed(
        _computed(_node("Tile", "input", "s", "output"), s=[1, 10**4, 10**3, 10]), MEMORY
    ),
    "ONNX that counts to 10^10": changed(
        _computed(
            _node("Range", "a", "b", "d", "c"),
            _node("Cast", "c", "f", to=1),
            _node("ReduceSum", "f", "r", keepdims=0),
            GROWN[2],
            **{"a": [0], "b": [10**10], "d": [1]},
        ),
        MEMORY,
    ),
    "ONNX that pads without end": changed(
        _computed(_node("Pad", "input", "s", "output"), s=[0, 0, 10**5, 10**5, 0, 0, 10**5, 10**5]),
        MEMORY,
    ),
    "ONNX of a network of 2^31 cells": changed(
        _computed(
            _node("Reshape", "input", "s", "x"),
            _node("LSTM", "x", "w", "w", "output", **RNN),
            s=[1, 1, 192],
        ),
        "ONNX Runtime",
    ),
    "ONNX that divides by nothing": changed(
        _computed(
            _node("Div", "s", "z", "d"),
            _node("Cast", "d", "f", to=1),
            _node("Add", "input", "f", "output"),
            s=[1],
            z=[0],
        ),
        "ONNX Runtime|broke down",
    ),
}
