"""Analytic bias correction against means that were measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from nets import ALL
from small_runs import RECIPES, SHAPE, make, prepared
from torch import nn

from fxquant.calibration import calibrate
from fxquant.graph.correct_biases import Moments, clipped, correct_biases
from fxquant.graph.passes import run_passes
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig


@pytest.mark.parametrize("bounds", [(0, math.inf), (0, 6), (-1, 1), (-math.inf, math.inf)])
def test_moments_of_clipped_normal_values(bounds):
    means, deviations = torch.tensor([-1.0, 0.5, 4.0, 7.0]), torch.tensor([0.5, 2.0, 3.0, 1.0])
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400_000, 4, generator=rng, dtype=torch.float64) * deviations + means
    x = x.clamp(*bounds)
    found = clipped(Moments(means.double(), deviations.double().square()), *bounds)
    assert torch.allclose(found.mean, x.mean(0), atol=0.02)
    assert torch.allclose(found.variance, x.var(0), rtol=0.03, atol=0.01)


def normal_chain() -> nn.Sequential:
    """What the second layer reads is a clipped normal value by its batch norm."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.Conv2d(16, 16, 1, groups=4), nn.ReLU()),
        nn.Conv2d(16, 5, 1),
    ).eval()
    weight = net[0].weight.data.flatten(1)
    net[1].running_mean.zero_()
    net[1].running_var.copy_(weight.square().sum(1))
    nn.init.uniform_(net[1].bias, -1, 4)
    nn.init.uniform_(net[1].weight, 0.5, 2)
    return net


def test_the_mean_output_is_what_it_was():
    net = normal_chain()
    p = prepare(net, QConfig(3, 8), SHAPE)
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(64, *SHAPE, generator=rng)
    calibrate(p.student, x)

    def gap() -> float:
        with torch.no_grad():
            difference = output_of_second(p.student, x) - net[:4](x)
        return float(difference.mean((0, 2, 3)).abs().max())

    before = gap()
    assert run_passes(p.student, [("correct_biases", correct_biases)])["correct_biases"] == 1
    assert gap() < before / 4


def output_of_second(student, x):
    """Value of the student's second convolution."""
    node = next(n for n in student.graph.nodes if n.meta.get("layer") == "3")
    interpreter = torch.fx.Interpreter(student, garbage_collect_values=False)
    interpreter.run(x)
    return interpreter.env[node]


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "concat"])
def test_layers_behind_batch_norms_are_corrected(name):
    p = prepare(ALL[name](), QConfig(4, 4), SHAPE)
    calibrate(p.student, torch.randn(8, *SHAPE))
    run_passes(p.student, [("correct_biases", correct_biases)])
    corrected = run_passes(p.student, [("correct_biases", correct_biases)])["correct_biases"]
    assert corrected >= 2
    assert bool(p.student(torch.randn(2, *SHAPE)).isfinite().all())


def test_a_recipe_may_ask_for_it():
    recipe = RECIPES["zeroq"]
    schedule = replace(recipe.schedule, analytic_biases=True)
    asked = make(replace(recipe, schedule=schedule), prepared("residual"))
    plain = make(recipe, prepared("residual"))
    for engine in (asked, plain):
        engine.run()
    bias = [engine.student.get_submodule("layer1.conv2").bias for engine in (asked, plain)]
    assert not torch.equal(*bias)
