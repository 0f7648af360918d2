"""Where quantizers go, and at which width."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from nets import ALL, ConvBn
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.calibration import calibrate
from fxquant.errors import SettingError
from fxquant.graph.insert_quantizers import ACTIVATIONS, NARROWS, layer_name, quantized_layers
from fxquant.graph.ops import kind, module_of
from fxquant.graph.prepare import prepare
from fxquant.quantizer import Quantizer
from fxquant.spec import LayerRule, QConfig

SHAPE = (3, 16, 16)
WIDTHS = QConfig(weight_bits=3, act_bits=4, sum_bits=6, input_bits=7)
# Bits by value under WIDTHS: 7 the input, 6 what is added, pooled, ..., 4 what a layer reads; of a
# value that is both, `_4_bits` is what the layer reads.
PLACED = {
    "residual": {
        **{"x": 7, "relu": 6, "relu_4_bits": 4, "relu_1": 4, "layer1_conv2": 6},
        **{"relu_2": 6, "relu_2_4_bits": 4, "relu_3": 4, "layer2_conv2": 6},
        **{"relu_4": 6, "avg_pool2d": 4},
    },
    "inverted_residual": {
        **{"x": 7, "features_0_2": 6, "features_0_2_4_bits": 4, "features_1_body_0_2": 4},
        **{"features_1_body_1_2": 4, "features_1_body_2_0": 6, "add": 4},
        **{"features_2_body_0_2": 4, "features_2_body_1_2": 4, "features_2_body_2_0": 6},
        **{"adaptive_avg_pool2d": 4},
    },
    "concat": {
        **{"x": 7, "stem_2": 6, "stem_2_4_bits": 4, "left_2": 6, "right_2": 6, "pool": 6},
        **{"cat": 4, "merge_2": 4, "head": 6},
    },
    "squeeze_excite": {
        **{"x": 7, "stem_2": 4, "body_2": 6, "adaptive_avg_pool2d": 4, "relu": 4, "excite": 6},
        **{"sigmoid": 6, "mul": 4, "last_2": 6, "mean": 4},
    },
    "plain": {"x": 7, "features_2": 4, "features_6": 4, "classifier_2": 4},
    "shared_relu": {
        **{"x": 7, "relu": 6, "relu_4_bits": 4, "second_0": 6, "relu_1": 4, "relu_2": 6},
        "mean": 4,
    },
    "repeated_conv": {
        **{"x": 7, "stem_2": 4, "conv": 6, "relu": 4, "conv_1": 6, "relu_1": 6, "mean": 4},
    },
    "pre_activation": {
        **{"x": 7, "stem": 6, "relu": 4, "relu_1": 4, "conv2": 6, "relu_2": 6, "mean": 4},
    },
}


def student_of(model: nn.Module, config: QConfig = WIDTHS) -> GraphModule:
    return prepare(model, config, SHAPE).student


def placed(student: GraphModule) -> dict[str, int]:
    """Bits of the activation quantizers by the value that each is named after, in graph order."""
    return {
        str(node.target).removeprefix(f"{ACTIVATIONS}."): module_of(node).spec.bits
        for node in student.graph.nodes
        if node.op == "call_module" and node.target.startswith(f"{ACTIVATIONS}.")
    }


def weight_bits(student: GraphModule) -> dict[str, int]:
    nodes = quantized_layers(student)
    return {layer_name(n): module_of(n.args[1]).spec.bits for n in nodes}


def read_bits(student: GraphModule) -> dict[str, int]:
    """Bits of what each layer reads, by its name."""
    found = {}
    for node in quantized_layers(student):
        source = node.args[0]
        while not isinstance(module_of(source), Quantizer):
            source = source.args[0]
        found[layer_name(node)] = module_of(source).spec.bits
    return found


def quantizer_nodes(student: GraphModule) -> list[Node]:
    return [n for n in student.graph.nodes if isinstance(module_of(n), Quantizer)]


@pytest.mark.parametrize("name", ALL)
def test_every_value_that_needs_a_quantizer_has_it_at_its_width(name):
    student = student_of(ALL[name]())
    assert placed(student) == PLACED[name]
    assert set(weight_bits(student).values()) == {3}


@pytest.mark.parametrize("name", ALL)
def test_one_quantizer_per_value_and_one_value_per_quantizer(name):
    p = prepare(ALL[name](), WIDTHS, SHAPE)
    student = p.student
    nodes = quantizer_nodes(student)
    distinct = {id(m) for m in student.modules() if isinstance(m, Quantizer)}
    assert p.rewrites["insert_quantizers"] == len(distinct)
    assert {id(module_of(n)) for n in nodes} == distinct
    activations = [n for n in nodes if n.target.startswith(f"{ACTIVATIONS}.")]
    assert len({id(module_of(n)) for n in activations}) == len(activations)
    for node in [node for node in activations if NARROWS not in node.meta]:
        assert list(node.args[0].users) == [node]


@pytest.mark.parametrize("name", ALL)
def test_no_quantizer_where_numbers_only_move_or_a_relu_fuses(name):
    student = student_of(ALL[name]())
    for node in [node for node in quantizer_nodes(student) if NARROWS not in node.meta]:
        assert kind(node.args[0]) != "move"
        assert not any(kind(user) == "relu" for user in node.users)
        quantized_again = {u for u in node.users if isinstance(module_of(u), Quantizer)}
        assert all(NARROWS in user.meta for user in quantized_again)
        assert quantized_again != set(node.users)


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "concat", "shared_relu"])
def test_a_shortcut_keeps_its_bits_and_the_layers_beside_it_read_fewer(name):
    student = student_of(ALL[name]())
    narrow = [node for node in quantizer_nodes(student) if NARROWS in node.meta]
    assert narrow
    for node in narrow:
        assert all(user in quantized_layers(student) for user in node.users)
        value = node.args[0]
        others = [user for user in value.users if user is not node]
        assert {kind(user) for user in others} <= {"add", "average", "move"}
        source = value.args[0] if "tapped" in value.meta else value
        assert (module_of(source).spec.bits, module_of(node).spec.bits) == (6, 4)


def test_one_quantizer_serves_both_where_sums_have_no_more_bits():
    student = student_of(ALL["residual"](), QConfig(3, 4, sum_bits=4))
    assert not [node for node in quantizer_nodes(student) if NARROWS in node.meta]
    assert placed(student)["relu"] == 4


class Pooled(nn.Module):
    """As in a ResNet's stem: pooling lies between the value and both of those that read it."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = ConvBn(3, 8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        return F.relu(x + self.conv(x))


