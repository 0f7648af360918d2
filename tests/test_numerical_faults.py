"""Networks that are broken or degenerate in their numbers: a clear word, or files without NaN."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import nets
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from small_runs import RECIPES, SHAPE, make, prepared
from torch import nn

import fxquant
from fxquant.errors import DivergenceError, ModelLoadError


def broken(change: Callable[[nn.Module], object]) -> nn.Module:
    """The residual network after a change of its numbers."""
    model = nets.ALL["residual"]()
    with torch.no_grad():
        change(model)
    return model


def dead_channel(model: nn.Module) -> None:
    model.conv1.weight[2] = 0
    model.bn1.running_mean[2] = model.bn1.running_var[2] = 0


def dead_layer(model: nn.Module) -> None:
    model.layer1.conv1.weight.zero_()
    model.layer1.bn1.running_mean.zero_()
    model.layer1.bn1.running_var.zero_()
    model.layer1.bn1.bias.zero_()


def dead_network(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.fill_(1 if name.endswith("running_var") else 0)


def constant_output(model: nn.Module) -> None:
    model.linear.weight.zero_()


def equal_weights(model: nn.Module) -> None:
    model.layer2.conv1.weight.fill_(0.1)
    model.linear.weight.fill_(-0.3)
    model.linear.bias.fill_(0.5)


def batch_norm_of_zero_weight(model: nn.Module) -> None:
    model.layer2.bn2.weight.zero_()


def zero_variance(model: nn.Module) -> None:
    model.layer2.bn1.running_var.zero_()


def subnormal_variance(model: nn.Module) -> None:
    model.layer2.bn1.running_var.fill_(1e-42)


def large_statistics(model: nn.Module) -> None:
    model.bn1.running_mean.fill_(1e12)
    model.bn1.running_var.fill_(1e24)


def tiny_weights(model: nn.Module) -> None:
    model.conv1.weight.mul_(1e-38)
    model.bn1.running_mean.zero_()


def lone_giant(model: nn.Module) -> None:
    """One weight that sets the range of all others."""
    model.layer2.conv2.weight[0, 0, 0, 0] = 1e6


DEGENERATE = (
    dead_channel,
    dead_layer,
    dead_network,
    constant_output,
    equal_weights,
    batch_norm_of_zero_weight,
    zero_variance,
    subnormal_variance,
    large_statistics,
    tiny_weights,
    lone_giant,
)


@pytest.mark.parametrize("change", DEGENERATE, ids=lambda change: change.__name__)
def test_a_degenerate_network_leaves_no_nan_in_any_file(change, tmp_path):
    recipe = RECIPES["ddaq"]
    result = fxquant.quantize(broken(change), 4, input_shape=SHAPE, recipe=recipe, device="cpu")
    report = fxquant.export(result, tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    page = re.sub(r"base64,[\w+/=]+", "", (tmp_path / "report.html").read_text())
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)
    assert all(v.isfinite().all() for v in load_file(tmp_path / "student.safetensors").values())
    for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer:
        assert np.isfinite(onnx.numpy_helper.to_array(tensor).astype(np.float64)).all(), tensor.name
    assert all(layer["sqnr_db"] is not None for layer in report["layers"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.conv1.weight[0].fill_(torch.nan), r"'conv1\.weight' of the model .*: 27 of"),
        (lambda m: m.linear.bias[3].fill_(torch.inf), r"'linear\.bias' .* not finite: 1 of 10"),
        (
            lambda m: m.bn1.running_var.fill_(3e38),
            r"batch norm 'bn1' has running statistics of up to 1\.73e\+19",
        ),
        (
            lambda m: m.layer1.bn2.running_mean.fill_(-1e30),
            r"batch norm 'layer1\.bn2' has running statistics of up to 1e\+30",
        ),
        (
            lambda m: m.layer2.bn1.running_var[1].fill_(-0.5),
            r"batch norm 'layer2\.bn1' has a running variance of -0\.5",
        ),
        (
            lambda m: m.layer2.bn1.running_var[1].fill_(torch.nan),
            r"batch norm 'layer2\.bn1' has a running variance of nan",
        ),
        (
            lambda m: m.layer1.conv2.weight.fill_(3e38),
            r"overflows on noise: the input of batch norm 'layer1\.bn2' is not finite",
        ),
        (lambda m: m.linear.weight.fill_(3e38), r"overflows on noise: its output is not finite"),
    ],
)
def test_a_broken_network_is_told_before_training(change, message):
    with pytest.raises(ModelLoadError, match=message) as caught:
        fxquant.quantize(broken(change), 4, input_shape=SHAPE, recipe=RECIPES["ddaq"])
    assert caught.value.hint


@pytest.mark.parametrize(("value", "said"), [(-200.0, "0"), (200.0, "inf"), (torch.nan, "nan")])
def test_a_scale_that_collapses_or_explodes_is_named(value, said):
    p = prepared()
    engine = make(RECIPES["ddaq"], p)
    adjust = engine._calibrate

    def collapse(step: int) -> None:
        adjust(step)
        with torch.no_grad():
            p.student.head.weight_quantizer.log_scale[4] = value

    engine._calibrate = collapse
    with pytest.raises(DivergenceError, match=r"training diverged: \w+/student") as caught:
        engine.run()
    where = r"the scale of 'head.weight_quantizer' of the student has gone to"
    assert f"{where} {said}" in caught.value.message or "not finite" in caught.value.message
