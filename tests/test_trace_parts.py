"""Models that trace in part: what becomes a leaf, what is traced inside it, and what is told."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from tracing import SHAPE, images, line_of, region_names

from fxquant.errors import TraceError
from fxquant.graph.ops import kind
from fxquant.graph.regions import regions
from fxquant.graph.trace import LeftOut, trace


def assert_same(left, right) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


class Body(nn.Sequential):
    def __init__(self, inputs: int = 4, outputs: int = 4):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class Branching(nn.Module):
    """Chooses by size how often to run two bodies: no graph can."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Body(), Body()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        if x.shape[-1] > 20:
            x = self.first(x)
        return x


class WithBranching(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = Body(3), Branching(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


def test_what_cannot_be_traced_becomes_a_leaf_with_regions_inside():
    model = WithBranching().eval()
    traced = trace(model, SHAPE)
    assert isinstance(traced.model, GraphModule)
    assert region_names(traced.model) == ["", "block.first", "block.second"]
    calls = [n.target for n in traced.model.graph.nodes if n.op == "call_module"]
    assert calls == ["stem.0", "stem.1", "stem.2", "block", "head"]
    for x in (images(), images(1, 24, 24)):
        assert_same(traced.model(x), model(x))


def test_what_is_left_out_is_told_with_file_line_and_reason():
    traced = trace(WithBranching(), SHAPE)
    line = line_of(Branching, "if x.shape")
    reason = "it branches on the size of a tensor: `if x.shape[-1] > 20:`"
    assert traced.left_out == (LeftOut("block", "Branching", __file__, line, reason, ()),)
    assert traced.fixed_size == ()


def test_names_in_the_state_dict_stay():
    model = WithBranching()
    assert set(trace(model, SHAPE).model.state_dict()) == set(model.state_dict())


def test_a_copy_computes_the_same_and_its_regions_keep_their_names():
    model = WithBranching().eval()
    again = copy.deepcopy(trace(model, SHAPE).model)
    assert region_names(again) == ["", "block.first", "block.second"]
    assert_same(again(images()), model(images()))


def test_only_regions_that_read_the_networks_input_are_marked_so():
    traced = trace(Lists().eval(), SHAPE)
    marked = {
        (region.meta["region"], node.name)
        for region in regions(traced.model)
        for node in region.graph.nodes
        if node.meta.get("network_input")
    }
    assert marked == {("backbone", "x")}


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Body(3), Body()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        return {"fine": x, "coarse": self.second(F.max_pool2d(x, 2))}


class Head(nn.Module):
    """Takes a list of feature maps; one convolution reads them all."""

    def __init__(self):
        super().__init__()
        self.conv, self.scales = nn.Conv2d(4, 2, 3, padding=1), (1.0, 2.0)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        if len(features) != len(self.scales):
            raise ValueError(f"{len(features)} features")
        return [self.conv(x) * s for x, s in zip(features, self.scales, strict=True)]


class Lists(nn.Module):
    """A detector in small: sizes as numbers, in the model's own code, between traced parts."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), Head()

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(list(self.backbone(x).values()))
        cells = [(i, j) for i in range(found[0].shape[2]) for j in range(found[0].shape[3])]
        return found[0].flatten(2) * len(cells)


class Host(Lists):
    fxquant_host = True


@pytest.mark.parametrize("model", [Lists(), Host()], ids=["fails", "host"])
def test_under_a_root_that_cannot_be_traced_the_largest_parts_are(model):
    model.eval()
    traced = trace(model, SHAPE)
    assert type(traced.model) is type(model)
    assert region_names(traced.model) == ["backbone", "head"]
    assert_same(traced.model(images(2, 20, 20)), model(images(2, 20, 20)))


def test_a_host_is_not_told_as_left_out_but_a_root_that_fails_is():
    assert trace(Host(), SHAPE).left_out == ()
    (left_out,) = trace(Lists(), SHAPE).left_out
    assert (left_out.name, left_out.type, left_out.hidden) == ("", "Lists", ())
    assert left_out.line == line_of(Lists, "cells =")
    assert left_out.reason.startswith("it uses the size of a tensor as a Python number: `cells =")


def test_a_host_inside_a_model_is_called_and_its_parts_are_traced():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = Host(), nn.Conv1d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(self.inner(x))

    assert region_names(trace(Around(), SHAPE).model) == ["", "inner.backbone", "inner.head"]


def test_tensors_that_enter_in_a_structure_are_entries():
    head = trace(Host(), SHAPE).model.head
    entries = [n for n in head.graph.nodes if kind(n) == "entry"]
    assert [tuple(n.args[1:]) for n in entries] == [(0,), (1,)]
    assert [n.meta["shape"] for n in entries] == [(2, 4, 16, 16), (2, 4, 8, 8)]
    assert [n.op for n in head.graph.nodes if kind(n) == "conv"] == ["call_module"] * 2


def test_the_users_classes_stay_leaves_and_what_is_inside_is_not_missed():
    traced = trace(WithBranching().eval(), SHAPE, leaves=[Body, Branching])
    assert region_names(traced.model) == [""]
    calls = [n.target for n in traced.model.graph.nodes if n.op == "call_module"]
    assert calls == ["stem", "block", "head"]
    assert traced.left_out == ()


class ReadsAttributes(nn.Module):
    """Its code reads more of a part than what a call returns."""

    def __init__(self):
        super().__init__()
        self.part, self.secret = Grid(), Secret()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.part.rows(x.shape[2])
        return self.secret.norm(self.secret(self.part(x)[:, :, :: rows // self.part.step]))


class Grid(Body):
    step = 4

    def __init__(self):
        super().__init__(3)
        self.offset = 4

    def rows(self, height: int) -> int:
        return range(height + self.offset)[-1] // 4


class Secret(nn.Module):
    """One of its modules is called from outside alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_code_around_a_part_may_read_its_attributes_but_not_what_a_graph_lacks():
    model = ReadsAttributes().eval()
    traced = trace(model, SHAPE)
    assert region_names(traced.model) == ["part", "secret.conv", "secret.norm"]
    assert_same(copy.deepcopy(traced.model)(images()), model(images()))
    assert {left_out.name for left_out in traced.left_out} == {"", "secret"}


def test_a_module_called_with_other_structures_is_traced_only_if_right_for_all():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, xs: list[Tensor]) -> Tensor:
            return sum(self.conv(x) for x in xs)

    class Twice(nn.Module):
        fxquant_host = True

        def __init__(self):
            super().__init__()
            self.sums, self.again = Sums(), Sums()

        def forward(self, x: Tensor) -> Tensor:
            once = self.again([x]) + self.again([x + 1])
            return once + self.sums([x]) + self.sums([x, x])

    model = Twice().eval()
    traced = trace(model, SHAPE)
    assert region_names(traced.model) == ["sums.conv", "again"]
    assert_same(traced.model(images()), model(images()))


def test_a_module_that_fails_at_its_second_call_is_a_leaf_in_both():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, check: bool) -> Tensor:
            return x if check and x.mean() > 100 else self.conv(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 3, 1), Once()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(self.stem(x), False), True)

    traced = trace(Model().eval(), SHAPE)
    assert region_names(traced.model) == ["", "inner.conv"]
    calls = [n.target for n in traced.model.graph.nodes if n.op == "call_module"]
    assert calls == ["stem", "inner", "inner"]


def test_nothing_traced_is_an_error_that_says_where():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.mean((2, 3)).numpy()) @ self.weight

    with pytest.raises(TraceError, match=r"^Opaque can't be traced, .*numpy") as caught:
        trace(Opaque(), SHAPE)
    assert f"{__file__}:" in caught.value.message
