"""One width for each layer, with the least error that a budget allows: a multiple-choice knapsack.

Dynamic programming over the layers gives the answer for every budget at once. Costs are counted
in units of their greatest common divisor; where that makes more than MOST_UNITS of them, in larger
units, rounded up, so that a budget holds in any case and what is left over is spent afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_UNITS = 1 << 17


@dataclass(frozen=True)
class Choice:
    """An index for each layer into its options, with what they cost and err together."""

    options: tuple[int, ...]
    cost: int
    error: float


class Knapsack:
    """The best choices for every budget.

    `costs` and `errors` hold a row for each layer with a number for each of its options; costs
    are whole numbers that grow along a row.
    """

    def __init__(self, costs: Sequence[Sequence[int]], errors: Sequence[Sequence[float]]):
        self.costs = [[int(cost) for cost in row] for row in costs]
        self.errors = [[float(error) for error in row] for row in errors]
        self.least = sum(row[0] for row in self.costs)
        self.most = sum(row[-1] for row in self.costs)
        extra = [[cost - row[0] for cost in row] for row in self.costs]
        divisor = math.gcd(*(cost for row in extra for cost in row)) or 1
        self.unit = divisor * max(1, -(-(self.most - self.least) // (divisor * MOST_UNITS)))
        self.exact = self.unit == divisor
        self._units = [[-(-cost // self.unit) for cost in row] for row in extra]
        self._error, self._picked = self._fill()

    def _fill(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Least error by units spent at most, and each layer's option there."""
        count = sum(row[-1] for row in self._units) + 1
        total, picked = np.zeros(count), []
        for units, errors in zip(self._units, self.errors, strict=True):
            best, option = total + errors[0], np.zeros(count, np.uint8)
            for index in range(1, len(units)):
                tried = total[: count - units[index]] + errors[index]
                place = best[units[index] :]
                better = tried < place
                place[better] = tried[better]
                option[units[index] :][better] = index
            total = best
            picked.append(option)
        return total, picked

    def best(self, budget: float) -> Choice | None:
        """The choice of least error that costs at most `budget`; None where none does."""
        if budget < self.least:
            return None
        units = min(int((min(budget, self.most) - self.least) // self.unit), len(self._error) - 1)
        if budget >= self.most:
            units = len(self._error) - 1
        found = self._spend_the_rest(self._options(units), budget)
        if self.exact:
            return found
        options = min(len(row) for row in self.costs)
        flat = [choice for choice in map(self.flat, range(options)) if choice.cost <= budget]
        return min([found, *flat], key=lambda choice: choice.error)

    def frontier(self, points: int) -> list[Choice]:
        """Choices from the cheapest to the dearest, evenly spread, each better than the last."""
        drops = np.flatnonzero(np.diff(self._error) < 0) + 1
        at = np.concatenate([[0], drops])
        if len(at) > points:
            wanted = np.linspace(at[0], at[-1], points)
            at = np.unique(at[np.searchsorted(at, wanted)])
        return [self.choice(self._options(int(units))) for units in at]

    def flat(self, option: int) -> Choice:
        """The choice that takes the same option everywhere."""
        return self.choice([option] * len(self.costs))

    def _options(self, units: int) -> list[int]:
        """What the table says at so many units, from the last layer to the first."""
        options = []
        for row, picked in zip(reversed(self._units), reversed(self._picked), strict=True):
            options.append(int(picked[units]))
            units -= row[options[-1]]
        return options[::-1]

    def _spend_the_rest(self, options: list[int], budget: float) -> Choice:
        """Spend what rounding to units left of the budget, on the largest gains first."""
        left = budget - self.choice(options).cost
        while True:
            gains = [
                (self.errors[i][at] - self.errors[i][other], i, other)
                for i, at in enumerate(options)
                for other in range(len(self.costs[i]))
                if self.costs[i][other] - self.costs[i][at] <= left
            ]
            gain, layer, other = max(gains, default=(0.0, 0, 0))
            if gain <= 0:
                return self.choice(options)
            left -= self.costs[layer][other] - self.costs[layer][options[layer]]
            options[layer] = other

    def choice(self, options: list[int]) -> Choice:
        return Choice(
            tuple(options),
            sum(row[at] for row, at in zip(self.costs, options, strict=True)),
            sum(row[at] for row, at in zip(self.errors, options, strict=True)),
        )
