"""Forms in which ops are written: in place, with norms of one's own, in wrapped functions."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import wrap
from torchvision.ops import FrozenBatchNorm2d
from tracing import SHAPE, Around, images, region_names, traced_whole

from fxquant.graph.prepare import prepare
from fxquant.graph.trace import trace
from fxquant.spec import QConfig


class InPlace(nn.Module):
    """Changes tensors that other names refer to as well."""

    def __init__(self, aliased: bool):
        super().__init__()
        self.conv, self.aliased = nn.Conv2d(3, 3, 1), aliased

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        alias = y
        y += x if self.aliased else 1
        y = F.relu_(y) if self.aliased else F.relu(y, inplace=True)
        return y + alias if self.aliased else y


@pytest.mark.parametrize("aliased", [True, False])
def test_changes_in_place_are_seen_through_other_names(aliased):
    model = InPlace(aliased)
    x = images()
    kept = x.clone()
    targets = {n.target for n in traced_whole(model).model.graph.nodes}
    assert torch.equal(x, kept)
    assert ("iadd" in {getattr(t, "__name__", t) for t in targets}) is aliased


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"{x.ndim} axes")
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return F.relu(x)


def test_batch_norms_are_leaves_unless_their_forward_is_the_users():
    norms = [nn.BatchNorm2d(3), nn.SyncBatchNorm(3), FrozenBatchNorm2d(3), NormAct(3)]
    graph = traced_whole(nn.Sequential(*norms, nn.Conv2d(3, 3, 1))).model.graph
    ops = [(n.op, getattr(n.target, "__name__", n.target)) for n in graph.nodes]
    computed = [op for op in ops if op[0].startswith("call")]
    assert computed == [
        *[("call_module", str(i)) for i in range(3)],
        *[("call_function", "batch_norm"), ("call_function", "relu"), ("call_module", "4")],
    ]


def affine(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return F.linear(x, weight) * scale


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def halves(size: list[int], steps: list[int]) -> tuple[list[int], dict[str, int]]:
    for i in range(2):
        steps[i] = size[i] // 2 if size[i] > 16 else size[i]
    return steps, {"total": steps[0] + steps[1]}


wrap("affine")
wrap("pooled")
wrap("halves")


class Wrapped(nn.Module):
    """Calls functions that fx.wrap keeps as one call, one of them with its weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return affine(pooled(x), self.layer.weight, 2.0)


def test_wrapped_functions_are_looked_into_where_they_are_given_weights():
    targets = [n.target for n in traced_whole(Wrapped()).model.graph.nodes]
    assert targets.count(F.linear) == 1
    assert targets.count("layer.weight") == 1
    assert targets.count(pooled) == 1


def cropped(x: Tensor) -> Tensor:
    height = int(max(x.shape[2] * 0.75, 1))
    return x[:, :, :height].reshape(x.shape[0], -1, height)


def test_the_graph_goes_through_torch_export_with_any_batch():
    model = traced_whole(Around(cropped)).model
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},), strict=False)
    torch.testing.assert_close(exported.module()(images(5)), model(images(5)))


def counted(x: Tensor) -> Tensor:
    parts = x.chunk(2, 1)
    for i in range(len(parts)):
        x = x + parts[i].mean() / len(x)
    return x


wrap("len")


def test_lengths_are_known_where_wrap_has_made_len_a_call():
    assert traced_whole(Around(counted)).notes == ()


def test_an_argument_that_only_some_calls_give_is_not_bound_to_its_default():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, flip: bool = False) -> Tensor:
            return self.conv(-x if flip else x)

    class Twice(nn.Module):
        fxquant_host = True

        def __init__(self):
            super().__init__()
            self.scaled = Scaled()

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x) + self.scaled(x, True)

    assert region_names(trace(Twice(), SHAPE).model) == ["scaled.conv"]


def by_halves(x: Tensor) -> Tensor:
    (height, width), found = halves(list(x.shape[2:]), [0, 0])
    return x[:, :, :height, :width] * found["total"]


def test_wrapped_functions_may_return_structures():
    graph = traced_whole(Around(by_halves)).model.graph
    assert [n.target for n in graph.nodes].count(halves) == 1


class ByBuffer(nn.Module):
    """Reads buffers in ways that only a tensor, or only a traced value, goes along with."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("table", torch.arange(64.0))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.autograd.Variable(self.order)]


class ByTable(ByBuffer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[3]]


def test_buffers_are_values_of_the_graph_where_that_works_and_tensors_where_not():
    conv = nn.Conv2d(3, 3, 1)
    for model in (nn.Sequential(conv, ByBuffer(), ByTable()), Rooted()):
        reads = [n.target for n in traced_whole(model).model.graph.nodes if n.op == "get_attr"]
        assert len(reads) == (2 if isinstance(model, nn.Sequential) else 1)


class Rooted(ByBuffer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.conv(x))


class Chosen(nn.Module):
    """Its forward is one of its methods, chosen when it is made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.forward = self.forward_doubled

    def forward_doubled(self, x: Tensor) -> Tensor:
        return 2 * self.conv(x)


def test_a_forward_that_was_chosen_is_seen_through():
    model = nn.Sequential(Chosen(), nn.ReLU())
    names = {node.target for node in traced_whole(model).model.graph.nodes}
    assert "0.conv" in names


class Gated(nn.Module):
    """SiLU and Hardswish as modules, functions, and in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.silu, self.hardswish = nn.SiLU(inplace=True), nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        y = self.silu(self.conv(x)) + F.hardswish(x, inplace=False)
        return F.silu(self.hardswish(y))


def functions_of(**options) -> list:
    p = prepare(Gated().eval(), QConfig(8, 8), SHAPE, **options)
    return [n.target for n in p.teacher.graph.nodes if n.op == "call_function"]


def test_gated_activations_are_a_gate_and_a_product():
    model, x = Gated().eval(), images()
    p = prepare(model, QConfig(8, 8), SHAPE)
    assert torch.allclose(p.teacher(x), model(x), atol=1e-6)
    functions = functions_of()
    assert functions.count(torch.sigmoid) == functions.count(F.hardsigmoid) == 2
    assert functions.count(operator.mul) == 4


def test_a_gated_activation_stays_whole_where_a_rule_is_about_it():
    functions = functions_of(rules={nn.SiLU: "float", F.hardswish: "float"})
    assert functions.count(torch.sigmoid) == functions.count(F.hardsigmoid) == 1
