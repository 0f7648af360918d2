"""Whether this processor's kernels add up 8-bit products exactly."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper

from fxquant.exporters.runtime import make_session

_SIZE = 64


@cache
def saturates() -> bool:
    """Whether ONNX Runtime's kernels for uint8 times int8 saturate here, found by trying one.

    It is so on x86 processors without VNNI, for sums that leave 16 bits.
    """
    a = np.full((_SIZE, _SIZE), 255, np.uint8)
    b = np.full((_SIZE, _SIZE), 127, np.int8)
    (found,) = make_session(_product().SerializeToString()).run(None, {"a": a, "b": b})
    return bool((found != 255 * 127 * _SIZE).any())


def _product() -> onnx.ModelProto:
    sides = (("a", TensorProto.UINT8), ("b", TensorProto.INT8), ("product", TensorProto.INT32))
    a, b, product = (
        helper.make_tensor_value_info(name, kind, (_SIZE, _SIZE)) for name, kind in sides
    )
    node = helper.make_node("MatMulInteger", ["a", "b"], ["product"])
    graph = helper.make_graph([node], "product", [a, b], [product])
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)
