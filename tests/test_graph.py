"""Folding, taps and `prepare`: counts, numerics, refusals, a second run that changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import ALL, ConvBn, SharedRelu
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fxquant.errors import SettingError
from fxquant.graph.fold_batchnorm import fold_batchnorm
from fxquant.graph.forms.layers import own_layers
from fxquant.graph.insert_quantizers import insert_quantizers
from fxquant.graph.insert_taps import (
    BN_TAPS,
    FEATURE_TAPS,
    choose_features,
    insert_bn_taps,
    insert_feature_taps,
    record,
    tap_names,
)
from fxquant.graph.prepare import prepare
from fxquant.graph.trace import trace
from fxquant.spec import LayerRule, QConfig

SHAPE = (3, 16, 16)
FOLDED = {
    "residual": 5,
    "inverted_residual": 7,
    "concat": 4,
    "squeeze_excite": 3,
    "plain": 2,
    "shared_relu": 3,
    "repeated_conv": 1,
    "pre_activation": 1,
}
BATCHNORMS = FOLDED | {"repeated_conv": 3, "pre_activation": 3}
# Outputs of residual blocks, else what comes before each change of resolution; and the output.
FEATURES = {
    "residual": ["relu_2", "relu_4", "linear"],
    "inverted_residual": ["add", "classifier_1"],
    "concat": ["cat", "mean"],
    "squeeze_excite": ["stem_2", "body_2", "head"],
    "plain": ["features_2", "features_6", "classifier_3"],
    "shared_relu": ["relu_1", "head"],
    "repeated_conv": ["head"],
    "pre_activation": ["add", "head"],
}


def images(count: int = 5) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(3))


def built(network: Callable[[], nn.Module]) -> nn.Module:
    """The same network at each call, with statistics that normalise nothing to 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network().eval()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", ALL)
def test_folding_counts_and_keeps_the_function(name):
    model = ALL[name]()
    gm = trace(model, SHAPE).model
    assert fold_batchnorm(gm) == FOLDED[name]
    gm.recompile()
    assert (gm(images()) - model(images())).abs().max() < 1e-5
    left = [m for m in gm.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == BATCHNORMS[name] - FOLDED[name]
    assert fold_batchnorm(gm) == 0


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("repeated_conv", [f"conv or {bn} is called more than once" for bn in ("bn1", "bn2")]),
        (
            "pre_activation",
            [
                "the output of stem is also used elsewhere",
                "its input is not a convolution or linear layer",
            ],
        ),
    ],
)
def test_refusals_to_fold_are_logged_with_their_reason(name, reasons, caplog):
    caplog.set_level(logging.INFO, logger="fxquant")
    gm = trace(ALL[name](), SHAPE).model
    fold_batchnorm(gm)
    kept = [node.meta["not_folded"] for node in gm.graph.nodes if "not_folded" in node.meta]
    messages = [m for m in caplog.messages if "is not folded" in m]
    assert kept == reasons
    for reason, message in zip(reasons, messages, strict=True):
        assert reason in message


class OddNorms(nn.Module):
    """Batch norms before a convolution, without statistics, on a function's output, on a linear."""

    def __init__(self):
        super().__init__()
        self.before, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)
        self.own = nn.BatchNorm2d(8, track_running_stats=False)
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.after = nn.BatchNorm2d(8, affine=False)
        self.linear, self.flat = nn.Linear(8, 6), nn.BatchNorm1d(6)
        self.frozen = FrozenBatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.own(self.conv(self.before(x))))
        x = F.relu(self.after(F.conv2d(x, weight=self.weight)))
        x = self.frozen(self.last(x))
        return self.flat(self.linear(x.mean((2, 3))))


def test_linear_layers_and_frozen_norms_fold_and_odd_ones_do_not():
    model = built(OddNorms)
    gm = trace(model, SHAPE).model
    assert own_layers(gm) == 1
    assert fold_batchnorm(gm) == 3
    gm.recompile()
    assert (gm(images(2)) - model(images(2))).abs().max() < 1e-5
    reasons = {n.target: n.meta["not_folded"] for n in gm.graph.nodes if "not_folded" in n.meta}
    assert reasons["before"] == "its input is not a convolution or linear layer"
    assert reasons["own"] == "it keeps no running statistics"
    assert reasons.keys() == {"before", "own"}
    assert gm.linear.bias is not None
    assert gm.last.bias is not None


def test_every_batch_norm_with_statistics_is_tapped():
    gm = trace(built(OddNorms), SHAPE).model
    assert insert_bn_taps(gm) == 4
    assert tap_names(gm, BN_TAPS) == ["before", "after", "frozen", "flat"]


@pytest.mark.parametrize("name", ALL)
def test_bn_taps_record_the_inputs_of_batch_norms(name):
    model = ALL[name]()
    gm = trace(model, SHAPE).model
    assert insert_bn_taps(gm) == BATCHNORMS[name]
    gm.recompile()
    seen = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, args, out, path=path: seen.update({path: args}))
    expected = model(images())
    with record(gm, BN_TAPS) as values:
        assert (gm(images()) - expected).abs().max() < 1e-5
    assert list(values) == tap_names(gm, BN_TAPS)
    assert values.keys() == seen.keys()
    for path, (value,) in seen.items():
        assert (values[path] - value).abs().max() < 1e-5
    assert insert_bn_taps(gm) == 0


