"""Pickled modules: what comes back of a network that torch.save wrote whole."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torchvision
from model_files import same_output
from torch import nn

from fxquant.models import load_model


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_pickled_torchvision_networks_load(tmp_path, name):
    net = torchvision.models.get_model(name, weights=None).eval()
    torch.save(net, tmp_path / f"{name}.pt")
    loaded = load_model(tmp_path / f"{name}.pt")
    assert same_output(net, loaded.module, 3, 32, 32)
    assert (loaded.name, loaded.input_shape) == (name, None)


def test_pickled_pytorchcv_network_tells_its_input(net_file):
    net, path = net_file
    loaded = load_model(str(path))
    assert same_output(net, loaded.module, 3, 32, 32)
    assert loaded.input_shape == (3, 32, 32)
    assert (loaded.name, loaded.source) == ("net", str(path))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_pickled_detector_loads_with_its_helpers(tmp_path):
    backbone = torchvision.models.squeezenet1_1(weights=None).features[:3]
    backbone.out_channels = 64
    roi_pool = torchvision.ops.MultiScaleRoIAlign(["0"], output_size=2, sampling_ratio=1)
    anchors = torchvision.models.detection.rpn.AnchorGenerator(((16,),), ((1.0,),))
    net = torchvision.models.detection.FasterRCNN(
        backbone, 2, rpn_anchor_generator=anchors, box_roi_pool=roi_pool, min_size=32, max_size=32
    )
    torch.save(net, tmp_path / "detector.pt")
    loaded = load_model(tmp_path / "detector.pt").module
    image = [torch.rand(3, 32, 32)]
    assert torch.equal(net.eval()(image)[0]["boxes"], loaded(image)[0]["boxes"])


def test_module_comes_back_in_eval_mode_and_float32(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).half().train()
    torch.save(net, tmp_path / "half.pth")
    module = load_model(tmp_path / "half.pth").module
    assert not any(part.training for part in module.modules())
    tensors = [*module.parameters(), module[1].running_var]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_data_parallel_is_unwrapped(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.save(nn.DataParallel(net), tmp_path / "parallel.pt")
    module = load_model(tmp_path / "parallel.pt").module
    assert type(module) is nn.Sequential
    assert same_output(net, module, 3)


def test_module_inside_a_checkpoint_loads(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.save({"epoch": 3, "model": net}, tmp_path / "checkpoint.pt")
    assert same_output(net, load_model(tmp_path / "checkpoint.pt").module, 3)
