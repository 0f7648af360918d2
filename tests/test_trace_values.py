"""Weights that are seen only with the numbers of the traced size: said, and never taken else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from tracing import SHAPE, images, region_names

from fxquant.errors import TraceError
from fxquant.graph.trace import trace


class Windowed(nn.Module):
    """Its own weights are used in code that branches on the size."""

    def __init__(self):
        super().__init__()
        self.layer, self.window = nn.Linear(3, 3), 16

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > self.window:
            x = x[:, :, : self.window] * 2
        return F.linear(x.permute(0, 2, 3, 1), self.layer.weight).permute(0, 3, 1, 2)


class Outer(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 3, 1), inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.stem(x)).mean((2, 3))


def test_weights_hidden_in_such_code_are_traced_for_this_size_and_that_is_said():
    model = Outer(Windowed()).eval()
    traced = trace(model, SHAPE)
    assert isinstance(traced.model, GraphModule)
    assert traced.fixed_size == ("",)
    assert traced.left_out == ()
    note = "answered with the numbers of the traced size: `if x.shape[2] > self.window:`"
    assert [n for n in traced.notes if n.startswith(note)] == list(traced.notes)
    torch.testing.assert_close(traced.model(images()), model(images()))


class Choosing(nn.Module):
    """Branches on the size, with layers that are called."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3)
        self.offset = nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) + self.offset
        return self.first(x) if x.shape[2] > 16 else x


def test_values_are_not_used_where_each_weight_is_seen_without():
    model = Outer(Choosing()).eval()
    traced = trace(model, SHAPE)
    assert traced.fixed_size == ()
    assert region_names(traced.model) == ["", "inner.first", "inner.second"]
    assert [left_out.hidden for left_out in traced.left_out] == [()]
    for x in (images(), images(3, 20, 20)):
        torch.testing.assert_close(traced.model(x), model(x))


class Remembers(nn.Module):
    """Takes the number of rows it was made for as its own, which is wrong at another size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * sum(1 for _ in x.unbind(2))


def test_what_is_wrong_at_another_size_is_left_and_its_parts_are_traced():
    model = Outer(Remembers()).eval()
    traced = trace(model, SHAPE)
    assert traced.fixed_size == ()
    assert region_names(traced.model) == ["", "inner.conv"]
    (left_out,) = traced.left_out
    assert left_out.name == "inner"
    assert left_out.reason == "what torch.fx records of it is right at the traced size alone"
    torch.testing.assert_close(traced.model(images(3, 20, 20)), model(images(3, 20, 20)))


class ByBatch(nn.Module):
    """Depends on the batch, with weights of its own: no graph is right for two batches."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight) * sum(1 for _ in x.unbind(0))


def test_weights_that_no_graph_shows_are_named():
    model = Outer(ByBatch()).eval()
    traced = trace(model, SHAPE)
    (left_out,) = traced.left_out
    assert left_out.name == "inner"
    assert left_out.hidden == ("inner",)
    torch.testing.assert_close(traced.model(images()), model(images()))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.rand(1)


def test_a_random_model_is_refused_as_such():
    with pytest.raises(TraceError, match=r"^Noisy gives another output each time") as caught:
        trace(Noisy(), SHAPE)
    assert "eval" in caught.value.message