def test_taps_record_only_inside_the_block_and_only_their_group():
    p = prepare(ALL["shared_relu"](), QConfig(), SHAPE)
    with record(p.teacher, FEATURE_TAPS) as values:
        p.teacher(images(2))
        kept = dict(values)
    p.teacher(images(3))
    assert list(kept) == FEATURES["shared_relu"]
    assert values == kept
    with record(p.student, BN_TAPS) as none:
        p.student(images(2))
    assert none == {}


@pytest.mark.parametrize("name", ALL)
def test_features_are_residual_outputs_or_precede_changes_of_resolution(name):
    gm = trace(ALL[name](), SHAPE).model
    assert choose_features(gm) == FEATURES[name]
    assert insert_feature_taps(gm, FEATURES[name]) == len(FEATURES[name])
    gm.recompile()
    with record(gm, FEATURE_TAPS) as values:
        output = gm(images())
    assert sorted(values) == sorted(FEATURES[name])
    assert values[FEATURES[name][-1]] is output
    assert insert_feature_taps(gm, FEATURES[name]) == 0


class TwoOutputs(nn.Module):
    """Two maps of one resolution, as a detector's heads give, one from a functional layer."""

    def __init__(self):
        super().__init__()
        self.stem = ConvBn(3, 8)
        self.boxes = nn.Conv2d(8, 4, 1)
        self.weight = nn.Parameter(torch.randn(2, 8, 3, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"boxes": self.boxes(x), "scores": F.conv2d(x, weight=self.weight, padding=1)}


def test_all_outputs_of_a_nested_result_are_features():
    p = prepare(built(TwoOutputs), QConfig(), SHAPE)
    assert p.features == ("boxes", "conv2d")
    with record(p.student, FEATURE_TAPS) as values:
        output = p.student(images(2))
    assert values["boxes"] is output["boxes"]
    assert values["conv2d"] is output["scores"]


def test_a_feature_that_is_a_folded_norms_output_is_tapped_at_the_layer():
    model = nn.Sequential(ConvBn(3, 8, activation=None), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1))
    p = prepare(built(lambda: model), QConfig(), SHAPE)
    assert p.features == ("_0_1", "_2")
    with record(p.student, FEATURE_TAPS) as found, record(p.teacher, FEATURE_TAPS) as expected:
        p.student(images())
        p.teacher(images())
    assert (found["_0_1"] - expected["_0_1"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_student_equals_teacher_while_its_quantizers_are_disabled(name):
    model = ALL[name]()
    p = prepare(model, QConfig(2, 2), SHAPE)
    assert (p.teacher(images()) - model(images())).abs().max() < 1e-5
    assert (p.student(images()) - p.teacher(images())).abs().max() < 1e-4
    with record(p.student, FEATURE_TAPS) as found, record(p.teacher, FEATURE_TAPS) as expected:
        p.student(images())
        p.teacher(images())
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert (found[key] - value).abs().max() < 1e-4
    assert p.rewrites["fold_batchnorm"] == FOLDED[name]
    assert p.features == tuple(FEATURES[name])


@pytest.mark.parametrize("name", ALL)
def test_a_second_run_of_the_passes_changes_nothing(name):
    p = prepare(ALL[name](), QConfig(), SHAPE)
    before = str(p.student.graph), str(p.teacher.graph)
    assert fold_batchnorm(p.student) == 0
    assert insert_quantizers(p.student, QConfig()) == 0
    assert insert_feature_taps(p.student, list(p.features)) == 0
    assert insert_bn_taps(p.teacher) == insert_feature_taps(p.teacher, list(p.features)) == 0
    assert (str(p.student.graph), str(p.teacher.graph)) == before


def test_prepare_leaves_the_model_as_it_was():
    model = SharedRelu().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parts = [name for name, _ in model.named_modules()]
    p = prepare(model, QConfig(), SHAPE)
    with torch.no_grad():
        for parameter in [*p.student.parameters(), *p.teacher.parameters()]:
            parameter.zero_()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [name for name, _ in model.named_modules()] == parts
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_teacher_and_student_share_no_memory():
    p = prepare(ALL["residual"](), QConfig(), SHAPE)
    teacher = {value.data_ptr() for value in p.teacher.state_dict().values()}
    student = {m.data_ptr() for m in [*p.student.parameters(), *p.student.buffers()]}
    assert not teacher & student


def test_nothing_to_quantize_is_an_error():
    with pytest.raises(SettingError, match="there is nothing to quantize"):
        prepare(nn.Sequential(nn.ReLU(), nn.Flatten()), QConfig(), SHAPE)
    with pytest.raises(SettingError, match="layer rules keep all of them float"):
        prepare(ALL["plain"](), QConfig(layers=(LayerRule("*", None),)), SHAPE)
