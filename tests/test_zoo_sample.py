"""Networks of the zoos that have, between them, what others have; `make zoo` goes over all."""

from __future__ import annotations

import statistics

import pytest
import torch
from test_kernels import predicted
from zoo import networks, randomize
from zoo.compare import max_error, outputs, sqnr
from zoo.macs import MacCounter, shares

from fxquant.calibration import adjust_layers, calibrate
from fxquant.exporters.kernels import integer_layers
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.prepare import prepare
from fxquant.report.layers import list_layers
from fxquant.spec import QConfig

UNPOOLS = "pytorchcv:enet_cityscapes"
SAMPLE = {
    "torchvision:mobilenet_v3_small": "squeeze and excitation, hardswish",
    "torchvision:shufflenet_v2_x0_5": "channel shuffle, split",
    "torchvision:squeezenet1_1": "no batch norm, concatenation",
    "torchvision:lraspp_mobilenet_v3_large": "a dict of images",
    "torchvision:ssdlite320_mobilenet_v3_large": "a detector",
    "pytorchcv:densenet40_k12_cifar10": "batch norm before the convolution",
    "pytorchcv:preresnet20_cifar10": "the same in residual blocks",
    UNPOOLS: "transposed convolution, PReLU, unpooling",
    "pytorchcv:hardnet39ds": "dense links, depthwise convolution",
    "timm:test_resnet": "timm's own batch norm layers",
    "timm:test_vit": "attention, layer norm",
}
# In large what the others, the constructs and the tests of detectors have in small.
LEFT_TO_SOAK = (
    *("torchvision:lraspp_mobilenet_v3_large", "torchvision:ssdlite320_mobilenet_v3_large"),
    *("pytorchcv:densenet40_k12_cifar10", UNPOOLS, "pytorchcv:hardnet39ds"),
)
# In dB, at 8 bits. Max-unpooling puts a number back elsewhere where two neighbours are equal on
# the grid.
LEAST_SQNR = {UNPOOLS: 14}
# Every layer of these runs in an integer kernel.
ALL_INTEGER = (
    *("torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5"),
    *("torchvision:squeezenet1_1", "pytorchcv:preresnet20_cifar10"),
)


def _in_test(name: str):
    marks = [pytest.mark.soak] * (name in LEFT_TO_SOAK)
    return pytest.param(name, marks=marks, id=name.replace(":", "-"))


@pytest.fixture(params=[_in_test(name) for name in SAMPLE])
def network(request):
    if request.param.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = networks.load(request.param)
    randomize.randomize(network.module, network.run, _images(network, 8, 0))
    return network


def _images(network: networks.Network, count: int, seed: int) -> torch.Tensor:
    return randomize.images(count, network.input_shape, seed)


def _errors_by_image(expected: list[torch.Tensor], found: list[torch.Tensor]) -> list[float]:
    """`max_error` of each image, whose outputs may also lie in rows of several images each."""
    counts = {len(tensor) for tensor in expected}
    if len(counts) > 1:
        return [max_error(expected, found)]
    images = range(counts.pop())
    return [max_error([a[i] for a in expected], [b[i] for b in found]) for i in images]


def test_network_is_quantized_whole_and_stays_close(network, request, tmp_path):
    held_back = _images(network, 4, 2)
    original = MacCounter(network.module)
    original.run(network.run, held_back[:1])
    prepared = prepare(network.module, QConfig(8, 8), network.input_shape)
    student = prepared.student
    counter = MacCounter(student)
    counter.run(student, held_back[:1])
    found = shares(original, counter)
    assert found.quantized >= 0.99, found.float_layers
    assert found.unused < 1e-6

    name = request.node.callspec.params["network"]
    truth = outputs(prepared.teacher, held_back)
    errors = _errors_by_image(truth, outputs(student, held_back))
    # Rounding alone may choose another of two neighbours, and unpooling then its place.
    assert (statistics.median_low(errors) if name == UNPOOLS else max(errors)) < 1e-4
    if not networks.is_detector(network.module):
        assert max_error(outputs(network.module, held_back), truth) < 1e-4

    calibrate(student, _images(network, 8, 1))
    adjust_layers(prepared.teacher, student, _images(network, 8, 1), weights=False)
    assert sqnr(truth, outputs(student, held_back)) >= LEAST_SQNR.get(name, 20)
    path = export_onnx(student, tmp_path / "m.onnx", input_shape=network.input_shape)
    assert check_parity(student, path, held_back).passed

    told = predicted(prepared)
    assert told == integer_layers(path)
    assert name not in ALL_INTEGER or told.total() == len(list_layers(prepared)) > 20
