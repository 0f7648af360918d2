"""Tracing: the graph computes what the model does, or an error says where and why it can't."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import ALL, Residual, SharedRelu
from torch import Tensor, fx, nn
from tracing import SHAPE, line_of

from fxquant.errors import SettingError, TraceError
from fxquant.graph.flow import redundant_limits
from fxquant.graph.ops import kind
from fxquant.graph.passes import run_passes
from fxquant.graph.trace import LeftOut, trace


@pytest.mark.parametrize("name", ALL)
def test_the_graph_computes_what_the_model_does_at_another_batch_size(name):
    model = ALL[name]()
    gm = trace(model, SHAPE).model
    x = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(2))
    assert (gm(x) - model(x)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_the_model_itself_stays_as_it_was(name):
    model = ALL[name]().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model, SHAPE)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_graph_is_in_eval_mode_with_shapes_and_no_gradients():
    gm = trace(Residual().train(), SHAPE).model
    # The containers that fx makes anew, plain `nn.Module`s, compute nothing.
    assert not any(module.training for module in gm.modules() if type(module) is not nn.Module)
    assert not any(p.requires_grad for p in gm.parameters())
    shapes = {node.name: node.meta.get("shape") for node in gm.graph.nodes}
    assert shapes["conv1"] == (2, 8, 16, 16)
    assert shapes["linear"] == (2, 10)
    assert shapes["size"] is None


def test_a_shape_without_a_batch_is_asked_for():
    with pytest.raises(SettingError, match="does not take an input of shape 1,16,16") as caught:
        trace(Residual(), (1, 16, 16))
    assert "--input-shape" in caught.value.hint


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.ReLU(), Gate())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x))


def test_what_is_left_out_names_module_file_line_and_reason():
    (left_out,) = trace(Gated(), SHAPE).left_out
    line = line_of(Gate, "if x.sum()")
    reason = "it branches on the values of a tensor: `if x.sum() > 0:`"
    assert left_out == LeftOut("body.1", "Gate", __file__, line, reason, hidden=())


def test_an_error_of_the_model_itself_names_its_class():
    with pytest.raises(TraceError, match=r"^Gate can't be traced"):
        trace(Gate(), SHAPE)


class FailsAtItsSecondCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = FirstCallOnly()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x, False), True)


class FirstCallOnly(nn.Module):
    def forward(self, x: Tensor, check: bool) -> Tensor:
        return x if check and x.mean() > 1 else x + 1


def test_an_error_in_the_second_call_of_a_module_names_it():
    with pytest.raises(TraceError, match=r"^module 'inner' \(FirstCallOnly\) can't be traced"):
        trace(FailsAtItsSecondCall(), SHAPE)


class Counting(nn.Module):
    """Computes something else at each call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_graph_that_computes_something_else_is_refused():
    with pytest.raises(TraceError, match=r"^Counting gives another output each time"):
        trace(Counting(), SHAPE)


class Keywords(nn.Module):
    """Calls its layers by keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=F.relu(self.bn(input=self.conv(input=x))).mean((2, 3)))


def test_inputs_given_by_keyword_become_positional():
    gm = trace(Keywords(), SHAPE).model
    calls = [node for node in gm.graph.nodes if node.op == "call_module"]
    assert [len(node.args) for node in calls] == [1, 1, 1]
    assert not any(node.kwargs for node in calls)


def test_a_failing_pass_is_named_with_those_before_it():
    def fold(gm: fx.GraphModule) -> int:
        return 3

    def break_it(gm: fx.GraphModule) -> int:
        raise KeyError("no such node")

    gm = trace(SharedRelu(), SHAPE).model
    assert run_passes(gm, [("fold", fold)]) == {"fold": 3}
    with pytest.raises(TraceError, match=r"pass 'break' failed \(passes before it: fold\)"):
        run_passes(gm, [("fold", fold), ("break", break_it)])


def test_a_pass_that_leaves_a_broken_graph_is_named():
    def tangle(gm: fx.GraphModule) -> int:
        first, *_, output = gm.graph.nodes
        output.append(first)  # the input after what reads it
        return 1

    with pytest.raises(TraceError, match="pass 'tangle' failed"):
        run_passes(trace(SharedRelu(), SHAPE).model, [("tangle", tangle)])


class Ops(nn.Module):
    """The forms in which ops are written: modules, functions and methods."""

    def __init__(self):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.smooth = nn.Upsample(scale_factor=2, mode="bilinear")
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.up(x)).relu()
        x = F.pad(x, (1, 1, 0, 0)) + F.pad(x, (1, 1, 0, 0), mode="reflect")
        x = F.pad(x, (1, 1), value=2.0)
        x = F.interpolate(x, scale_factor=2).flatten(2).unflatten(2, (4, -1))
        return self.smooth(x).mul(0.5).mean((2, 3))


def test_ops_are_known_in_all_their_forms():
    gm = trace(Ops(), (3, 8, 8)).model
    kinds = [kind(node) for node in gm.graph.nodes]
    assert kinds == [
        *("placeholder", "move", "activation", "relu", "move", "move", "add", "other"),
        *("move", "move", "move", "average", "mul", "average", "output"),
    ]


NON_NEGATIVE = {
    "relu": lambda x: F.relu(x),
    "pooled": lambda x: F.avg_pool2d(F.relu(x), 2),
    "sum": lambda x: F.relu(x) + F.sigmoid(x),
    "positive number": lambda x: F.relu(x) + 1,
    "padded": lambda x: F.pad(F.relu6(x), (1, 1)),
}
SIGNED = {
    "input": lambda x: x,
    "sum": lambda x: F.relu(x) + x,
    "negative number": lambda x: F.relu(x) + (-1),
    "negative factor": lambda x: torch.mul(F.relu(x), -0.5),
    "negative alpha": lambda x: torch.add(F.relu(x), F.relu(x), alpha=-1),
    "difference": lambda x: F.relu(x) - F.sigmoid(x),
}


class ThenRelu(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.function(x))


@pytest.mark.parametrize(
    ("function", "redundant"),
    [(f, True) for f in NON_NEGATIVE.values()] + [(f, False) for f in SIGNED.values()],
    ids=[*NON_NEGATIVE, *(f"signed {name}" for name in SIGNED)],
)
def test_a_relu_is_redundant_only_where_nothing_can_be_negative(function, redundant):
    gm = trace(ThenRelu(function), SHAPE).model
    last = [node for node in gm.graph.nodes if node.op != "output"][-1]
    assert (last in redundant_limits(gm.graph)) is redundant
