"""Choose widths by what they cost and what they are worth, without data.

HAWQ-V2's criterion (Dong et al., 2020): sum_i Tr(H_i)/m_i |Q(W_i) - W_i|^2, the average Hessian
trace of each layer times the squared error of its quantized weights; the widths with the least
of it under the budget. The frontier, size against criterion, is that of ZeroQ (Cai et al., 2020).
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.datafree.importance import Importance
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.ops import module_of
from fxquant.mixed.budget import Mixed
from fxquant.mixed.shares import Costs, as_is
from fxquant.mixed.solve import Choice, Knapsack
from fxquant.quantizer import Quantizer
from fxquant.ranges import RangeEstimator, search
from fxquant.spec import LayerRule

# Ratios that a range search tries here, where errors are compared and no range is kept.
STEPS = 20
POINTS = 60  # of the frontier


@dataclass(frozen=True)
class Point:
    """A way to choose widths: what it costs, and the criterion; `bits` where it is the same width
    everywhere."""

    size: float
    bitops: int
    average_bits: float
    criterion: float
    bits: int | None = None


@dataclass(frozen=True)
class LayerChoice:
    """One layer: its width, its average trace, and the criterion at each of the widths."""

    name: str
    bits: int
    trace: float
    criterion: tuple[float, ...]


@dataclass(frozen=True)
class WidthPlan:
    """The widths that were chosen, and what they were chosen from.

    `exact`: no other choice within the budget has a smaller criterion; else only nearly so.
    `budget` is in bytes or bit operations, as `measure` says.
    """

    measure: str
    budget: float
    exact: bool
    widths: tuple[int, ...]
    chosen: Point
    frontier: tuple[Point, ...]
    flat: tuple[Point, ...]
    layers: tuple[LayerChoice, ...]

    def rules(self) -> tuple[LayerRule, ...]:
        """A layer rule for each layer whose width was chosen."""
        return tuple(
            LayerRule(glob.escape(layer.name), layer.bits, weights_only=True)
            for layer in self.layers
        )

    def bits_by_name(self) -> dict[str, int]:
        return {layer.name: layer.bits for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WidthPlan:
        """The inverse of `to_dict`."""
        points = {
            key: tuple(Point(**point) for point in values[key]) for key in ("frontier", "flat")
        }
        layers = tuple(
            LayerChoice(**{**layer, "criterion": tuple(layer["criterion"])})
            for layer in values["layers"]
        )
        chosen, widths = Point(**values["chosen"]), tuple(values["widths"])
        return cls(**{**values, **points, "chosen": chosen, "widths": widths, "layers": layers})


class WidthChooser:
    """Chooses the widths of one student's layers, once their importance is known."""

    def __init__(self, costs: Costs, mixed: Mixed, estimator: RangeEstimator = search):
        self.costs, self.mixed = costs, mixed
        self.estimator = partial(search, steps=STEPS) if estimator is search else estimator

    def __call__(self, teacher: nn.Module, student: nn.Module, importance: Importance) -> WidthPlan:
        """The plan for `student`, whose weights' quantizers are left as they are.

        Errors are those of the teacher's weights, which the traces are of: a batch norm folded
        into a weight scales both.
        """
        shares, widths = self.costs.shares, self.mixed.widths
        traces = [_trace(share.names, importance) for share in shares]
        quantizers = {layer_name(n): module_of(n.args[1]) for n in quantized_layers(student)}
        errors = [
            [trace * error for error in self._errors(teacher, share.names[0], quantizers)]
            for share, trace in zip(shares, traces, strict=True)
        ]
        measure, budget = self._budget()
        each = [share.macs_bits if measure == "bitops" else share.numel for share in shares]
        knapsack = Knapsack([[n * width for width in widths] for n in each], errors)
        fixed = self.costs.fixed_bitops if measure == "bitops" else self.costs.fixed_bits
        limit = budget - fixed if measure == "bitops" else budget * 8 - fixed
        choice = self._given(knapsack) or knapsack.best(limit)
        picked = [widths[option] for option in choice.options]
        return WidthPlan(
            measure,
            budget,
            knapsack.exact,
            widths,
            self._point(choice),
            tuple(self._point(each) for each in knapsack.frontier(POINTS)),
            tuple(
                replace(self._point(knapsack.flat(option)), bits=width)
                for option, width in enumerate(widths)
            ),
            tuple(
                LayerChoice(name, bits, trace, tuple(row))
                for share, bits, trace, row in zip(shares, picked, traces, errors, strict=True)
                for name in share.names
            ),
        )

    def _budget(self) -> tuple[str, float]:
        if self.mixed.bitops is not None:
            return "bitops", float(self.mixed.bitops)
        size = self.mixed.size
        return "size", float(size) if size is not None else as_is(self.costs)

    def _given(self, knapsack: Knapsack) -> Choice | None:
        """The choice that the settings hold already; None where they don't."""
        rules = {rule.pattern: rule.bits for rule in self.mixed.layers}
        names = [glob.escape(share.names[0]) for share in self.costs.shares]
        if not rules or any(rules.get(name) not in self.mixed.widths for name in names):
            return None
        return knapsack.choice([self.mixed.widths.index(rules[name]) for name in names])

    def _point(self, choice: Choice) -> Point:
        widths = [self.mixed.widths[option] for option in choice.options]
        costs = self.costs
        size, bitops = costs.size(widths), costs.bitops(widths)
        return Point(size, bitops, costs.average_of(widths), choice.error)

    @torch.no_grad()
    def _errors(
        self, teacher: nn.Module, name: str, quantizers: dict[str, Quantizer]
    ) -> list[float]:
        """|Q(W) - W|^2 of a layer's weight at each width."""
        weight, spec = teacher.get_submodule(name).weight.detach(), quantizers[name].spec
        axis = spec.channel_axis
        rows = weight.reshape(1, -1) if axis is None else weight.transpose(0, axis).flatten(1)
        return [self._error(rows.float(), replace(spec, bits=b)) for b in self.mixed.widths]

    def _error(self, rows: Tensor, spec: Any) -> float:
        quantizer = Quantizer(replace(spec, channel_axis=0), len(rows)).to(rows.device)
        quantizer.set_range(*self.estimator(rows, spec))
        return float((quantizer(rows) - rows).double().square().sum())


def _trace(names: Sequence[str], importance: Importance) -> float:
    """Average Hessian trace of a weight, or what its estimate leaves uncertain if that is more.

    Estimates of little are noise, and may be negative.
    """
    known = {
        name: max(trace, error)
        for name, trace, error in zip(
            importance.layers, importance.trace, importance.standard_error, strict=True
        )
    }
    return max((known.get(name, 0.0) for name in names), default=0.0)
