"""Biases on the int32 grid of an integer kernel."""

from __future__ import annotations

import pytest
import torch
from exports import make_student, noise
from nets import ALL
from torch import nn

from fxquant.errors import ExportError
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.ops import module_of
from fxquant.graph.snap_biases import (
    LARGEST_BIAS,
    bias_of,
    input_quantizer,
    quantize_bias,
    snap_biases,
)
from fxquant.spec import QConfig


def grids(student: torch.fx.GraphModule) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Bias and scale of its grid, by the name of the layer's node."""
    return {
        node.name: (
            bias_of(node),
            input_quantizer(node).scale * module_of(node.args[1]).scale,
        )
        for node in quantized_layers(student)
        if bias_of(node) is not None
    }


@pytest.mark.parametrize("name", ALL)
def test_biases_are_multiples_of_their_scale_and_half_a_step_away(name):
    student = make_student(ALL[name](), QConfig(4, 4), snap=False)
    before = {key: bias.clone() for key, (bias, _) in grids(student).items()}
    assert snap_biases(student) == len(before) > 0
    for key, (bias, scale) in grids(student).items():
        steps = bias.double() / scale.double()
        assert ((steps - steps.round()).abs() <= 1e-3 + 1e-6 * steps.abs()).all()
        assert ((bias - before[key]).abs() <= 0.501 * scale).all()
    assert snap_biases(student) == 0


def test_biases_of_layers_that_read_moved_numbers_are_snapped_too():
    student = make_student(ALL["plain"](), QConfig(4, 4))
    layers = {layer_name(node): node for node in quantized_layers(student)}
    # Max-pooling and flatten lie between the quantizer and the layer.
    assert input_quantizer(layers["classifier.1"]) is not None


def test_a_layer_called_twice_has_a_bias_for_each_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    torch.manual_seed(0)
    student = make_student(Twice(), QConfig(4, 4), snap=False)
    assert list(dict(student.conv.named_parameters(recurse=False))) == ["weight", "bias"]
    assert snap_biases(student) == 2
    (first, scale), (second, other) = grids(student).values()
    assert not torch.equal(scale, other)
    assert not torch.equal(first, second)
    assert snap_biases(student) == 0


def test_weights_too_small_for_their_bias_get_a_larger_scale(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        model[0].weight[0] = 0  # a dead channel
        model[0].weight[1] *= 1e-12  # and one as good as dead
        model[0].bias[:] = torch.tensor([1.0, -2.0, 0.5, 0.0])
    student = make_student(model.eval(), QConfig(4, 4), snap=False)
    expected = student(noise(4))
    with caplog.at_level("INFO"):
        snap_biases(student)
    assert "2 channels of 0 have weights too small" in caplog.text
    bias, scale = grids(student)["_0"]
    assert quantize_bias(bias, scale).abs().max() <= LARGEST_BIAS
    torch.testing.assert_close(bias, model[0].bias, rtol=0, atol=0.02)
    torch.testing.assert_close(student(noise(4)), expected, rtol=0, atol=0.2)
    assert snap_biases(student) == 0


def test_a_bias_that_is_not_finite_is_named():
    student = make_student(ALL["plain"](), QConfig(4, 4), snap=False)
    student.get_parameter("classifier.1.bias").data[0] = torch.nan
    with pytest.raises(ExportError, match=r"the bias of layer 'classifier\.1' .* not finite"):
        snap_biases(student)


def test_quantize_bias_rounds_half_to_even_and_saturates():
    scale = torch.tensor([0.5, 0.5, 0.5, 0.0, 1e-30])
    bias = torch.tensor([0.25, 0.75, -0.25, 0.0, 1.0])
    assert quantize_bias(bias, scale).tolist() == [0, 2, 0, 0, LARGEST_BIAS]
    assert quantize_bias(bias, scale).dtype == torch.int32


def test_shape_of_the_student_is_unchanged():
    student = make_student(ALL["residual"](), QConfig(4, 4), snap=False)
    keys = list(student.state_dict())
    snap_biases(student)
    assert list(student.state_dict()) == keys
    assert student(noise(2)).shape == (2, 10)
