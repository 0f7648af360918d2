"""Losses against their formulas written by hand, and the weightings X1 and X2 against theirs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from nets import ALL
from torch import Tensor, nn

from fxquant.calibration import calibrate
from fxquant.datafree import losses
from fxquant.datafree.importance import Importance
from fxquant.datafree.objective import LOSSES, Objective, View
from fxquant.datafree.recipe import Term
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig

SHAPE = (3, 16, 16)
BATCH = 7


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_channel_statistics_are_the_batch_norms_own():
    x = noise(4, 3, 5, 5) * 2 + 1
    mean, std = losses.channel_statistics(x)
    for channel in range(3):
        values = x[:, channel].flatten().double()
        assert abs(mean[channel] - values.mean()) < 1e-6
        expected = math.sqrt(((values - values.mean()) ** 2).mean() + losses.EPS)
        assert abs(std[channel] - expected) < 1e-6


def test_channel_statistics_per_sample():
    x = noise(4, 3, 5, 6)
    mean, std = losses.channel_statistics(x, per_sample=True)
    assert mean.shape == std.shape == (4, 3)
    single = [losses.channel_statistics(sample[None]) for sample in x]
    assert (mean - torch.stack([m for m, _ in single])).abs().max() < 1e-6
    assert (std - torch.stack([s for _, s in single])).abs().max() < 1e-6


def test_statistics_of_flat_features_and_their_limit():
    x = noise(50, 4)
    mean, std = losses.channel_statistics(x)
    assert (mean - x.mean(0)).abs().max() < 1e-6
    assert (std - x.std(0, correction=0)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="position axis"):
        losses.channel_statistics(x, per_sample=True)


def test_statistics_distance():
    x, mean, std = noise(6, 3, 4, 4), torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 2.0, 0.5])
    found = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + losses.EPS).sqrt()
    by_channel = [(found[0][c] - mean[c]) ** 2 + (found[1][c] - std[c]) ** 2 for c in range(3)]
    assert abs(losses.statistics_distance(x, mean, std) - sum(by_channel) / 3) < 1e-6
    matched = x * 0 + mean[None, :, None, None]
    assert losses.statistics_distance(matched, mean, std * 0 + losses.EPS**0.5) < 1e-10
    apart = [losses.statistics_distance(s[None], mean, std) for s in x]
    together = losses.statistics_distance(x, mean, std, per_sample=True)
    assert abs(together - sum(apart) / 6) < 1e-6


def test_gradients_worked_out_by_hand():
    x = noise(3, 4, 2, 5).double().requires_grad_(True)
    for axes in ([0, 2, 3], [2, 3], [0]):
        assert torch.autograd.gradcheck(lambda x, axes=axes: losses._Moments.apply(x, axes), x)
        mean, variance = losses._Moments.apply(x, axes)
        expected = torch.var_mean(x, axes, correction=0)
        assert (mean - expected[1]).abs().max() < 1e-12
        assert (variance - expected[0]).abs().max() < 1e-12
    assert torch.autograd.gradcheck(losses._MeanSquare.apply, x)
    both = (x, noise(3, 4, 2, 5, seed=1).double().requires_grad_())
    assert torch.autograd.gradcheck(losses._MeanAbsDifference.apply, both)


def test_statistics_of_a_large_mean_keep_their_deviation():
    x = (noise(64, 2, 8, 8) * 0.01 + 1000).float()
    _, std = losses.channel_statistics(x)
    expected = (x.double().var((0, 2, 3), correction=0) + losses.EPS).sqrt()
    assert (std / expected - 1).abs().max() < 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_lie_in_memory_as_features_do(layout):
    x, other = (noise(4, 6, 5, 5, seed=i).contiguous(memory_format=layout) for i in range(2))
    x.requires_grad_(True)
    for loss in (
        losses.relative_l1(x, other),
        losses.relative_l1(other, x),
        losses.relative_mse(x, other),
        sum(part.sum() for part in losses.channel_statistics(x)),
        losses.relative_l1(losses.scale_sample_gradient(x, torch.arange(4.0)), other),
    ):
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.is_contiguous(memory_format=layout)


def test_relative_distances():
    q, p = noise(5, 8), noise(5, 8, seed=1) * 3
    l1 = (p - q).abs().sum() / (p.abs().sum() + 40 * losses.EPS)
    mse = (p - q).square().sum() / (p.square().sum() + 40 * losses.EPS)
    assert abs(losses.relative_l1(q, p) - l1) < 1e-6
    assert abs(losses.relative_mse(q, p) - mse) < 1e-6
    assert abs(losses.relative_l1(100 * q, 100 * p) - l1) < 1e-5


@pytest.mark.parametrize("distance", [losses.relative_l1, losses.relative_mse])
def test_the_size_of_the_teacher_takes_no_gradient(distance):
    """A generator must not lower the distance by making features large."""
    q, p = noise(5, 8), noise(5, 8, seed=1).requires_grad_()
    (found,) = torch.autograd.grad(distance(q, p), p)
    error = (p - q).abs().mean() if distance is losses.relative_l1 else (p - q).square().mean()
    size = p.abs().mean() if distance is losses.relative_l1 else p.square().mean()
    (expected,) = torch.autograd.grad(error / (size.item() + losses.EPS), p)
    assert (found - expected).abs().max() < 1e-7


def test_output_divergence():
    q, p, temperature = noise(6, 5), noise(6, 5, seed=1) * 2, 3.0
    target, found = (p / temperature).softmax(1), (q / temperature).softmax(1)
    expected = temperature**2 * (target * (target.log() - found.log())).sum() / 6
    assert abs(losses.output_divergence(q, p, temperature=temperature) - expected) < 1e-5
    assert losses.output_divergence(p, p, temperature=temperature).abs() < 1e-6


def test_weigh_layers_is_x2():
    values = [torch.tensor(2.0), torch.tensor(3.0)]
    assert losses.weigh_layers(values, None) == 5
    assert losses.weigh_layers(values, torch.tensor([0.5, 2.0])) == 2 * 1.5 + 3 * 3


def test_sample_weights_are_rows_of_x1():
    h = torch.tensor([0.5, 0.0, 2.0])
    assert losses.sample_weights(h, 0, 7).tolist() == [1.5, 1, 1, 1.5, 1, 1, 1.5]
    assert losses.sample_weights(h, 2, 7).tolist() == [1, 1, 3, 1, 1, 3, 1]
    x1 = torch.diag(h) + 1
    rows = torch.stack([losses.sample_weights(h, layer, 3) for layer in range(3)])
    assert torch.equal(rows, x1)


def test_scale_sample_gradient_is_the_identity_with_a_weighted_gradient():
    x = noise(3, 2, 2).requires_grad_()
    y = losses.scale_sample_gradient(x, torch.tensor([1.0, 2.0, 0.0]))
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert torch.equal(x.grad, 2 * x * torch.tensor([1.0, 2.0, 0.0])[:, None, None])


def objective() -> Objective:
    """Three batch norms, two features, a calibrated student and an importance for each tap."""
    prepared = prepare(ALL["shared_relu"](), QConfig(3, 3), SHAPE)
    calibrate(prepared.student, noise(8, *SHAPE))
    found = Objective(prepared.teacher, prepared.student.requires_grad_(False))
    found.importance = {
        BN_TAPS: torch.tensor([0.7, 3.0, 0.0]),
        FEATURE_TAPS: torch.tensor([2.5, 0.4]),
    }
    return found


def bn_losses(teacher: nn.Module, images: Tensor) -> list[Tensor]:
    """L_i of eq. 8 by hooks on the batch norms themselves."""
    inputs: dict[nn.Module, Tensor] = {}
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [
        m.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0]})) for m in norms
    ]
    teacher(images)
    for hook in hooks:
        hook.remove()
    found = []
    for norm, x in inputs.items():
        mean, std = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + losses.EPS).sqrt()
        target = (norm.running_var + losses.EPS).sqrt()
        found.append(((mean - norm.running_mean) ** 2 + (std - target) ** 2).mean())
    return found


def feature_losses(o: Objective, images: Tensor) -> list[Tensor]:
    view = o.compare(o.view(images, teacher_grad=True))
    pairs = [(view.student_features[name], p) for name, p in view.teacher_features.items()]
    return [(p - q).abs().mean() / (p.detach().abs().mean() + losses.EPS) for q, p in pairs]


def evaluate(o: Objective, term: Term, images: Tensor) -> Tensor:
    view = o.view(images, teacher_grad=True)
    view = o.compare(view) if term.needs_student else view
    return LOSSES[term.loss](o, term, view)


CASES = {
    "bn_statistics": (BN_TAPS, lambda o, images: bn_losses(o.teacher, images)),
    "features": (FEATURE_TAPS, feature_losses),
}


@pytest.mark.parametrize("loss", CASES)
def test_x1_is_a_backward_pass_for_each_layer_apart(loss):
    """Row b of the gradient is that of h_j L_j + sum_i L_i alone, with j = b mod N."""
    o = objective()
    group, layer_losses = CASES[loss]
    h = o.importance[group]
    images = noise(BATCH, *SHAPE, seed=5).requires_grad_()
    value = evaluate(o, Term(loss, weighting="sample"), images)
    (found,) = torch.autograd.grad(value, images)
    expected = torch.empty_like(found)
    for j in range(len(h)):
        parts = layer_losses(o, images)
        assert len(parts) == len(h)
        (gradient,) = torch.autograd.grad(h[j] * parts[j] + sum(parts), images)
        expected[j :: len(h)] = gradient[j :: len(h)]
    largest = expected.abs().max()
    assert (found - expected).abs().max() < 1e-5 * largest
    # The plain sum, and the sum with every row weighed by every layer, are other gradients.
    (plain,) = torch.autograd.grad(sum(layer_losses(o, images)), images)
    assert (found - plain).abs().max() > 0.1 * largest
    assert abs(value - sum(layer_losses(o, images))) < 1e-5


@pytest.mark.parametrize("loss", CASES)
def test_x2_weighs_layers(loss):
    o = objective()
    group, layer_losses = CASES[loss]
    images = noise(BATCH, *SHAPE, seed=5).requires_grad_()
    value = evaluate(o, Term(loss, weighting="layer"), images)
    parts = layer_losses(o, images)
    expected = sum((1 + h) * part for h, part in zip(o.importance[group], parts, strict=True))
    assert abs(value - expected) < 1e-5
    found, wanted = (torch.autograd.grad(v, images)[0] for v in (value, expected))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("weighting", ["none", "layer", "sample"])
@pytest.mark.parametrize("loss", CASES)
def test_without_importance_every_weighting_is_the_plain_sum(loss, weighting):
    o = objective()
    o.importance = {}
    images = noise(BATCH, *SHAPE)
    expected = sum(CASES[loss][1](o, images))
    assert abs(evaluate(o, Term(loss, weighting=weighting), images) - expected) < 1e-5


def test_the_other_terms():
    o, images = objective(), noise(BATCH, *SHAPE) * 0.5 + 0.2
    zero, one = torch.zeros(3), torch.ones(3)
    found = evaluate(o, Term("input_statistics", per_sample=True), images)
    expected = losses.statistics_distance(images, zero, one, per_sample=True)
    assert abs(found - expected) < 1e-6
    q, p = o.student(images), o.teacher(images)
    found = evaluate(o, Term("output", temperature=2.0), images)
    assert abs(found - losses.output_divergence(q, p, temperature=2.0)) < 1e-6
    found = evaluate(o, Term("features", distance="mse"), images)
    view = o.compare(o.view(images, teacher_grad=False))
    pairs = [(view.student_features[n], view.teacher_features[n]) for n in view.teacher_features]
    expected = sum((p - q).square().mean() / (p.square().mean() + losses.EPS) for q, p in pairs)
    assert abs(found - expected) < 1e-6


def test_outputs_that_are_no_logits_are_compared_by_squared_error():
    o, (p, q) = objective(), (noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1))
    view = View(noise(2, *SHAPE), {}, {}, (p, p[:, 0, 0]), {}, (q, q[:, 0, 0]))
    expected = losses.relative_mse(q, p) + losses.output_divergence(
        q[:, 0, 0], p[:, 0, 0], temperature=4.0
    )
    assert abs(LOSSES["output"](o, Term("output"), view) - expected) < 1e-6


def test_terms_come_with_their_weights_and_names():
    o = objective()
    terms = (Term("bn_statistics", 0.5), Term("features", -0.25))
    view = o.compare(o.view(noise(BATCH, *SHAPE), teacher_grad=False))
    parts = o.losses(terms, view)
    assert {name: weight for name, (weight, _) in parts.items()} == {
        "bn_statistics": 0.5,
        "features": -0.25,
    }


class NormFirst(nn.Module):
    """A batch norm ahead of every layer, so that its tap has no layer before it."""

    def __init__(self):
        super().__init__()
        self.bn0, self.conv, self.bn = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(self.bn0(x)))).mean((2, 3)))


def test_each_tap_gets_the_importance_of_the_layer_before_it():
    p = prepare(NormFirst().eval(), QConfig(), SHAPE)
    o = Objective(p.teacher, p.student)
    o.set_importance(Importance(("conv", "head"), (3.0, 5.0), (0.0, 0.0)), "none")
    assert o.importance[BN_TAPS].tolist() == [0, 3]
    assert p.features == ("bn0", "head")
    assert o.importance[FEATURE_TAPS].tolist() == [0, 5]
    assert torch.isfinite(evaluate(o, Term("bn_statistics", weighting="sample"), noise(4, *SHAPE)))
