"""Layer importance against exact Hessians, against PyHessian, and its way to the taps."""

from __future__ import annotations

import math

import pyhessian
import pytest
import torch
import torch.nn.functional as F
from nets import ALL
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev
from torch.fx import GraphModule

from fxquant.datafree.importance import Importance, measure_importance, nearest_layers
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS
from fxquant.graph.prepare import prepare
from fxquant.graph.trace import trace
from fxquant.spec import QConfig

SHAPE = (2, 5, 5)
LAYERS = ("0", "2", "5")
SAMPLES = 6


def tiny(*extra: nn.Module) -> GraphModule:
    """Three layers without biases, smooth between them, so that all second derivatives exist."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(2, 3, 3, bias=False), nn.Tanh(), nn.Conv2d(3, 4, 2, bias=False)]
        layers += extra or [nn.Tanh(), nn.Flatten(), nn.Linear(16, 3, bias=False)]
        return trace(nn.Sequential(*layers), SHAPE).model


def labelled() -> tuple[GraphModule, Tensor]:
    """The network, and labels that it gets right but for one."""
    net = tiny()
    labels = net(images()).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    return net, labels


def images() -> Tensor:
    return 2 * torch.randn(SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(1))


def weights_of(net: GraphModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


def exact_hessian(net: GraphModule, loss) -> list[float]:
    """Tr(H_i) / m_i of each weight, from the full second derivative."""

    def of(name: str):
        return lambda w: loss(functional_call(net, weights_of(net) | {name: w}, images()))

    return [average(hessian(of(name), w), w) for name, w in weights_of(net).items()]


def exact_gauss_newton(net: GraphModule, curvature) -> list[float]:
    """Tr(J^T C J) / m_i of each weight, J = d outputs / d weight, C = the loss's Hessian there."""
    found = []
    for name, w in weights_of(net).items():
        j = jacrev(lambda v, name=name: functional_call(net, {name: v}, images()).flatten())(w)
        j = j.flatten(1)
        found.append((torch.trace(j.T @ curvature @ j) / w.numel()).item())
    return found


def average(h: Tensor, w: Tensor) -> float:
    return (torch.trace(h.reshape(w.numel(), w.numel())) / w.numel()).item()


def softmax_curvature(net: GraphModule) -> Tensor:
    """Block diagonal (diag p - p p^T) / n: the mean cross-entropy's Hessian in the logits."""
    p = net(images()).softmax(1)
    return torch.block_diag(*[torch.diag(row) - row[:, None] * row for row in p]) / SAMPLES


def check(found: Importance, exact: list[float], sharpness: float) -> None:
    """Each estimate within four of its standard errors, and those errors small."""
    for trace_, error, wanted in zip(found.trace, found.standard_error, exact, strict=True):
        assert 0 < error < sharpness * abs(wanted)
        assert abs(trace_ - wanted) < 4 * error


def test_gauss_newton_matches_the_exact_matrix():
    net = tiny()
    found = measure_importance(net, images(), probes=600)
    assert found.layers == LAYERS
    check(found, exact_gauss_newton(net, softmax_curvature(net)), 0.05)


def test_hessian_matches_the_exact_one_with_labels():
    net, labels = labelled()
    found = measure_importance(net, images(), method="hessian", probes=600, labels=labels)
    check(found, exact_hessian(net, lambda logits: F.cross_entropy(logits, labels)), 0.15)


def test_hessian_without_labels_takes_the_most_likely_classes():
    net = tiny()
    labels = net(images()).argmax(1)
    found = measure_importance(net, images(), method="hessian", probes=20)
    assert found == measure_importance(net, images(), method="hessian", probes=20, labels=labels)
    other = measure_importance(net, images(), method="hessian", probes=20, labels=2 - labels)
    assert found != other


def test_other_outputs_take_half_their_mean_squared_error():
    net = tiny(nn.Tanh())
    outputs = net(images())
    assert outputs.dim() == 4
    found = measure_importance(net, images(), probes=600)
    exact = exact_gauss_newton(net, torch.eye(outputs.numel()) / outputs.numel())
    check(found, exact, 0.05)


class TwoHeads(nn.Module):
    """A map and logits, as detectors give."""

    def __init__(self):
        super().__init__()
        self.stem, self.map, self.logits = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        x = torch.tanh(self.stem(x))
        return {"map": [self.map(x)], "logits": [self.logits(x.mean((2, 3)))]}


def test_nested_outputs_are_summed_up():
    torch.manual_seed(0)
    teacher = trace(TwoHeads(), SHAPE).model
    found = measure_importance(teacher, images(), probes=300)
    assert found.layers == ("stem", "map", "logits")
    hidden = torch.tanh(teacher.stem(images()))
    # A linear layer's own matrix is its input's second moment times the curvature behind it.
    exact_map = hidden.square().mean((0, 2, 3)).sum() * 2 / (2 * 6)
    p = teacher.logits(hidden.mean((2, 3))).softmax(1)
    moments = hidden.mean((2, 3)).square().sum(1)
    exact_logits = (moments * (p * (1 - p)).sum(1)).mean() / 12
    for trace_, error, wanted in zip(
        found.trace[1:], found.standard_error[1:], (exact_map, exact_logits), strict=True
    ):
        assert 0 < error < 0.1 * wanted
        assert abs(trace_ - wanted) < 4 * error


