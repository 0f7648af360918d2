"""Range estimators: from observed values to the range [low, high] that a grid covers.

Each takes values of shape (channels, n) and returns low and high of shape (channels,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxquant.numerics import dequantize, quantize, scale_and_zero_point
from fxquant.spec import QSpec

RangeEstimator = Callable[[Tensor, QSpec], tuple[Tensor, Tensor]]


def min_max(values: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value."""
    return values.amin(1), values.amax(1)


def reaching(values: Tensor, spec: QSpec, *, deviations: float) -> tuple[Tensor, Tensor]:
    """All values, and so many of their standard deviations on each side of their mean.

    Below it is a step of the grid more, as signed integers have: around 0 the zero point is then a
    whole number and not between two.
    """
    mean, reach = values.mean(1), deviations * values.std(1, correction=0)
    half = (spec.qmax - spec.qmin + 1) // 2
    low, high = min_max(values, spec)
    return torch.minimum(low, mean - reach * half / (half - 1)), torch.maximum(high, mean + reach)


def percentile(values: Tensor, spec: QSpec, *, fraction: float = 0.9999) -> tuple[Tensor, Tensor]:
    """The range that leaves out a share of 1 - fraction of the values at each end."""
    ordered = values.sort(1).values
    last = values.shape[1] - 1
    cut = round((1 - fraction) * last)
    return ordered[:, cut], ordered[:, last - cut]


def search(
    values: Tensor, spec: QSpec, *, norm: float = 2.4, steps: int = 80, smallest: float = 0.2
) -> tuple[Tensor, Tensor]:
    """The shrunken min-max range with the least `mean |x - fake_quantize(x)|^norm`.

    norm = 2.4 is the choice of BRECQ (Li et al., 2021), QDrop and Genie; `steps` ratios between
    `smallest` and 1 are tried for each channel.
    """
    low, high = min_max(values, spec)
    best = torch.full_like(low, torch.inf)
    best_ratio = torch.ones_like(low)
    for ratio in torch.linspace(1.0, smallest, steps).tolist():
        error = _error(values, low * ratio, high * ratio, spec, norm)
        better = error < best
        best = torch.where(better, error, best)
        best_ratio = torch.where(better, ratio, best_ratio)
    return low * best_ratio, high * best_ratio


def _error(values: Tensor, low: Tensor, high: Tensor, spec: QSpec, norm: float) -> Tensor:
    scale, zero_point = scale_and_zero_point(low, high, spec.qmin, spec.qmax, symmetric=spec.signed)
    scale, zero_point = scale[:, None], zero_point[:, None]
    q = quantize(values, scale, zero_point, spec.qmin, spec.qmax)
    return (dequantize(q, scale, zero_point) - values).abs().pow(norm).mean(1)


ESTIMATORS: dict[str, RangeEstimator] = {
    "min-max": min_max,
    "percentile": percentile,
    "search": search,
}
