"""Which layers of a file ONNX Runtime runs in integer kernels."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from fxquant.exporters.external import load_model_without_data
from fxquant.exporters.runtime import make_session

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_LINEAR = frozenset({"Gemm", "MatMul"})
_INTEGER_CONVOLUTIONS = frozenset({"QLinearConv", "ConvInteger"})
_INTEGER_LINEAR = frozenset(
    {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)
_WEIGHT_SCALE = ".weight_scale"


@dataclass(frozen=True)
class Kernels:
    """How many layers there are and how many of them run in integer kernels."""

    convolutions: int
    convolutions_integer: int
    linears: int
    linears_integer: int


def count_kernels(path: str | Path) -> Kernels:
    """Count layers in the file, and integer kernels in what ONNX Runtime makes of it here."""
    after = Counter(node.op_type for node in _optimized(path))
    before = Counter(node.op_type for node in load_model_without_data(path).graph.node)
    return Kernels(
        convolutions=_total(before, _CONVOLUTIONS),
        convolutions_integer=_total(after, _INTEGER_CONVOLUTIONS),
        linears=_total(before, _LINEAR),
        linears_integer=_total(after, _INTEGER_LINEAR),
    )


def integer_layers(path: str | Path) -> Counter[str]:
    """How many calls of each layer ONNX Runtime runs in integer kernels here, by layer name.

    Products of two values, which have no weights to be named after, are counted under ''.
    """
    return Counter(
        next((name for name in node.input if name.endswith(_WEIGHT_SCALE)), "").removesuffix(
            _WEIGHT_SCALE
        )
        for node in _optimized(path)
        if node.op_type in _INTEGER_CONVOLUTIONS | _INTEGER_LINEAR
    )


def _optimized(path: str | Path) -> list[onnx.NodeProto]:
    """The nodes of the graph that ONNX Runtime makes of a file on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        make_session(path, optimized_to=optimized)
        return list(load_model_without_data(optimized).graph.node)


def _total(counts: Counter[str], ops: frozenset[str]) -> int:
    return sum(counts[op] for op in ops)
