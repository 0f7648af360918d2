"""The knapsack behind mixed precision against every choice there is."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.mixed import solve
from fxquant.mixed.solve import Knapsack

WIDTHS = (2, 3, 4, 8)
LAYERS = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.floats(0, 100), min_size=4, max_size=4)),
    min_size=1,
    max_size=4,
)


def knapsack(layers) -> Knapsack:
    return Knapsack([[n * width for width in WIDTHS] for n, _ in layers], [e for _, e in layers])


def least_error(layers, budget: float) -> float | None:
    """The least error of all choices within the budget."""
    found = [
        sum(errors[i] for (_, errors), i in zip(layers, options, strict=True))
        for options in product(range(len(WIDTHS)), repeat=len(layers))
        if sum(n * WIDTHS[i] for (n, _), i in zip(layers, options, strict=True)) <= budget
    ]
    return min(found, default=None)


@settings(max_examples=60, deadline=None)
@given(LAYERS, st.integers(0, 1300))
def test_no_choice_within_the_budget_is_better(layers, budget):
    choice, least = knapsack(layers).best(budget), least_error(layers, budget)
    if choice is None:
        assert least is None
        return
    assert choice.cost <= budget
    pairs = zip(layers, choice.options, strict=True)
    assert choice.cost == sum(n * WIDTHS[i] for (n, _), i in pairs)
    assert choice.error == pytest.approx(least)


def test_coarse_units_hold_the_budget_and_come_close(monkeypatch):
    layers = [(n, [4.0**-width * n for width in WIDTHS]) for n in (97, 1009, 503, 211)]
    fine = knapsack(layers)
    monkeypatch.setattr(solve, "MOST_UNITS", 1024)
    coarse = knapsack(layers)
    assert fine.exact
    assert not coarse.exact
    for budget in range(fine.least, fine.most + 1, 97):
        near, best = coarse.best(budget), fine.best(budget)
        assert near.cost <= budget
        # Rounded up, each layer wastes less than a unit.
        poorer = fine.best(budget - len(layers) * coarse.unit)
        assert best.error <= near.error
        assert poorer is None or near.error <= poorer.error


def test_the_frontier_descends_and_holds_the_best_of_each_of_its_costs():
    sizes, traces = (9, 30, 7), (5.0, 1.0, 2.0)
    layers = [
        (n, [4.0**-width * n * h for width in WIDTHS]) for n, h in zip(sizes, traces, strict=True)
    ]
    found = knapsack(layers)
    points = found.frontier(100)
    assert points[0].cost == found.least
    assert points[-1].cost == found.most
    assert all(a.cost < b.cost and a.error > b.error for a, b in pairwise(points))
    assert all(found.best(p.cost).error == pytest.approx(p.error) for p in points)
    assert len(found.frontier(5)) <= 5


def test_a_layer_that_matters_gets_more_bits():
    errors = [4.0**-width for width in WIDTHS]
    layers = [(10, errors), (10, [1000 * e for e in errors])]
    assert knapsack(layers).best(60).options == (0, 2)
