"""Exported files against float ONNX and against ONNX Runtime's own static quantization, in one run.

    python benchmarks/export.py --output /tmp/export [--only resnet18 ...]

For each network: the float model, `onnxruntime.quantization.quantize_static` (QDQ, per channel, on
the same images), and fxquant's `runtime` files of W8A8 and W4A4. Weights are random and batch norms
fit the images: speed, size and kernels don't depend on what a network was trained for. Latencies
are the processor's time for one image on one thread, the files measured in turns; compare them
within a row only. Results are added to results.json after each network, and printed as Markdown at
the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from fxquant.calibration import calibrate
from fxquant.exporters.float_onnx import export_float
from fxquant.exporters.kernels import count_kernels
from fxquant.exporters.latency import benchmark
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.prepare import prepare
from fxquant.ranges import min_max
from fxquant.spec import QConfig

NETWORKS = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "densenet121",
    "googlenet",
    "inception_v3",
    "efficientnet_b0",
    "vgg11",
    "regnet_y_400mf",
    "mnasnet0_5",
    "resnet50",
)
SIZES = {"inception_v3": 299}
FORMS = ("float", "static", "W8A8", "W4A4")
CALIBRATION_IMAGES = 4


def build(name: str, images: Tensor) -> nn.Module:
    """A network with random weights whose batch norms fit the images, in eval mode."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval()


class Reader(CalibrationDataReader):
    """Gives static quantization one image after another."""

    def __init__(self, images: Tensor):
        self.images = iter(images.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"input": image.numpy()}


def write_files(name: str, paths: dict[str, Path]) -> None:
    """Make all files of a network."""
    side = SIZES.get(name, 224)
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(CALIBRATION_IMAGES, 3, side, side, generator=rng)
    model, shape = build(name, images), tuple(images.shape[1:])
    export_float(model, paths["float"], input_shape=shape)
    folded = paths["float"].with_suffix(".folded")
    quant_pre_process(str(paths["float"]), str(folded), skip_symbolic_shape=True)
    quantize_static(
        folded,
        paths["static"],
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    folded.unlink()
    for bits in (8, 4):
        path = paths[f"W{bits}A{bits}"]
        student = prepare(model, QConfig(bits, bits), shape).student.eval()
        calibrate(student, images, estimator=min_max)
        export_onnx(student, path, input_shape=shape)
        check_parity(student, path, images)


def count_weights(path: Path) -> int:
    """Numbers in the weights of convolutions and linear layers of a float file."""
    return sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(path).graph.initializer
        if len(tensor.dims) > 1
    )


def measure(name: str, folder: Path, runs: int) -> dict[str, dict]:
    """Figures of all files of one network; files that are there are not made again."""
    paths = {form: folder / f"{name}-{form}.onnx" for form in FORMS}
    if not all(path.exists() for path in paths.values()):
        write_files(name, paths)
    weights = count_weights(paths["float"])
    measured = benchmark(list(paths.values()), batches=(1,), threads=(1,), runs=runs)
    results = {}
    for (form, path), figures in zip(paths.items(), measured, strict=True):
        kernels, latency = count_kernels(path), figures.latencies[0]
        entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        results[form] = {
            "cpu_ms": latency.cpu_ms,
            "ms": latency.median_ms,
            "quartiles_ms": [latency.lower_quartile_ms, latency.upper_quartile_ms],
            "layers": kernels.convolutions + kernels.linears,
            "integer_layers": kernels.convolutions_integer + kernels.linears_integer,
            "bytes": figures.size_bytes,
            "bytes_a_weight": figures.size_bytes / weights,
            "peak_memory_bytes": figures.peak_memory_bytes,
            "integer_share": figures.integer_share,
            "conversion_share": figures.conversion_share,
            "float_ops": dict(list(figures.float_ops.items())[:5]),
            "parity": entries.get("fxquant.parity"),
        }
    return results


def to_markdown(results: dict[str, dict[str, dict]]) -> str:
    """A table with one network a row."""
    lines = [
        "| network | float, CPU ms | static | W8A8 | W4A4 | float / W4A4 | static / W8A8 | "
        "integer layers: static, W8A8, W4A4 | MB: float, static, W8A8, W4A4 |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    for name, forms in results.items():
        ms = [forms[form]["cpu_ms"] for form in FORMS]
        layers = ", ".join(
            f"{forms[form]['integer_layers']} of {forms[form]['layers']}" for form in FORMS[1:]
        )
        sizes = ", ".join(f"{forms[form]['bytes'] / 1e6:.3g}" for form in FORMS)
        cells = [name, *(f"{value:.1f}" for value in ms)]
        cells += [f"{ms[0] / ms[3]:.2f}", f"{ms[1] / ms[2]:.2f}", layers, sizes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in options.only:
        if name not in results:
            results[name] = measure(name, options.output, options.runs)
            path.write_text(json.dumps(results, indent=1))
            print(
                f"{name}: " + ", ".join(f"{f} {results[name][f]['cpu_ms']:.1f} ms" for f in FORMS)
            )
    print(to_markdown(results))


if __name__ == "__main__":
    main()
