"""Exported files against float ONNX and against ONNX Runtime's own static quantization, in one run.

    python benchmarks/export.py --output /tmp/export [--only resnet18 ...]
    python benchmarks/export.py --output /tmp/mobilenet --only mobilenet_v2 \
        --state mobilenet_v2.safetensors

For each network: the float model, `onnxruntime.quantization.quantize_static` (QDQ, per channel, on
the same images), and fxquant's `runtime` files of W8A8 for any processor and for those with VNNI,
of W7A8 and of W4A4. Weights are random and batch norms fit the images, unless a state dict is
given: speed, size and kernels don't depend on what a network was trained for. Images are noise of
several scales. SQNR is that of the file's output, as this processor computes it, against the float
model's on other such images. Latencies are the processor's time for one image on one thread, the
files measured in turns; compare them within a row only. Results are added to results.json after
each network, and printed as Markdown at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import torchvision
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from torch import Tensor, nn

from fxquant.calibration import calibrate
from fxquant.exporters.float_onnx import export_float
from fxquant.exporters.kernels import count_kernels
from fxquant.exporters.latency import benchmark
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity, run_onnx
from fxquant.graph.prepare import prepare
from fxquant.ranges import min_max
from fxquant.report.closeness import sqnr_db
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
# Of fxquant's files: widths of weights and activations, and the processors that they are for.
STUDENTS = {
    "W8A8": (8, 8, "any"),
    "W8A8 vnni": (8, 8, "vnni"),
    "W7A8": (7, 8, "any"),
    "W4A4": (4, 4, "any"),
}
FORMS = ("float", "static", *STUDENTS)
CALIBRATION_IMAGES = 4


def make_images(count: int, side: int, seed: int) -> Tensor:
    """Normalised noise of several scales, (count, 3, side, side)."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, side, side)
    for scale in (1, 4, 16, 64):
        coarse = torch.randn(count, 3, -(-side // scale), -(-side // scale), generator=rng)
        images += F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return images / images.std()


def build(name: str, images: Tensor, state: Path | None) -> nn.Module:
    """A network in eval mode, its weights random and its batch norms as the images have it.

    With `state` both are those of that file.
    """
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    if state is not None:
        model.load_state_dict(load_file(state))
        return model.eval()
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


def write_files(name: str, paths: dict[str, Path], state: Path | None) -> None:
    """Make all files of a network."""
    images = make_images(CALIBRATION_IMAGES, SIZES.get(name, 224), seed=1)
    model, shape = build(name, images, state), tuple(images.shape[1:])
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
    for form, (weight_bits, act_bits, processor) in STUDENTS.items():
        student = prepare(model, QConfig(weight_bits, act_bits), shape).student.eval()
        calibrate(student, images, estimator=min_max)
        export_onnx(student, paths[form], input_shape=shape, processor=processor)
        check_parity(student, paths[form], images)


def count_weights(path: Path) -> int:
    """Numbers in the weights of convolutions and linear layers of a float file."""
    return sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(path).graph.initializer
        if len(tensor.dims) > 1
    )


def measure(name: str, folder: Path, runs: int, state: Path | None) -> dict[str, dict]:
    """Figures of all files of one network; files that are there are not made again."""
    paths = {form: folder / f"{name}-{form.replace(' ', '-')}.onnx" for form in FORMS}
    if not all(path.exists() for path in paths.values()):
        write_files(name, paths, state)
    images = make_images(16, SIZES.get(name, 224), seed=2)
    truth = run_onnx(paths["float"], images).astype(np.float64)
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
            "sqnr_db": sqnr_db(
                float(np.square(truth).sum()),
                float(np.square(run_onnx(path, images) - truth).sum()),
            ),
            "parity": entries.get("fxquant.parity"),
        }
    return results


def to_markdown(results: dict[str, dict[str, dict]]) -> str:
    """A table with one network a row."""
    lines = [
        f"| network | {' | '.join(FORMS)}, CPU ms | integer layers | MB | SQNR, dB |",
        f"|-|{'-|' * len(FORMS)}-|-|-|",
    ]
    for name, forms in results.items():
        layers = [f"{forms[f]['integer_layers']} of {forms[f]['layers']}" for f in FORMS[1:]]
        lists = (
            list(dict.fromkeys(layers)),
            [f"{forms[form]['bytes'] / 1e6:.3g}" for form in FORMS],
            [f"{forms[form]['sqnr_db']:.1f}" for form in FORMS[1:]],
        )
        cells = [name, *(f"{forms[form]['cpu_ms']:.1f}" for form in FORMS)]
        lines.append(f"| {' | '.join([*cells, *(', '.join(row) for row in lists)])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--state", type=Path, help="weights of the one network, .safetensors")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in options.only:
        if name not in results:
            results[name] = measure(name, options.output, options.runs, options.state)
            path.write_text(json.dumps(results, indent=1))
            print(
                f"{name}: " + ", ".join(f"{f} {results[name][f]['cpu_ms']:.1f} ms" for f in FORMS)
            )
    print(to_markdown(results))


if __name__ == "__main__":
    main()
