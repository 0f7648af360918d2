"""All that the benchmark asks of one network, step by step, in a process of its own."""

from __future__ import annotations

import os
import resource
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import onnxscript  # noqa: F401 - imported here for the process that all others are forked from
import torch
import torchvision  # noqa: F401
from pytorchcv import model_provider  # noqa: F401
from torch import Tensor

from fxquant.calibration import calibrate
from fxquant.errors import FxQuantError
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.prepare import Prepared, prepare
from fxquant.ranges import min_max, search
from fxquant.spec import QConfig, QSpec
from zoo import networks, randomize
from zoo.compare import max_error, outputs, sqnr
from zoo.macs import MATMUL, MacCounter, share_quantized

with suppress(ImportError):
    import timm  # noqa: F401

SETTLING, CALIBRATION, HELD_BACK, PARITY = 8, 8, 4, 4  # images for each
MOST_NAMED = 5


def run(name: str, log: Path, memory: int, last: str, results: Connection) -> None:
    """Measure one network; sends what is known so far after each step, and at last `None`.

    `memory` is the most bytes that this process may take, `last` the step to stop after. What is
    printed goes to `log`.
    """
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    torch.set_num_threads(1)
    torch.manual_seed(zlib.crc32(name.encode()))
    result: dict = {"name": name}
    for step, seconds in _steps(name, result, last):
        result.setdefault("seconds", {})[step] = round(seconds, 2)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        results.send(result)
    results.send(None)


def _steps(name: str, result: dict, last: str) -> Iterator[tuple[str, float]]:
    """Do one step after another; yields each with the seconds of processor time that it took.

    Stops where the others would have nothing to work on; reasons are in `failures` by step.
    """
    measured = _Measured(name, result)
    for step, needed in (
        (measured.build, True),
        (measured.prepare, True),
        (measured.pass_through, False),
        (measured.count, False),
        (measured.calibrate, True),
        (measured.compare, False),
        (measured.export, True),
        (measured.parity, False),
    ):
        start = time.process_time()
        failed = False
        result["step"] = step.__name__
        try:
            step()
        except Exception as error:
            traceback.print_exc()
            failed = True
            result.setdefault("failures", {})[step.__name__] = _reason(error)
        yield step.__name__, time.process_time() - start
        if (failed and needed) or step.__name__ == last:
            return


def _reason(error: Exception) -> str:
    """What a person would be told; an error that fxquant doesn't raise on purpose is a crash."""
    if isinstance(error, FxQuantError):
        return error.message
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"crash: {type(error).__name__}: {lines[0] if lines else ''}"


class _Measured:
    """One network on its way; each method is a step and adds what it finds to `result`."""

    network: networks.Network
    prepared: Prepared

    def __init__(self, name: str, result: dict):
        self.name, self.result = name, result
        self.folder = tempfile.TemporaryDirectory()

    def build(self) -> None:
        self.network = networks.load(self.name)
        net, shape = self.network.module, self.network.input_shape
        randomize.randomize(net, self.network.run, self.images(SETTLING, 0))
        counter = MacCounter(net)
        counter.run(self.network.run, self.images(1, 3))
        self.original = counter.float
        layers = {name: macs for name, macs in counter.float.items() if name != MATMUL}
        self.result |= {
            "input_shape": list(shape),
            "parameters": sum(p.numel() for p in net.parameters()),
            "macs": sum(layers.values()),
            "matmul_macs": counter.float[MATMUL],
            "convolution_macs": counter.convolution,
            "layers": len(layers),
        }

    def images(self, count: int, seed: int) -> Tensor:
        return randomize.images(count, self.network.input_shape, seed)

    def prepare(self) -> None:
        self.prepared = prepare(self.network.module, QConfig(8, 8), self.network.input_shape)
        left_out = getattr(self.prepared, "left_out", ())
        self.result |= {
            "rewrites": self.prepared.rewrites,
            "left_out": [
                {key: getattr(part, key, None) for key in ("name", "type", "reason")}
                for part in left_out[:MOST_NAMED]
            ],
            "left_out_count": len(left_out),
            "notes": [str(note) for note in getattr(self.prepared, "notes", ())][:MOST_NAMED],
            "fixed_size": list(getattr(self.prepared, "fixed_size", ())),
        }

    def pass_through(self) -> None:
        """Student without rounding against teacher, and teacher against the network itself."""
        x = self.images(2, 2)
        truth = outputs(self.prepared.teacher, x)
        self.result["pass_through_error"] = max_error(truth, outputs(self.prepared.student, x))
        if not networks.is_detector(self.network.module):
            self.result["teacher_error"] = max_error(outputs(self.network.module, x), truth)
        noisy = outputs(self.prepared.teacher, x + 0.01 * torch.randn_like(x))
        self.result["input_noise_db"] = sqnr(truth, noisy)

    def count(self) -> None:
        student = self.prepared.student
        counter = MacCounter(student)
        counter.run(student, self.images(1, 3))
        names = {layer_name(node) for node in quantized_layers(student)}
        share, missing = share_quantized(self.original, counter, names)
        worst = sorted(missing, key=missing.get, reverse=True)[:MOST_NAMED]
        done = sum(macs for name, macs in (counter.float + counter.quantized).items())
        self.result |= {
            "share_quantized": share,
            "float_layers": {name: missing[name] for name in worst},
            "student_macs": done - counter.float[MATMUL],
        }

    def calibrate(self) -> None:
        self.network.module.to("meta")  # its memory is needed
        calibrate(self.prepared.student, self.images(CALIBRATION, 1), estimator=_range)

    def compare(self) -> None:
        x = self.images(HELD_BACK, 2)
        truth = outputs(self.prepared.teacher, x)
        self.result["sqnr_db"] = sqnr(truth, outputs(self.prepared.student, x))

    def export(self) -> None:
        path = Path(self.folder.name) / "model.onnx"
        self.path = export_onnx(
            self.prepared.student, path, input_shape=self.network.input_shape, layout="runtime"
        )
        self.result["file_bytes"] = path.stat().st_size

    def parity(self) -> None:
        parity = check_parity(self.prepared.student, self.path, self.images(PARITY, 2))
        self.result["parity"] = {"passed": parity.passed, **asdict(parity)}


def _range(values: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """fxquant's search for activations; for 8-bit weights min-max, in a hundredth of the time."""
    return (search if spec.channel_axis is None else min_max)(values, spec)