def test_what_a_layer_reads_is_narrowed_behind_ops_that_move_numbers():
    student = student_of(Pooled())
    assert placed(student) == {"x": 7, "stem_2": 6, "max_pool2d_4_bits": 4, "conv": 6}
    assert read_bits(student) == {"stem.0": 7, "conv": 4}


@pytest.mark.parametrize("name", ALL)
def test_every_layer_reads_a_quantized_weight_and_a_quantized_activation(name):
    student = student_of(ALL[name]())
    layers = quantized_layers(student)
    assert len(layers) == sum(kind(n) in ("conv", "linear") for n in student.graph.nodes)
    for node in layers:
        source = node.args[0]
        while not isinstance(module_of(source), Quantizer):
            assert kind(source) == "move" or "tapped" in source.meta, source
            source = source.args[0]


def test_fake_quant_nodes_are_visible_in_the_printed_graph():
    student = student_of(ALL["residual"]())
    text = str(student.graph)
    assert "call_module[target=conv1.weight_quantizer](args = (%conv1_weight,)" in text
    assert "call_module[target=activation_quantizers.relu](args = (%relu,)" in text
    assert "torch.conv2d" in text
    assert "self.activation_quantizers.relu" in student.code
    assert "(weight_quantizer): Quantizer(3 bits, signed, channel axis 0)" in str(student.conv1)


def test_every_call_of_a_shared_relu_has_its_own_quantizer_and_range():
    student = student_of(ALL["shared_relu"]())
    calibrate(student, torch.randn(8, *SHAPE))
    ranges = [student.get_submodule(f"{ACTIVATIONS}.{n}").scale for n in ("relu", "relu_1")]
    assert ranges[0] != ranges[1]


def test_a_convolution_called_twice_shares_its_weight_quantizer():
    student = student_of(ALL["repeated_conv"]())
    calls = [n for n in quantized_layers(student) if layer_name(n) == "conv"]
    assert len(calls) == 2
    assert {n.args[1].target for n in calls} == {"conv.weight_quantizer"}
    assert calls[0].args[0] is not calls[1].args[0]


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_modes_become_a_visible_pad(mode):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.ReLU()).eval()
    student, x = student_of(model), torch.randn(2, *SHAPE)
    assert (student(x) - model(x)).abs().max() < 1e-5
    assert any(node.target is F.pad for node in student.graph.nodes)


class Repeats(nn.Module):
    """ReLUs of what is already non-negative, ahead of a convolution and of a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = ConvBn(3, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(F.relu(self.conv(x)).mean((2, 3))))


def test_a_redundant_relu_leaves_the_quantizer_at_the_value_before_it():
    assert placed(student_of(Repeats())) == {"x": 7, "stem_2": 4, "relu_1": 6, "mean": 4}


class Preprocessed(nn.Module):
    """Scales its input itself; the last of those values is what the first layer reads."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + 1) * 0.5
        return self.head(self.conv(x).mean((2, 3)))


