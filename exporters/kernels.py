"""Which layers of a file ONNX Runtime runs in integer kernels."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fxquant.exporters.external import load_model_without_data
from fxquant.exporters.runtime import make_session

_CONVOLUTIONS = frozenset({"Conv"})
_LINEAR = frozenset({"Gemm", "MatMul"})
_INTEGER_CONVOLUTIONS = frozenset({"QLinearConv", "ConvInteger"})
_INTEGER_LINEAR = frozenset(
    {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)


@dataclass(frozen=True)
class Kernels:
    """How many layers there are and how many of them run in integer kernels."""

    convolutions: int
    convolutions_integer: int
    linears: int
    linears_integer: int


def count_kernels(path: str | Path) -> Kernels:
    """Count layers in the file, and integer kernels in what ONNX Runtime makes of it here."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        make_session(path, optimized_to=optimized)
        after = _count_ops(optimized)
    before = _count_ops(path)
    return Kernels(
        convolutions=_total(before, _CONVOLUTIONS),
        convolutions_integer=_total(after, _INTEGER_CONVOLUTIONS),
        linears=_total(before, _LINEAR),
        linears_integer=_total(after, _INTEGER_LINEAR),
    )


def _count_ops(path: str | Path) -> Counter[str]:
    return Counter(node.op_type for node in load_model_without_data(path).graph.node)


def _total(counts: Counter[str], ops: frozenset[str]) -> int:
    return sum(counts[op] for op in ops)
