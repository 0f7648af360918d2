"""The facts about a prepared model that need no run: parameters, multiply-accumulates, size."""

from __future__ import annotations

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.graph.macs import count_macs
from fxquant.graph.prepare import Prepared, prepare
from fxquant.graph.regions import REGION
from fxquant.graph.trace import trace
from fxquant.report.layers import describe, list_layers
from fxquant.spec import LayerRule, QConfig

SHAPE = (3, 16, 16)


def rows(prepared: Prepared) -> dict[str, dict]:
    """Facts about layers by name, of a layer called several times those of the last call."""
    return {layer.row["name"]: layer.row for layer in list_layers(prepared)}


def facts(model: nn.Module, shape: tuple[int, ...] = SHAPE, **widths) -> dict:
    prepared = prepare(model.eval(), QConfig(**widths), shape)
    return describe(prepared, list_layers(prepared))


MACS = {
    "grouped": (nn.Conv2d(6, 12, 3, stride=2, groups=3), (6, 9, 11), 12 * 4 * 5 * 2 * 9),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 8, 8), 6 * 64 * 9),
    "dilated": (nn.Conv2d(3, 5, 3, dilation=2), (3, 9, 9), 5 * 25 * 27),
    "conv1d": (nn.Conv1d(4, 8, 5), (4, 20), 8 * 16 * 4 * 5),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 3 * 27 * 2 * 8),
    "linear": (nn.Linear(16, 10), (16,), 160),
    "sequence": (nn.Linear(16, 10), (7, 16), 7 * 160),
    "map": (nn.Linear(16, 10), (3, 5, 16), 15 * 160),
}


@pytest.mark.parametrize("name", MACS)
def test_macs_are_those_of_one_image(name):
    layer, shape, expected = MACS[name]
    prepared = prepare(nn.Sequential(layer).eval(), QConfig(), shape)
    assert [layer.row["macs"] for layer in list_layers(prepared)] == [expected]


def test_a_transposed_convolution_multiplies_each_input_by_its_weights():
    up = nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2)
    prepared = prepare(nn.Sequential(nn.Conv2d(3, 8, 1), up).eval(), QConfig(), (3, 5, 7))
    assert rows(prepared)["1"]["macs"] == 8 * 5 * 7 * 3 * 16


def test_a_layer_called_twice_counts_twice_for_macs_and_once_for_size():
    model = nets.ALL["repeated_conv"]()
    prepared = prepare(model, QConfig(weight_bits=4), SHAPE)
    layers = list_layers(prepared)
    assert [layer.row["name"] for layer in layers] == ["stem.0", "conv", "conv", "head"]
    assert [layer.row["macs"] for layer in layers] == [8 * 256 * 27, *2 * [8 * 256 * 72], 80]
    told = describe(prepared, layers)
    assert told["model"]["macs"] == 8 * 256 * (27 + 2 * 72) + 80
    assert told["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    # stem, conv and head at 4 bits; biases of stem and head, and two batch norms, at 32
    weights, rest = 8 * 27 + 8 * 72 + 80, 8 + 10 + 2 * 16
    assert told["size"]["weights_bytes"] == weights / 2 + 4 * rest


class Levels(nn.Module):
    """A head that its model calls once for each of three sizes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.head(F.avg_pool2d(x, 2**i)) for i in range(3)]


def test_every_call_of_a_region_counts():
    model = Levels()
    model.head = trace(model.head, SHAPE).model
    model.head.meta[REGION] = "head"
    counts = {str(node): macs for node, macs in count_macs(model, SHAPE).items() if macs}
    assert counts == {"_0": 4 * 27 * (256 + 64 + 16)}


def test_sizes_and_operations_add_up():
    told = facts(nets.ALL["plain"](), weight_bits=3, act_bits=5)
    weights = 8 * 27 + 16 * 72 + 32 * 256 + 10 * 32
    biases = 8 + 16 + 32 + 10
    assert told["size"]["weights_bytes"] == weights * 3 / 8 + 4 * biases
    assert told["size"]["float_bytes"] == 4 * (weights + biases + 2 * (8 + 16))
    first, rest = 256 * 8 * 27, 64 * 16 * 72 + 32 * 256 + 10 * 32
    assert told["bitops"]["float"] == (first + rest) * 32 * 32
    assert told["bitops"]["quantized"] == first * 3 * 8 + rest * 3 * 5
    assert told["summary"]["macs_quantized"] == 1.0
    assert told["summary"]["batchnorms_folded"] == 2


def test_a_float_layer_lowers_the_share_and_keeps_its_size():
    rule = LayerRule("classifier.1", None)
    told = facts(nets.ALL["plain"](), layers=(rule,))
    kept = 32 * 256
    assert told["summary"]["macs_quantized"] == pytest.approx(1 - kept / told["model"]["macs"])
    assert told["summary"]["layers_float"] == 1
    assert told["float"] == [
        {"name": "classifier.1", "what": "linear", "reason": "a layer rule keeps it float"}
    ]
    other = 8 * 27 + 16 * 72 + 10 * 32
    assert told["size"]["weights_bytes"] == other / 2 + 4 * (kept + 8 + 16 + 32 + 10)


class ByBatch(nn.Module):
    """Depends on the batch, so that no graph of it is right, and multiplies by its own weights."""

    def __init__(self, *inner: nn.Module):
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.ones(8, 8, 1, 1)), nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.inner:
            x = module(x)
        return F.conv2d(x, self.weight) * sum(1 for _ in x.unbind(0))


@pytest.mark.parametrize("inner", [False, True])
def test_hidden_layers_count_as_float(inner):
    odd = ByBatch(ByBatch()) if inner else ByBatch()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), odd, nn.Conv2d(8, 4, 1))
    prepared = prepare(model.eval(), QConfig(), SHAPE)
    hidden = {name for part in prepared.left_out for name in part.hidden}
    assert hidden == ({"1", "1.inner.0"} if inner else {"1"})
    layers = list_layers(prepared)
    assert len(layers) == 2 + len(hidden)
    first, last, own = 256 * 8 * 27, 256 * 32, 256 * 64
    told = describe(prepared, layers)
    assert told["model"]["macs"] == first + last + len(hidden) * own
    assert told["summary"]["layers_float"] == len(hidden)
    share = (first + last) / told["model"]["macs"]
    assert told["summary"]["macs_quantized"] == pytest.approx(share)
    assert told["size"]["weights_bytes"] == (8 * 27 + 32) / 2 + 4 * (12 + 64 * len(hidden))
    assert {part["name"] for part in told["float"]} == hidden
    assert all("which could not be traced" in part["reason"] for part in told["float"])


class Attention(nn.Module):
    """Attention between the pixels of a convolution's output, by torch's own module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0]


def test_all_that_multiplies_counts():
    prepared = prepare(Attention().eval(), QConfig(), SHAPE)
    projections, products = 4 * 16 * 8 * 8, 2 * 16 * 16 * 8
    told = describe(prepared, list_layers(prepared))
    assert told["model"]["macs"] == 16 * 8 * 48 + projections + products


def test_a_rule_that_matches_nothing_is_told():
    told = facts(nets.ALL["plain"](), layers=(LayerRule("features.9", 8), LayerRule("cl*", 8)))
    assert told["notes"] == ["layer rule 'features.9=8' matches the name of no layer"]


def test_describing_leaves_the_model_as_it_is():
    prepared = prepare(nets.ALL["residual"](), QConfig(), SHAPE)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        before = prepared.student(x)
        describe(prepared, list_layers(prepared))
        assert torch.equal(prepared.student(x), before)
