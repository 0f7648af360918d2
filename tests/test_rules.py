"""What a user says about their own modules and functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exports import SHAPE, noise
from torch import Tensor, nn

from fxquant.calibration import calibrate
from fxquant.errors import SettingError
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.insert_quantizers import is_activation_quantizer, quantized_layers
from fxquant.graph.ops import kind, module_of
from fxquant.graph.prepare import prepare
from fxquant.graph.reasons import float_reason
from fxquant.spec import QConfig


class Swap(nn.Module):
    """Changes places of numbers, which no table knows: halves of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([right, left], 1)


class Soft(nn.Module):
    """A function of one number with a layer inside."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(self.conv(x))


class Softer(Soft):
    pass


class Own(nn.Module):
    def __init__(self, middle: nn.Module):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 8, 3), middle
        self.conv, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.middle(F.relu(self.stem(x))))
        return self.head(torch.sinc(x).mean((2, 3)))


def prepared(middle: nn.Module, **hooks):
    torch.manual_seed(0)
    return prepare(Own(middle), QConfig(8, 8), SHAPE, **hooks)


def placed(student: nn.Module) -> list[str]:
    """Values that have a quantizer, in graph order."""
    return [n.args[0].name for n in student.graph.nodes if is_activation_quantizer(n)]


def test_a_leaf_is_not_looked_into_and_what_it_gives_is_quantized():
    p = prepared(Soft(), leaves=(Soft,))
    (node,) = [n for n in p.student.graph.nodes if isinstance(module_of(n), Soft)]
    assert len(quantized_layers(p.student)) == 3
    assert float_reason(node) == "an operation without a known integer form"
    assert placed(p.student) == ["x", "relu", "middle", "conv", "sinc", "mean"]
    assert len(quantized_layers(prepared(Soft()).student)) == 4


@pytest.mark.parametrize(
    ("word", "values", "reason"),
    [
        ("move", ["x", "relu", "conv", "sinc", "mean"], None),
        ("average", ["x", "relu", "middle", "conv", "sinc", "mean"], None),
        (
            "activation",
            ["x", "relu", "middle", "conv", "sinc", "mean"],
            "an activation that integer",
        ),
        ("float", ["x", "relu", "middle", "conv", "sinc", "mean"], "a rule keeps it float"),
    ],
)
def test_a_rule_says_where_quantizers_go_around_a_class(word, values, reason):
    p = prepared(Softer(), rules={Soft: word})
    assert placed(p.student) == values
    (node,) = [n for n in p.student.graph.nodes if isinstance(module_of(n), Soft)]
    found = float_reason(node)
    assert found is None if reason is None else found.startswith(reason)


def test_the_nearest_class_counts_and_functions_have_rules_too():
    rules = {Soft: "float", Softer: "average", torch.sinc: "move"}
    student = prepared(Softer(), rules=rules).student
    kinds = {n.name: kind(n) for n in student.graph.nodes if n.name in ("middle", "sinc")}
    assert kinds == {"middle": "average", "sinc": "move"}
    assert placed(student) == ["x", "relu", "middle", "conv", "mean"]


def test_a_module_of_ones_own_that_moves_numbers_is_exported(tmp_path):
    p = prepared(Swap(), rules={Swap: "move"})
    calibrate(p.student, noise(32))
    path = export_onnx(p.student, tmp_path / "m.onnx", input_shape=SHAPE)
    parity = check_parity(p.student, path, noise(16))
    assert parity.passed
    assert (parity.convolutions_integer, parity.linears_integer) == (2, 1)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({Swap: "fast"}, r"the rule for Swap is 'fast'"),
        ({"Swap": "move"}, r"a rule is about 'Swap', which is no module class and no function"),
        ({int: "move"}, r"a rule is about int, which is no module class"),
    ],
)
def test_rules_that_say_nothing_known_are_refused(rules, message):
    with pytest.raises(SettingError, match=message):
        prepared(Swap(), rules=rules)
