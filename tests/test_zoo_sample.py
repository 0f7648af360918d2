"""Networks of the zoos that have, between them, what others have; `make zoo` goes over all."""

from __future__ import annotations

import pytest
import torch
from zoo import networks, randomize
from zoo.compare import max_error, outputs, sqnr
from zoo.macs import MacCounter, share_quantized

from fxquant.calibration import calibrate
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig

SAMPLE = {
    "torchvision:mobilenet_v3_small": "squeeze and excitation, hardswish",
    "torchvision:shufflenet_v2_x0_5": "channel shuffle, split",
    "torchvision:squeezenet1_1": "no batch norm, concatenation",
    "torchvision:lraspp_mobilenet_v3_large": "a dict of images",
    "torchvision:ssdlite320_mobilenet_v3_large": "a detector",
    "pytorchcv:densenet40_k12_cifar10": "batch norm before the convolution",
    "pytorchcv:preresnet20_cifar10": "the same in residual blocks",
    "pytorchcv:enet_cityscapes": "transposed convolution, PReLU, unpooling",
    "pytorchcv:hardnet39ds": "dense links, depthwise convolution",
    "timm:test_resnet": "timm's own batch norm layers",
    "timm:test_vit": "attention, layer norm",
}
# In dB, at 8 bits. Max-unpooling puts a number back elsewhere where two neighbours are equal on
# the grid; products of attention have no bound, and random ones are as large as any.
LEAST_SQNR = {"pytorchcv:enet_cityscapes": 14, "timm:test_vit": 14}


@pytest.fixture(params=SAMPLE, ids=lambda name: name.replace(":", "-"))
def network(request):
    if request.param.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = networks.load(request.param)
    randomize.randomize(network.module, network.run, _images(network, 8, 0))
    return network


def _images(network: networks.Network, count: int, seed: int) -> torch.Tensor:
    return randomize.images(count, network.input_shape, seed)


def test_network_is_quantized_whole_and_stays_close(network, request, tmp_path):
    held_back = _images(network, 4, 2)
    original = MacCounter(network.module)
    original.run(network.run, held_back[:1])
    prepared = prepare(network.module, QConfig(8, 8), network.input_shape)
    student = prepared.student
    counter = MacCounter(student)
    counter.run(student, held_back[:1])
    names = {layer_name(node) for node in quantized_layers(student)}
    share, missing = share_quantized(original.float, counter, names)
    assert share >= 0.99, missing

    truth = outputs(prepared.teacher, held_back)
    assert max_error(truth, outputs(student, held_back)) < 1e-4
    if not networks.is_detector(network.module):
        assert max_error(outputs(network.module, held_back), truth) < 1e-4

    calibrate(student, _images(network, 8, 1))
    least = LEAST_SQNR.get(request.node.callspec.params["network"], 20)
    assert sqnr(truth, outputs(student, held_back)) >= least
    path = export_onnx(student, tmp_path / "m.onnx", input_shape=network.input_shape)
    assert check_parity(student, path, held_back).passed
