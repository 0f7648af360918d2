"""How far two networks' outputs are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fxquant.errors import FxQuantError
from fxquant.report.closeness import sqnr_db


@torch.no_grad()
def outputs(net: Callable[[Tensor], object], x: Tensor) -> list[Tensor]:
    """The floating-point tensors in what `net` returns, in order."""
    return [tensor.double() for tensor in _tensors(net(x)) if tensor.is_floating_point()]


def _tensors(output) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def max_error(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference of any output, relative to that output's largest value."""
    return max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
        for a, b in zip(expected, found, strict=True)
    )


def sqnr(expected: list[Tensor], found: list[Tensor]) -> float:
    """Signal-to-noise ratio in dB of the worst output."""
    if [a.shape for a in expected] != [b.shape for b in found]:
        raise FxQuantError("how many outputs there are depends on their values")
    return min(
        sqnr_db(float(a.square().sum()), float((a - b).square().sum()))
        for a, b in zip(expected, found, strict=True)
    )
