"""Mixed precision: widths under a budget, from the settings to the student and the report."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from nets import ALL
from small_runs import RECIPES, SHAPE, make, prepared, same, shrunk, snapshot

import fxquant
from fxquant.datafree.importance import Importance
from fxquant.errors import SettingError
from fxquant.graph.insert_quantizers import layer_name, quantized_layers
from fxquant.graph.ops import module_of
from fxquant.graph.prepare import prepare
from fxquant.mixed.budget import Mixed
from fxquant.mixed.choose import WidthChooser, WidthPlan
from fxquant.mixed.shares import measure_costs, require_possible, set_widths
from fxquant.pipeline import run, train
from fxquant.report.facts import build_report
from fxquant.report.html import render
from fxquant.report.layers import describe, list_layers
from fxquant.settings import Settings
from fxquant.spec import LayerBits, LayerRule, QConfig

CONFIG = QConfig(4, 3)
RECIPE = replace(shrunk("ddaq", "fast"), name="small").without_fine_tuning()


def settings(mixed: Mixed, config: QConfig = CONFIG) -> Settings:
    return Settings(SHAPE, config, RECIPE, mixed=mixed)


def widths_of(student) -> dict[str, int]:
    return {layer_name(n): module_of(n.args[1]).spec.bits for n in quantized_layers(student)}


def chosen(name: str, mixed: Mixed, config: QConfig = CONFIG) -> WidthPlan:
    """The plan for a small network each of whose layers matters half as much as that before."""
    p = prepare(ALL[name](), config, SHAPE)
    names = tuple(dict.fromkeys(map(layer_name, quantized_layers(p.student))))
    traces = tuple(0.5**index for index in range(len(names)))
    importance = Importance(names, traces, (0.0,) * len(names))
    chooser = WidthChooser(measure_costs(p, config), mixed)
    return chooser(p.teacher, p.student, importance)


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "shared_relu", "concat"])
def test_costs_are_those_of_the_report(name):
    p = prepare(ALL[name](), CONFIG, SHAPE)
    costs = measure_costs(p, CONFIG)
    assert sum(len(share.names) for share in costs.shares) == len(widths_of(p.student))
    widths = [2 + index % 7 for index in range(len(costs.shares))]
    by_name = dict(zip((share.names[0] for share in costs.shares), widths, strict=True))
    set_widths(p.student, by_name)
    facts = describe(p, list_layers(p))
    assert costs.size(widths) == facts["size"]["weights_bytes"]
    assert costs.bitops(widths) == facts["bitops"]["quantized"]


def test_layers_that_rules_name_keep_their_width():
    config = QConfig(4, 4, first_last_bits=8, layers=(LayerRule("layer1.*", 5),))
    costs = measure_costs(prepare(ALL["residual"](), config, SHAPE), config)
    assert [s.names for s in costs.shares] == [("layer2.conv1",), ("layer2.conv2",)]
    everything = replace(config, layers=(LayerRule("*", 5),))
    fixed = measure_costs(prepare(ALL["residual"](), everything, SHAPE), everything)
    with pytest.raises(SettingError, match="nothing to choose"):
        require_possible(fixed, Mixed())


@pytest.mark.parametrize("measure", ["size", "bitops"])
def test_a_target_that_can_not_be_met_says_the_least(measure):
    costs = measure_costs(prepare(ALL["residual"](), CONFIG, SHAPE), CONFIG)
    narrowest = [2] * len(costs.shares)
    least = costs.size(narrowest) if measure == "size" else costs.bitops(narrowest)
    require_possible(costs, Mixed(**{measure: least}))
    with pytest.raises(SettingError, match=rf"the least is {least:,.0f}"):
        require_possible(costs, Mixed(**{measure: least - 1}))
    with pytest.raises(SettingError, match="budget is the size at 4 bits"):
        require_possible(costs, Mixed(widths=(6, 8)))


@pytest.mark.parametrize("name", ["residual", "inverted_residual"])
def test_the_flat_budget_holds_and_is_used_better(name):
    plan = chosen(name, Mixed())
    flat = next(point for point in plan.flat if point.bits == 4)
    assert plan.budget == flat.size
    assert plan.chosen.size <= flat.size
    assert plan.chosen.criterion < flat.criterion
    assert plan.exact
    assert WidthPlan.from_dict(plan.to_dict()) == plan


def test_a_target_of_bit_operations_is_met():
    flat = next(p for p in chosen("residual", Mixed()).flat if p.bits == 3)
    plan = chosen("residual", Mixed(bitops=flat.bitops))
    assert plan.measure == "bitops"
    assert plan.chosen.bitops <= flat.bitops
    assert plan.chosen.criterion <= flat.criterion


def test_only_the_widths_asked_for_are_given():
    plan = chosen("residual", Mixed(widths=(2, 4, 8)))
    assert {layer.bits for layer in plan.layers} <= {2, 4, 8}
    assert [point.bits for point in plan.flat] == [2, 4, 8]


def test_the_criterion_is_trace_times_squared_error():
    p = prepare(ALL["residual"](), CONFIG, SHAPE)
    plan = chosen("residual", Mixed(widths=(2, 8)))
    row = next(layer for layer in plan.layers if layer.name == "layer1.conv1")
    weight = p.teacher.get_submodule("layer1.conv1").weight
    assert row.trace == 0.5
    low = row.criterion[0] / row.trace
    assert 0 < low < float(weight.square().sum())
    assert row.criterion[1] < row.criterion[0] / 1000  # six bits more: 4^-6 of the error


def test_rules_for_weights_alone_leave_activations():
    config = QConfig(4, 6, layers=(LayerRule.parse("a*=w3"), LayerRule.parse("ab=5")))
    assert config.layer_bits("a") == LayerBits(3, 6)
    assert config.layer_bits("ab") == LayerBits(5, 5)
    assert str(config.layers[0]) == "a*=w3"
    assert LayerRule.parse(str(config.layers[0])) == config.layers[0]
    floats = QConfig(layers=(LayerRule("a", None), LayerRule("a", 3, weights_only=True)))
    assert floats.layer_bits("a") == LayerBits(3, 4)
    with pytest.raises(SettingError, match="can't be read"):
        LayerRule.parse("a=w")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 1.0, "bitops": 1.0}, "a target size and target bit operations"),
        ({"size": -1}, "mixed.size is -1"),
        ({"bitops": float("inf")}, "mixed.bitops is inf"),
        ({"widths": [1, 4]}, "a width in mixed.widths is 1"),
        ({"widths": []}, "expected different widths"),
        ({"layers": "a=w3"}, "mixed.layers is"),
        ({"sise": 1}, "unknown key mixed.sise"),
    ],
)
def test_what_can_not_be_used_is_named(values, message):
    with pytest.raises(SettingError, match=message):
        Mixed.from_dict(values)


def test_settings_keep_what_was_chosen_and_users_rules_go_over_it():
    mixed = Mixed(size=9000, widths=(2, 4), layers=(LayerRule("a", 2, weights_only=True),))
    kept = Settings(SHAPE, QConfig(4, 4, layers=(LayerRule("a", 8),)), RECIPE, mixed=mixed)
    assert Settings.from_dict(kept.to_dict()) == kept
    assert kept.applied_config.layer_bits("a") == LayerBits(8, 8)
    assert replace(kept, config=CONFIG).applied_config.layer_bits("a") == LayerBits(2, 3)


def test_a_run_chooses_and_a_repeated_one_takes_the_choice():
    model = ALL["residual"]()
    before = snapshot(model)
    result = fxquant.quantize(model, config=CONFIG, input_shape=SHAPE, recipe=RECIPE, mixed=True)
    assert same(snapshot(model), before)
    found = widths_of(result.student)
    assert found == result.widths.bits_by_name()
    assert len(set(found.values())) > 1
    report = build_report(result)
    assert report["size"]["weights_bytes"] == result.widths.chosen.size <= result.widths.budget
    assert {row["name"]: row["weight_bits"] for row in report["layers"]} == found
    again = run(
        prepare(model, result.settings.applied_config, SHAPE),
        Settings.from_dict(result.settings.to_dict()),
    )
    assert same(again.student.state_dict(), result.student.state_dict())
    assert again.widths == result.widths


def test_importance_is_measured_for_recipes_that_do_not_ask_for_it():
    p = prepared("residual")
    s = replace(settings(Mixed()), recipe=RECIPES["zeroq"])
    engine = train(p, s)
    assert widths_of(engine.student) == engine.widths.bits_by_name()
    assert engine.importance is not None


def test_an_interrupted_run_goes_on_with_its_widths():
    p = prepare(ALL["residual"](), CONFIG, SHAPE)
    chooser = WidthChooser(measure_costs(p, CONFIG), Mixed())
    whole = make(RECIPE, p, choose=chooser)
    states = []

    class Keep:
        def checkpoint(self, engine):
            if engine.widths is not None:
                states.append(copy.deepcopy(engine.state_dict()))

        def __getattr__(self, name):
            return lambda *_: None

    whole.watcher = Keep()
    whole.run()
    other = prepare(ALL["residual"](), CONFIG, SHAPE)
    later = make(RECIPE, other, choose=chooser)
    later.load_state_dict(states[1])
    later.run()
    assert later.widths == whole.widths
    assert widths_of(later.student) == whole.widths.bits_by_name()
    assert same(later.student.state_dict(), whole.student.state_dict())


def test_the_page_shows_the_frontier():
    result = run(prepared("residual"), settings(Mixed(), QConfig(3, 3)))
    page = render(build_report(result), torch.rand(2, 3, 16, 16))
    assert 'id="mixed"' in page
    assert "HAWQ-V2" in page
    assert "Frontier of" in page
    assert "on average, and 3-bit activations" in page
    flat = run(prepared("residual"), replace(settings(Mixed()), mixed=None))
    assert 'id="mixed"' not in render(build_report(flat), torch.rand(2, 3, 16, 16))
