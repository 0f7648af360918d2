"""Real pretrained networks, where the folder that holds them lies beside the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fxquant.calibration import calibrate
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.prepare import prepare
from fxquant.models.load import load_model
from fxquant.spec import QConfig


def test_a_real_resnet20_of_a_users_own_class_runs_in_integer_kernels(
    data_dir, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    weights = data_dir / "option_a_resnet20_cifar10.safetensors"
    loaded = load_model(weights, arch="resnet20_option_a:resnet20")
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prepared = prepare(loaded.module, QConfig(4, 4), (3, 32, 32))
    with torch.no_grad():
        difference = prepared.student(images[:8]) - loaded.module(images[:8])
    assert difference.abs().max() < 1e-4  # the passes change nothing but the rounding
    calibrate(prepared.student, images)
    path = tmp_path / "m.onnx"
    export_onnx(prepared.student, path, input_shape=(3, 32, 32))
    parity = check_parity(prepared.student, path, images)
    assert parity.passed
    assert parity.convolutions_integer == parity.convolutions == 19
    parameters = sum(p.numel() for p in loaded.module.parameters())
    assert path.stat().st_size <= 1.10 * parameters * 4 / 8 + 40_000
    sys.modules.pop("resnet20_option_a")