def test_the_input_is_quantized_after_the_models_own_preprocessing():
    assert placed(student_of(Preprocessed())) == {"mul": 7, "conv": 6, "mean": 4}


def test_the_last_matching_rule_wins():
    rules = (LayerRule("layer1.*", 8), LayerRule("layer1.conv2", 5), LayerRule("conv?", 2))
    student = student_of(ALL["residual"](), QConfig(3, 4, layers=rules))
    assert weight_bits(student) == {
        **{"conv1": 2, "layer1.conv1": 8, "layer1.conv2": 5},
        **{"layer2.conv1": 3, "layer2.conv2": 3, "linear": 3},
    }
    # The bits are also those of the activations that enter the layer.
    found = placed(student)
    assert (found["relu"], found["relu_1"], found["relu_2_4_bits"]) == (8, 5, 4)
    assert "relu_8_bits" not in found
    swapped = QConfig(3, 4, layers=rules[1::-1])
    assert weight_bits(student_of(ALL["residual"](), swapped))["layer1.conv2"] == 8


class Branches(nn.Module):
    """Two convolutions that read one value."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = ConvBn(3, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.left(x), self.right(x)


def test_each_of_two_layers_reads_a_value_at_its_own_width():
    student = student_of(Branches(), QConfig(3, 4, layers=(LayerRule("left", 7),)))
    found = placed(student)
    assert (found["stem_2"], found["stem_2_4_bits"]) == (7, 4)
    assert read_bits(student) == {"stem.0": 8, "left": 7, "right": 4}


def test_a_float_layer_stays_a_module_and_says_why(caplog):
    caplog.set_level(logging.INFO, logger="fxquant")
    rules = (LayerRule("*", None), LayerRule("layer*", 4))
    student = student_of(ALL["residual"](), QConfig(3, 4, layers=rules))
    floats = {
        node.target: node.meta["float_reason"]
        for node in student.graph.nodes
        if node.op == "call_module" and "float_reason" in node.meta
    }
    assert floats == dict.fromkeys(["conv1", "linear"], "a layer rule keeps it float")
    assert "linear stays float: a layer rule keeps it float" in caplog.messages
    assert weight_bits(student).keys() == {
        *("layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"),
    }
    assert not {"x", "avg_pool2d"} & placed(student).keys()


def test_first_and_last_layer_have_their_own_width():
    config = QConfig(3, 4, sum_bits=6, input_bits=7, first_last_bits=8)
    student = student_of(ALL["residual"](), config)
    bits = weight_bits(student)
    assert (bits.pop("conv1"), bits.pop("linear")) == (8, 8)
    assert set(bits.values()) == {3}
    found = placed(student)
    assert found == PLACED["residual"] | {"avg_pool2d": 8}


def test_a_layer_rule_overrides_the_width_of_the_first_layer():
    config = QConfig(3, 4, first_last_bits=8, layers=(LayerRule("conv1", 5),))
    assert weight_bits(student_of(ALL["residual"](), config))["conv1"] == 5


@pytest.mark.parametrize(
    ("text", "pattern", "bits"),
    [("features.0=8", "features.0", 8), ("head.*=float", "head.*", None), ("a=b=2", "a=b", 2)],
)
def test_layer_rules_are_read_from_text(text, pattern, bits):
    rule = LayerRule.parse(text)
    assert (rule.pattern, rule.bits) == (pattern, bits)
    assert str(rule) == text


@pytest.mark.parametrize(
    "text", ["features.0", "=8", "conv=9", "conv=1", "conv=", "conv=half", "8"]
)
def test_layer_rules_that_can_not_be_read_are_refused(text):
    with pytest.raises(SettingError):
        LayerRule.parse(text)


@pytest.mark.parametrize("field", ["weight_bits", "act_bits", "sum_bits", "input_bits"])
def test_widths_outside_2_to_8_are_refused_by_name(field):
    with pytest.raises(SettingError, match=f"{field} is 9; expected a whole number from 2 to 8"):
        QConfig(**{field: 9})


class Shares(nn.Module):
    """Divides by sums that may be as small as 0, as linear attention does."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        total = y.mean(1, keepdim=True) + 1e-5
        return self.head(y / total)


def test_what_is_only_divided_by_stays_off_the_grid():
    model = Shares()
    nn.init.constant_(model.conv.bias, -0.5)
    student = student_of(model, QConfig(8, 8))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[0] = 0
    calibrate(student, images)
    assert "add" not in placed(student)
    assert torch.isfinite(student(images)).all()
