"""How fast a file runs here, how large it is, and in which kernels its time goes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fxquant.errors import SettingError
from fxquant.exporters.external import size_on_disk
from fxquant.exporters.figures import Benchmark, Latency
from fxquant.exporters.memory import peak_memory
from fxquant.exporters.processor import saturates
from fxquant.exporters.runtime import call, make_session
from fxquant.exporters.saturation import saturating_names, saturation_note

_WARM_UP = 3
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_BYTES = frozenset({"uint8", "int8"})


def benchmark(
    paths: Sequence[str | Path],
    *,
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] | None = None,
    runs: int = 30,
) -> list[Benchmark]:
    """Measure files side by side: each round calls every file once, so that all share the noise.

    `threads` is one and all of this process's processors where it is None. Inputs are noise.
    Raises ExportError where ONNX Runtime can't load a file, SettingError where an input has a
    size beside the batch that is not fixed.
    """
    if runs < 1 or min(batches) < 1:
        raise SettingError(f"{runs} runs of {min(batches)} images can't be measured")
    threads = threads or sorted({1, len(os.sched_getaffinity(0))})
    timings: list[list[Latency]] = [[] for _ in paths]
    for count in threads:
        sessions = [make_session(path, threads=count) for path in paths]
        for images in batches:
            found = _side_by_side(sessions, count, images, runs)
            for timing, latency in zip(timings, found, strict=True):
                timing.append(latency)
    return [
        _benchmark_of(path, tuple(timing), max(batches))
        for path, timing in zip(paths, timings, strict=True)
    ]


def _benchmark_of(path: str | Path, latencies: tuple[Latency, ...], images: int) -> Benchmark:
    memory = peak_memory(path, input_shapes(make_session(path), images))
    saturating = len(saturating_names(path))
    note = saturation_note(saturating, here=saturates()) if saturating else None
    spent = shares(path)
    return Benchmark(str(path), size_on_disk(path), memory, latencies, *spent, saturating, note)


def _side_by_side(
    sessions: list[ort.InferenceSession], threads: int, images: int, runs: int
) -> list[Latency]:
    feeds = [make_inputs(session, images) for session in sessions]
    taken: list[list[tuple[float, float]]] = [[] for _ in sessions]
    for turn in range(_WARM_UP + runs):
        for session, feed, measured in zip(sessions, feeds, taken, strict=True):
            start, cpu_start = time.perf_counter(), time.process_time()
            call(session, feed)
            if turn >= _WARM_UP:
                measured.append((time.perf_counter() - start, time.process_time() - cpu_start))
    return [_latency(threads, images, 1e3 * np.array(measured)) for measured in taken]


def _latency(threads: int, images: int, taken_ms: np.ndarray) -> Latency:
    """From (time passed, processor's time) of each run."""
    lower, median, upper = np.percentile(taken_ms[:, 0], (25, 50, 75))
    cpu = np.median(taken_ms[:, 1])
    return Latency(threads, images, len(taken_ms), *map(float, (median, lower, upper, cpu)))


def make_inputs(session: ort.InferenceSession, images: int) -> dict[str, np.ndarray]:
    """Noise for each input of a session; whole numbers are zero, which any index may be."""
    rng, arrays = np.random.default_rng(0), {}
    for name, (shape, dtype) in input_shapes(session, images).items():
        values = rng.standard_normal(shape) if np.dtype(dtype).kind == "f" else np.zeros(shape)
        arrays[name] = values.astype(dtype)
    return arrays


def input_shapes(session: ort.InferenceSession, images: int) -> dict[str, tuple[list[int], str]]:
    """Shape and numpy type of each input where the first size is `images` if it is free."""
    shapes = {}
    for value in session.get_inputs():
        sizes = list(value.shape)
        if sizes and not isinstance(sizes[0], int):
            sizes[0] = images
        free = [size for size in sizes if not isinstance(size, int)]
        if free or value.type not in _TYPES:
            raise SettingError(
                f"input '{value.name}' is {value.type} of shape {value.shape}; expected numbers, "
                "and fixed sizes but for the first"
            )
        shapes[value.name] = (sizes, _TYPES[value.type])
    return shapes


def shares(path: str | Path, calls: int = 5) -> tuple[float, float, dict[str, float]]:
    """Shares of kernel time on integers, on conversions, and by operator of the rest.

    As ONNX Runtime's profiler sees it, one image on one thread.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(path, threads=1, profile_to=Path(folder) / "profile")
        feed = make_inputs(session, 1)
        for _ in range(calls):
            call(session, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    time_of: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            time_of[_class_of(event["args"])] += event["dur"]
    total = max(sum(time_of.values()), 1)
    integer, conversion = time_of.pop("integer", 0), time_of.pop("conversion", 0)
    return (
        integer / total,
        conversion / total,
        {op: spent / total for op, spent in time_of.most_common()},
    )


def _class_of(kernel: dict[str, Any]) -> str:
    """`integer`, `conversion`, or the operator's name."""
    if kernel["op_name"] in _CONVERSIONS:
        return "conversion"
    read = next(iter(kernel.get("input_type_shape") or [{}]), {})
    return "integer" if _BYTES & read.keys() else kernel["op_name"]