@pytest.mark.filterwarnings("ignore:Using backward")
def test_the_total_trace_is_pyhessians():
    net, labels = labelled()
    found = measure_importance(net, images(), method="hessian", probes=500, labels=labels)
    sizes = [w.numel() for w in weights_of(net).values()]
    total = sum(h * m for h, m in zip(found.trace, sizes, strict=True))
    error = sum((e * m) ** 2 for e, m in zip(found.standard_error, sizes, strict=True)) ** 0.5
    torch.manual_seed(7)
    model = nn.Sequential(*net.children()).requires_grad_(True)
    theirs = pyhessian.hessian(model, F.cross_entropy, data=(images(), labels), cuda=False)
    samples = torch.tensor(theirs.trace(maxIter=500, tol=-math.inf))
    assert len(samples) == 500
    bound = 3 * (error**2 + samples.var() / 500) ** 0.5
    assert abs(total - samples.mean()) < bound
    assert bound < 0.2 * samples.mean().abs()


def test_a_seed_repeats_and_the_error_shrinks_with_the_probes():
    net = tiny()
    few, many = (measure_importance(net, images(), probes=n) for n in (50, 800))
    assert few == measure_importance(net, images(), probes=50)
    other = measure_importance(net, images(), probes=50, rng=torch.Generator().manual_seed(9))
    assert few != other
    for a, b in zip(few.standard_error, many.standard_error, strict=True):
        assert 2.5 < a / b < 6  # 4 = sqrt(800 / 50) but for the spread of the spread


def test_a_layer_called_twice_counts_once():
    teacher = trace(ALL["repeated_conv"](), (3, 16, 16)).model
    found = measure_importance(teacher, torch.randn(4, 3, 16, 16), probes=2)
    assert found.layers == ("stem.0", "conv", "head")
    assert all(h > 0 for h in found.trace)


@pytest.mark.parametrize("method", ["gauss-newton", "hessian"])
def test_the_teacher_stays_as_it_was(method):
    net = tiny()
    flags = {"0.weight": False, "2.weight": True, "5.weight": False}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(flags[name])
    before = weights_of(net)
    measure_importance(net, images(), method=method, probes=2)
    assert {n: p.requires_grad for n, p in net.named_parameters()} == flags
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_flags_are_restored_after_a_failure():
    net = tiny()
    with pytest.raises(RuntimeError):
        measure_importance(net, torch.randn(2, 9, 5, 5), probes=2)
    assert not any(p.requires_grad for p in net.parameters())


RAW = Importance(("a", "b", "c", "d"), (0.001, -0.002, 0.006, 0.003), (0.0,) * 4)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [0.001, 0, 0.006, 0.003]),
        ("mean", [0.4, 0, 2.4, 1.2]),
        ("max", [1 / 6, 0, 1, 0.5]),
        ("rank", [2 / 3, 0, 2, 4 / 3]),
    ],
)
def test_normalisations(how, expected):
    found = RAW.normalized(how)
    assert list(found) == list(RAW.layers)
    assert max(abs(found[k] - v) for k, v in zip(RAW.layers, expected, strict=True)) < 1e-12


def test_normalisation_by_the_mean_is_clipped_and_zeros_stay_zero():
    layers = tuple(map(str, range(30)))
    spike = Importance(layers, (1.0, *[0.0] * 29), (0.0,) * 30)
    assert spike.normalized("mean")["0"] == 10
    nothing = Importance(layers, (-1.0,) * 30, (0.0,) * 30)
    for how in ("mean", "max", "none"):
        assert set(nothing.normalized(how).values()) == {0}


NEAREST = {
    "residual": (
        {
            **{"bn1": "conv1", "layer1.bn1": "layer1.conv1", "layer1.bn2": "layer1.conv2"},
            **{"layer2.bn1": "layer2.conv1", "layer2.bn2": "layer2.conv2"},
        },
        {"relu_2": "layer1.conv2", "relu_4": "layer2.conv2", "linear": "linear"},
    ),
    "concat": (
        {"stem.1": "stem.0", "left.1": "left.0", "right.1": "right.0", "merge.1": "merge.0"},
        {"cat": "right.0", "mean": "head"},
    ),
    "pre_activation": (
        {"bn1": "stem", "bn2": "conv1", "bn3": "conv2"},
        {"add": "conv2", "head": "head"},
    ),
}


@pytest.mark.parametrize("name", NEAREST)
def test_taps_go_with_the_last_layer_before_them(name):
    teacher = prepare(ALL[name](), QConfig(), (3, 16, 16)).teacher
    norms, features = NEAREST[name]
    assert nearest_layers(teacher, BN_TAPS) == norms
    assert nearest_layers(teacher, FEATURE_TAPS) == features
