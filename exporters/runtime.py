"""ONNX Runtime sessions: quiet, with as many threads as torch uses here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from fxquant.errors import ExportError
from fxquant.memory import is_out_of_memory

_FATAL = 4
BATCH = 64
# An optimised graph may be too large for one file even where the model wasn't.
_WEIGHTS_OUTSIDE = {
    "session.optimized_model_external_initializers_file_name": "optimized.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


def make_session(
    model: str | Path | bytes,
    *,
    optimize: bool = True,
    precise: bool = False,
    optimized_to: Path | None = None,
    threads: int | None = None,
    profile_to: Path | None = None,
) -> ort.InferenceSession:
    """Load a file, or the bytes of one, on the CPU, on as many threads as torch uses if not told.

    `precise` asks for kernels that are exact on every processor (`session.x64quantprecision`).
    `optimized_to` is where to save what ONNX Runtime makes of the graph, `profile_to` how the name
    of the file begins that says what each kernel took. Raises ExportError where ONNX Runtime
    refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that wait in a busy loop take the machine from whatever else runs on it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
        for key, value in _WEIGHTS_OUTSIDE.items():
            options.add_session_config_entry(key, value)
    if profile_to is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_to)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't load {_name(model)}: {error}") from error


def _name(model: str | Path | bytes) -> str:
    return "the model" if isinstance(model, bytes) else f"'{model}'"


Arrays = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]


def run_onnx(
    path: str | Path, images: Arrays, *, optimize: bool = True, precise: bool = False
) -> np.ndarray:
    """First output of the file for `images`, (n, channels, height, width); shape (n, ...).

    Of several inputs `images` has one such array each.
    """
    session = make_session(path, optimize=optimize, precise=precise)
    return np.concatenate([outputs[0] for outputs in run_batches(session, images)])


def run_batches(
    session: ort.InferenceSession,
    images: Arrays,
    names: Sequence[str] | None = None,
    batch: int = BATCH,
) -> Iterator[list[np.ndarray]]:
    """Values of the named outputs, all where None, for one batch of images after another."""
    inputs = (images,) if isinstance(images, Tensor | np.ndarray) else images
    if len(inputs) != len(session.get_inputs()):
        raise ExportError(
            f"the file takes {len(session.get_inputs())} inputs; expected {len(inputs)}"
        )
    arrays = {
        value.name: np.ascontiguousarray(np.asarray(x, dtype=np.float32))
        for value, x in zip(session.get_inputs(), inputs, strict=True)
    }
    count = len(next(iter(arrays.values())))
    for start in range(0, count, batch):
        yield call(session, {n: x[start : start + batch] for n, x in arrays.items()}, names)


def call(
    session: ort.InferenceSession,
    arrays: dict[str, np.ndarray],
    names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """The named outputs, all where None; raises ExportError where ONNX Runtime can't compute them.

    Errors that mean too little memory stay what they are.
    """
    try:
        return session.run(names, arrays)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ExportError(f"ONNX Runtime can't run the file: {error}") from error
