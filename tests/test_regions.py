"""Models that are graphs in part: names, nodes, and running them node by node."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant.graph.regions import (
    REGION,
    all_nodes,
    interpreted,
    qualify,
    region_of,
    regions,
    value_name,
)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, shift: float) -> Tensor:
        return self.layer(x) + shift


class Host(nn.Module):
    """Two branches that are graphs, and a choice between them that is not."""

    def __init__(self):
        super().__init__()
        for name in ("left", "right"):
            graph = fx.symbolic_trace(Branch())
            graph.meta[REGION] = name
            setattr(self, name, graph)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = self.left(x, shift=1.0)
        return self.right(x, 2.0)


class Recorder(fx.Interpreter):
    """Counts the nodes that it runs."""

    count = 0

    def run_node(self, n: fx.Node):
        self.count += 1
        return super().run_node(n)


def test_regions_are_found_and_know_their_names_also_in_a_copy():
    for model in (Host(), copy.deepcopy(Host())):
        assert [r.meta[REGION] for r in regions(model)] == ["left", "right"]
        assert qualify(model.right, "layer") == "right.layer"
        assert {value_name(node) for node in all_nodes(model)} >= {"left.layer", "right.add"}
        assert all(region_of(node) in (model.left, model.right) for node in all_nodes(model))


def test_a_graph_is_the_root_region_of_itself():
    graph = fx.symbolic_trace(Branch())
    assert regions(graph) == [graph]
    assert qualify(graph, "layer") == "layer"
    assert next(map(value_name, all_nodes(graph))) == "x"


@pytest.mark.parametrize(("sign", "counts"), [(1, [5, 5]), (-1, [0, 5])])
def test_regions_run_through_interpreters_inside_the_block_alone(sign, counts):
    model, x = Host(), sign * torch.ones(2, 4)
    expected = model(x)
    with interpreted(model, Recorder) as recorders:
        assert torch.equal(model(x), expected)
    assert [recorder.count for recorder in recorders] == counts
    model(x)
    assert [recorder.count for recorder in recorders] == counts


def test_regions_are_themselves_again_after_an_error():
    model = Host()
    with pytest.raises(RuntimeError), interpreted(model, Recorder):
        model(torch.ones(2, 5))
    assert "forward" not in vars(model.left)
