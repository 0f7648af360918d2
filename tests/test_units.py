"""Units: where a student's graph is cut for reconstruction."""

from __future__ import annotations

import pytest
import torch
from nets import ALL, ConvBn
from torch import Tensor, nn

from fxquant.graph import units as units_module
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.prepare import prepare
from fxquant.graph.units import find_units, tapped_name
from fxquant.spec import QConfig


def student(model: nn.Module) -> nn.Module:
    return prepare(model, QConfig(), (3, 16, 16)).student


def layers(model: nn.Module) -> list[list[str]]:
    return [[layer_name(node) for node in unit.layers] for unit in find_units(model)]


def test_residual_blocks_are_units_and_so_are_stem_and_head():
    assert layers(student(ALL["residual"]())) == [
        ["conv1"],
        ["layer1.conv1", "layer1.conv2"],
        ["layer2.conv1", "layer2.conv2"],
        ["linear"],
    ]


def test_a_plain_chain_goes_layer_by_layer():
    assert layers(student(ALL["plain"]())) == [
        ["features.0"],
        ["features.4"],
        ["classifier.1"],
        ["classifier.3"],
    ]


def test_a_gate_is_in_the_unit_of_what_it_multiplies():
    assert ["squeeze", "excite"] in layers(student(ALL["squeeze_excite"]()))


@pytest.mark.parametrize("name", ALL)
def test_every_layer_is_in_one_unit_and_values_that_cross_are_named(name):
    model = student(ALL[name]())
    units = find_units(model)
    inside = [node for unit in units for node in unit.layers]
    assert sorted(inside, key=str) == sorted(quantized_layers(model), key=str)
    for unit in units:
        for node in unit.nodes:
            outside = [p for p in node.all_input_nodes if p not in unit.nodes]
            assert set(outside) <= set(unit.inputs)
            assert node in unit.outputs or all(user in unit.nodes for user in node.users)


class Dense(nn.Module):
    """Each layer reads all before it."""

    def __init__(self, count: int):
        super().__init__()
        self.layers = nn.ModuleList(ConvBn(3 + 2 * i, 2) for i in range(count))
        self.head = nn.Linear(3 + 2 * count, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(torch.cat(found, 1).mean((2, 3)))


def test_a_long_dense_stretch_is_cut_with_several_values_crossing(monkeypatch):
    monkeypatch.setattr(units_module, "MOST_LAYERS", 2)
    units = find_units(student(Dense(4).eval()))
    assert [len(unit.layers) for unit in units] == [2, 2, 1]
    assert len(units[1].inputs) > 1
    assert len(units[0].outputs) > 1


class PassesASize(nn.Module):
    """A size is read before a layer and used after it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = ConvBn(3, 4), ConvBn(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = x.size(0)
        x = self.second(self.first(x))
        return self.head(x.mean((2, 3)).view(count, -1))


def test_a_value_that_is_no_tensor_stays_within_its_unit():
    units = find_units(student(PassesASize().eval()))
    assert all("shape" in node.meta for unit in units for node in unit.inputs)
    assert sum(len(unit.layers) for unit in units) == 3


def test_a_tapped_value_has_the_name_of_the_value():
    unit = find_units(student(ALL["residual"]()))[1]
    assert [tapped_name(node) for node in unit.outputs] == ["relu_2"]
