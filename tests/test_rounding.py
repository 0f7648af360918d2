"""Rounding of weights for the sake of a layer's output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxquant import rounding
from fxquant.quantizer import Quantizer
from fxquant.rounding import BLOCK, input_curvature, round_layer, round_weights
from fxquant.spec import QSpec


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(count: int, size: int) -> Tensor:
    """Inputs that go together, as a network's do: non-negative, with a common part."""
    return (noise(count, size) + 2 * noise(count, 1, seed=1)).relu()


def weight_quantizer(weight: Tensor, bits: int = 3) -> Quantizer:
    """A per-channel quantizer whose range is the weights' own."""
    quantizer = Quantizer(QSpec(bits, signed=True, channel_axis=0), len(weight))
    rows = weight.flatten(1)
    quantizer.set_range(rows.amin(1), rows.amax(1))
    return quantizer


def layer_node(function, *arguments) -> fx.Node:
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    return graph.call_function(function, (x, weight, None, *arguments))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "kernel"),
    [
        ((1, 1), (1, 1), (1, 1), 1, (3, 3)),
        ((2, 2), (0, 0), (1, 1), 1, (1, 1)),
        ((2, 1), (2, 1), (2, 1), 2, (3, 2)),
        ((1, 1), (1, 1), (1, 1), 6, (3, 3)),
    ],
)
def test_the_curvature_of_a_convolution_measures_its_output(
    stride, padding, dilation, groups, kernel
):
    """For any change of the weights, mean |conv(x, D)|^2 over places is sum_o D_o^T H D_o."""
    x, change = noise(4, 6, 8, 9), noise(6, 6 // groups, *kernel, seed=1)
    node = layer_node(F.conv2d, stride, padding, dilation, groups)
    h = input_curvature(node, x, change)
    rows = change.reshape(groups, 6 // groups, -1).double()
    assert h.shape == (groups, rows.shape[2], rows.shape[2])
    found = torch.einsum("goi,gij,goj->", rows, h, rows)
    output = F.conv2d(x, change, None, stride, padding, dilation, groups)
    expected = output.double().square().mean((0, 2, 3)).sum()
    assert abs(found - expected) < 1e-5 * expected


def test_the_curvature_of_a_linear_layer_measures_its_output():
    x, change = noise(5, 7, 12), noise(4, 12, seed=1)
    h = input_curvature(layer_node(F.linear), x, change)
    rows = change.double()
    found = torch.einsum("oi,ij,oj->", rows, h[0], rows)
    expected = F.linear(x, change).double().square().mean((0, 1)).sum()
    assert abs(found - expected) < 1e-5 * expected


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("size", [20, BLOCK, 2 * BLOCK + 30])
def test_the_output_comes_closer_than_with_the_nearest_values(size, bits):
    inputs, weight = correlated(3 * size, size), noise(8, size, seed=2)
    quantizer = weight_quantizer(weight, bits)
    h = input_curvature(layer_node(F.linear), inputs, weight)
    found = round_weights(weight[None], h, quantizer)[0]
    assert torch.equal(quantizer(found), found)
    error = ((found - weight) @ inputs.T).square().mean()
    nearest = ((quantizer(weight) - weight) @ inputs.T).square().mean()
    assert error < 0.7 * nearest


def test_independent_inputs_leave_the_nearest_values():
    weight = noise(5, 30)
    quantizer = weight_quantizer(weight)
    h = torch.diag(torch.rand(30, generator=torch.Generator().manual_seed(0)).double() + 0.1)
    found = round_weights(weight[None], h[None], quantizer)[0]
    assert torch.equal(found, quantizer(weight))


def test_groups_are_rounded_apart():
    weight = noise(6, 9)
    quantizer = weight_quantizer(weight)
    inputs = [correlated(50, 9) * (1 + g) for g in range(3)]
    h = torch.stack([(u.T @ u).double() / 50 for u in inputs])
    together = round_weights(weight.reshape(3, 2, 9), h, quantizer).reshape(6, 9)
    for g in range(3):
        rows = slice(2 * g, 2 * g + 2)
        own = Quantizer(quantizer.spec, 2)
        with torch.no_grad():
            own.log_scale.copy_(quantizer.log_scale[rows])
        own.enabled = True
        assert torch.equal(round_weights(weight[None, rows], h[g : g + 1], own)[0], together[rows])


def test_weights_on_the_grid_stay():
    weight = noise(4, 12)
    quantizer = weight_quantizer(weight)
    h = (correlated(40, 12).T @ correlated(40, 12)).double()[None] / 40
    once = round_weights(weight[None], h, quantizer)
    assert torch.equal(round_weights(once, h, quantizer), once)


@pytest.mark.parametrize("dead", ["one input", "a whole group", "all"])
def test_inputs_that_are_always_zero_leave_the_nearest_values(dead):
    weight = noise(6, 9)
    quantizer = weight_quantizer(weight)
    inputs = torch.stack([correlated(50, 9) for _ in range(3)])
    if dead == "one input":
        inputs[:, :, 4] = 0
    else:
        inputs[slice(1, 2) if dead == "a whole group" else slice(None)] = 0
    h = (inputs.transpose(1, 2) @ inputs).double() / 50
    found = round_weights(weight.reshape(3, 2, 9), h, quantizer).reshape(6, 9)
    assert torch.isfinite(found).all()
    assert torch.equal(quantizer(found), found)
    if dead == "one input":
        assert torch.equal(found[:, 4], quantizer(weight)[:, 4])
    else:
        assert torch.equal(found[2:4], quantizer(weight)[2:4])


def test_a_wide_layer_is_rounded_in_parts(monkeypatch):
    x, weight = noise(4, 6, 8, 9), noise(6, 3, 3, 3, seed=1)
    node = layer_node(F.conv2d, (1, 1), (1, 1), (1, 1), 2)
    quantizer = weight_quantizer(weight)
    monkeypatch.setattr(rounding, "MOST_INPUTS", 20)
    found = round_layer(node, x, weight, quantizer)
    h, rows = input_curvature(node, x, weight), weight.reshape(2, 3, 27)
    for part in (slice(0, 20), slice(20, 27)):
        alone = round_weights(rows[:, :, part], h[:, part, part], quantizer)
        assert torch.equal(found.reshape(2, 3, 27)[:, :, part], alone)


@pytest.mark.parametrize("factor", [1e-300, 2.0**-200, 1e-38, 1e38, 1e200])
def test_rounding_does_not_depend_on_the_size_of_the_inputs(factor):
    weight, inputs = noise(1, 4, 9, seed=2), correlated(50, 9).double()
    curvature = (inputs.T @ inputs / 50)[None]
    quantizer = weight_quantizer(weight[0])
    expected = round_weights(weight, curvature, quantizer)
    assert torch.equal(round_weights(weight, curvature * factor, quantizer), expected)


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_inputs_that_say_nothing_leave_the_nearest_values(value):
    weight = noise(1, 4, 9, seed=2)
    quantizer = weight_quantizer(weight[0])
    rounded = round_weights(weight, torch.full((1, 9, 9), value, dtype=torch.float64), quantizer)
    assert torch.equal(rounded[0], quantizer(weight[0]))
