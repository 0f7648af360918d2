"""Exported files against float ONNX and against ONNX Runtime's own static quantization, in one run.

    python benchmarks/export.py --output /tmp/export [--only resnet18 ...]

For each network: the float model, `onnxruntime.quantization.quantize_static` (QDQ, per channel, on
the same images), and fxquant's `runtime` files of W8A8 and W4A4. Weights are random and batch norms
fit the images: speed, size and kernels don't depend on what a network was trained for. Latencies
are measured in turns, on one thread, one image; compare them within a row only. Results are added
to results.json after each network, and printed as Markdown at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
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


def write_files(name: str, folder: Path, images: Tensor) -> dict[str, dict]:
    """All files of a network; what is known of each beside its speed."""
    model, shape = build(name, images), tuple(images.shape[1:])
    paths = {form: folder / f"{name}-{form}.onnx" for form in FORMS}
    export_float(model, paths["float"], input_shape=shape)
    prepared_float = folder / f"{name}-prepared.onnx"
    quant_pre_process(str(paths["float"]), str(prepared_float), skip_symbolic_shape=True)
    quantize_static(
        prepared_float,
        paths["static"],
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared_float.unlink()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    facts: dict[str, dict] = {form: {} for form in FORMS}
    for bits in (8, 4):
        form = f"W{bits}A{bits}"
        student = prepare(model, QConfig(bits, bits), shape).student.eval()
        calibrate(student, images, estimator=min_max)
        export_onnx(student, paths[form], input_shape=shape)
        parity = check_parity(student, paths[form], images)
        facts[form] = {"sqnr_db": parity.optimized.sqnr_db, "parity": parity.passed}
        facts[form]["bound_bytes"] = 1.03 * weights * bits / 8
    for form, path in paths.items():
        kernels = count_kernels(path)
        facts[form] |= {
            "layers": kernels.convolutions + kernels.linears,
            "integer_layers": kernels.convolutions_integer + kernels.linears_integer,
        }
    return facts


def measure(name: str, folder: Path, runs: int) -> dict[str, dict]:
    """Facts and figures of all files of one network."""
    side = SIZES.get(name, 224)
    images = torch.randn(
        CALIBRATION_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(1)
    )
    facts = write_files(name, folder, images)
    paths = [folder / f"{name}-{form}.onnx" for form in FORMS]
    for form, figures in zip(
        FORMS, benchmark(paths, batches=(1,), threads=(1,), runs=runs), strict=True
    ):
        facts[form] |= {
            "ms": figures.latencies[0].median_ms,
            "quartiles_ms": [
                figures.latencies[0].lower_quartile_ms,
                figures.latencies[0].upper_quartile_ms,
            ],
            "bytes": figures.size_bytes,
            "peak_memory_bytes": figures.peak_memory_bytes,
            "integer_share": figures.integer_share,
            "conversion_share": figures.conversion_share,
            "float_ops": dict(list(figures.float_ops.items())[:5]),
        }
    return facts


def to_markdown(results: dict[str, dict[str, dict]]) -> str:
    """A table with one network a row."""
    lines = [
        "| network | float, ms | static, ms | W8A8, ms | W4A4, ms | float / W4A4 | static / W8A8 | "
        "integer layers: static, W8A8, W4A4 | MB: float, static, W8A8, W4A4 |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    for name, forms in results.items():
        ms = [forms[form]["ms"] for form in FORMS]
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
            print(f"{name}: " + ", ".join(f"{f} {results[name][f]['ms']:.1f} ms" for f in FORMS))
    print(to_markdown(results))


if __name__ == "__main__":
    main()
