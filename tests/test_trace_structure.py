"""What tracing looks through: guards, structure of values, defaults, forms of ops."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from tracing import SHAPE, Around, images, traced_whole

from fxquant.graph.trace import trace


def assertion(x: Tensor) -> Tensor:
    assert x.shape[1] == 4, "four channels"
    return x


def refusal(x: Tensor) -> Tensor:
    if not x.size(0) > 0 or x.shape[2] < 2:
        raise ValueError(f"{x.shape}")
    return x


def acceptance(x: Tensor) -> Tensor:
    if x.shape[2] % 2 == 0:
        x = x * 2
    else:
        raise ValueError("odd")
    return x


def torch_assertion(x: Tensor) -> Tensor:
    torch._assert(x.shape[2] % 2 == 0, f"height {x.shape[2]:d}")
    return x


def warning(x: Tensor) -> Tensor:
    if x.shape[2] < 4:
        print("small")
    return x


GUARDS = [assertion, refusal, acceptance, torch_assertion, warning]


@pytest.mark.parametrize("guard", GUARDS)
def test_guards_are_taken_as_passing_and_noted(guard):
    traced = traced_whole(Around(guard))
    first = guard.__code__.co_firstlineno + 1
    assert len(traced.notes) == 1
    assert traced.notes[0].startswith("taken as passing: `")
    assert traced.notes[0].endswith(f"{__file__}:{first}")
    assert not any("assert" in str(node.target) for node in traced.model.graph.nodes)


def rank(x: Tensor) -> Tensor:
    if x.dim() == 4 and x.ndim == len(x.shape) and torch.is_floating_point(x):
        return x.flatten(2)
    return x


def dtype_and_device(x: Tensor) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16) or x.device.type == "mps" or x.is_cuda:
        return x.float()
    return x * torch.finfo(x.dtype).eps * 1e6


def unpacked_shape(x: Tensor) -> Tensor:
    b, c, *size = x.shape
    return x.reshape(b, c, math.prod(size)) if isinstance(x.shape, tuple) else x


def loop_over_size(x: Tensor) -> Tensor:
    return F.interpolate(x, size=[s * 2 for s in x.shape[2:]])


def size_arithmetic(x: Tensor) -> Tensor:
    height, width = int(x.shape[2] * 1.5), math.ceil(float(x.shape[3]) / 2)
    extra = max(height - x.shape[2], 0)
    return F.pad(x, (0, width, 0, round(extra / 2)))


def number_types(x: Tensor) -> Tensor:
    size = x.shape[2]
    return x * size if isinstance(size, int) and not isinstance(size, float) else x


def factories(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    mask = torch.ones(b, c, h, w, device=x.device)
    rows = torch.arange(h, dtype=x.dtype).view(1, 1, h, 1)
    return torch.cat([x * mask, torch.zeros_like(x)], 1) + rows


def lists_of_sizes(x: Tensor) -> Tensor:
    height, width = x.shape[2] // 2, x.shape[3]
    x = torch.roll(x, shifts=(height, -1), dims=(2, 3))
    x = F.avg_pool2d(x, kernel_size=(height, width))
    return torch.reshape(torch.narrow(x, 2, 0, x.shape[2] // 2), (x.shape[0], -1))


def sizes_for_constants(x: Tensor) -> Tensor:
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).to(x.device)[:, : x.shape[1]]
    return x.flatten(2).mean(2) + rows.expand(x.shape[0], x.shape[1]).reshape(-1, x.shape[1])


def length_of_a_tensor(x: Tensor) -> Tensor:
    return x / len(x)


def split_in_a_loop(x: Tensor) -> Tensor:
    parts = [part + i for i, part in enumerate(torch.split(x, [1, 3], dim=1))]
    low, high = x.chunk(2, 1)
    return torch.cat([*parts, *reversed(x.unbind(1)[0].unsqueeze(1).chunk(1)), low, high], 1)


def setting_items(x: Tensor) -> Tensor:
    x[:, 0] = 1
    return x + 1


STRUCTURE = [
    *(rank, dtype_and_device, unpacked_shape, loop_over_size, size_arithmetic, number_types),
    *(
        factories,
        lists_of_sizes,
        sizes_for_constants,
        length_of_a_tensor,
        split_in_a_loop,
        setting_items,
    ),
]


@pytest.mark.parametrize("function", STRUCTURE)
def test_structure_is_looked_through_and_numbers_are_recorded(function):
    assert traced_whole(Around(function)).notes == ()


def test_splits_are_no_entries_but_what_unknown_ops_return_is():
    def parts(x: Tensor) -> Tensor:
        _, mean = torch.std_mean(x.chunk(2, 1)[0], dim=1)
        return mean

    graph = traced_whole(Around(parts)).model.graph
    taken = [node for node in graph.nodes if node.name.startswith("getitem")]
    assert ["entry" in node.meta for node in taken] == [False, True]


class Defaults(nn.Module):
    """Arguments with defaults, of which forward depends on numbers, flags and None."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, times: int = 2, *, flat=False):
        for _ in range(times):
            x = self.conv(x)
        if mask is not None:
            x = x * mask
        return x.flatten(1) if flat else x


def test_defaults_are_bound_and_the_signature_stays():
    traced = traced_whole(Defaults())
    x = images()
    assert torch.equal(traced.model(x, None, 2, flat=False), traced.model(x))


class Pair(namedtuple("Pair", "a b")):
    pass


class Structured(nn.Module):
    """Passes lists, dicts, tuples of tensors and numbers between its modules."""

    def __init__(self):
        super().__init__()
        self.split, self.merge = Split(), Merge()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.split(x, height=x.shape[2])
        out = OrderedDict(sum=self.merge(features, scales=(2, 3.0)))
        out["pairs"] = [Pair(x, out["sum"])]
        return out


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, height: int) -> dict[str, list[Tensor]]:
        return {"maps": [self.conv(x), self.conv(-x)], "size": height}


class Merge(nn.Module):
    def forward(self, features: dict, scales: tuple) -> Tensor:
        assert isinstance(features, dict)
        assert "maps" in features
        maps = features["maps"]
        if not isinstance(maps, list) or not all(isinstance(m, Tensor) for m in maps):
            maps = [maps]
        total = maps.pop() * features.get("size", 1)
        for scale, part in zip(scales, maps, strict=False):
            total = total + part * scale
        return total


def test_structures_inside_a_graph_are_those_of_the_model():
    model = Structured().eval()
    traced = trace(model, SHAPE)
    assert isinstance(traced.model, GraphModule)
    for size in ((1, 16, 16), (2, 24, 20)):
        got, expected = traced.model(images(*size)), model(images(*size))
        torch.testing.assert_close(got["sum"], expected["sum"])
        torch.testing.assert_close(got["pairs"][0].b, expected["pairs"][0].b)


def test_several_inputs():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(5, 4)

        def forward(self, image: Tensor, vector: Tensor) -> Tensor:
            return self.conv(image) * self.linear(vector)[:, :, None, None]

    model = TwoInputs().eval()
    traced = trace(model, (SHAPE, (5,)))
    inputs = images(4, 20, 20), torch.ones(4, 5)
    torch.testing.assert_close(traced.model(*inputs), model(*inputs))
    marked = [n.name for n in traced.model.graph.nodes if n.meta.get("network_input")]
    assert marked == ["image", "vector"]
