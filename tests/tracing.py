"""What the tests of tracing share: inputs, a model around a function, names of regions."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxquant.graph.regions import regions
from fxquant.graph.trace import Traced, trace

SHAPE = (3, 16, 16)


def images(batch: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Noise, the same at each call."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 3, height, width, generator=generator)


class Around(nn.Module):
    """A convolution, then a function of its output."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x: Tensor):
        return self.function(self.conv(x))


def traced_whole(model: nn.Module, sizes: tuple = ((2, 20, 28), (1, 16, 16))) -> Traced:
    """The result of tracing a model as one graph, which is right at other sizes."""
    traced = trace(model.eval(), SHAPE)
    assert isinstance(traced.model, GraphModule)
    assert traced.left_out == () == traced.fixed_size
    for size in sizes:
        torch.testing.assert_close(traced.model(images(*size)), model(images(*size)))
    return traced


def region_names(model: nn.Module) -> list[str]:
    """Names of the regions of a traced model."""
    return [region.meta["region"] for region in regions(model)]


def line_of(thing, text: str) -> int:
    """Number of the line of a class's or function's source that has `text`."""
    lines, first = inspect.getsourcelines(thing)
    return first + next(i for i, line in enumerate(lines) if text in line)
