"""Recipes as data: they go through TOML and back, and what can't be used is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fxquant.datafree.recipe import ImportanceSettings, Polish, Recipe, Sampler, Schedule, Term
from fxquant.datafree.recipes import RECIPES, find_recipe
from fxquant.errors import SettingError
from fxquant.settings import to_toml, tomllib

EVERY = [(name, preset) for name, presets in RECIPES.items() for preset in presets]


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_every_recipe_survives_toml_and_json(name, preset):
    recipe = find_recipe(name, preset)
    assert recipe.name == name
    assert Recipe.from_dict(tomllib.loads(to_toml(recipe.to_dict()))) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_papers_recipes_are_the_papers():
    ddaq, zeroq = find_recipe("ddaq", "paper"), find_recipe("zeroq", "paper")
    assert [(t.loss, t.weight, t.weighting) for t in ddaq.sample_terms] == [
        ("bn_statistics", 0.5, "sample"),
        ("features", -0.5, "layer"),
    ]
    assert [(t.loss, t.weight, t.weighting) for t in ddaq.student_terms] == [
        ("features", 1, "layer")
    ]
    assert (ddaq.schedule.sampler_every, ddaq.schedule.replay) == (1, 0)
    assert ddaq.uses_importance
    assert zeroq.schedule.steps == zeroq.schedule.adversarial == 0
    assert not zeroq.uses_importance


@pytest.mark.parametrize(
    ("name", "preset", "message"),
    [
        ("dsg2", "default", "unknown recipe 'dsg2'"),
        ("ddaq", "quick", "unknown preset 'quick'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name, preset, message):
    with pytest.raises(SettingError, match=message) as caught:
        find_recipe(name, preset)
    assert "ddaq" in caught.value.hint or "fast" in caught.value.hint


def test_without_fine_tuning_has_no_steps_and_no_more_images_than_calibration_takes():
    for preset in RECIPES["ddaq"]:
        recipe = find_recipe("ddaq", preset)
        without = recipe.without_fine_tuning()
        assert without.schedule == replace(recipe.schedule, steps=0)
        assert replace(without, schedule=recipe.schedule, polish=recipe.polish) == recipe
        images = without.polish.batches * without.polish.batch
        fewer = without.polish.batches < recipe.polish.batches
        assert not fewer or images >= recipe.schedule.calibration_images
        assert without.without_fine_tuning() == without


def changed(path: str, value: object) -> dict:
    """The default recipe's plain values with one of them, at a dotted path, replaced."""
    values = json.loads(json.dumps(find_recipe("ddaq", "default").to_dict()))
    *parts, last = path.split(".")
    place = values
    for part in parts:
        place = place[int(part)] if part.isdecimal() else place[part]
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", 1, "unknown key recipe.colour"),
        ("schedule.stepz", 5, "unknown key recipe.schedule.stepz"),
        ("sampler.momentum", 0.9, "unknown key recipe.sampler.momentum"),
        ("sample_terms.0.wieght", 1.0, "unknown key recipe.sample_terms.wieght"),
        ("importance.prob", 3, "unknown key recipe.importance.prob"),
        ("schedule.steps", 1.5, "recipe.schedule.steps is 1.5; expected int"),
        ("schedule.steps", "many", "recipe.schedule.steps is 'many'; expected int"),
        ("schedule.steps", True, "recipe.schedule.steps is True; expected int"),
        ("schedule.student_lr", "1e-3", "recipe.schedule.student_lr is '1e-3'; expected float"),
        ("schedule.correct_biases", 1, "recipe.schedule.correct_biases is 1; expected bool"),
        ("name", 7, "recipe.name is 7; expected str"),
        ("schedule", 7, "recipe.schedule is 7; expected a table"),
        ("sampler", [], r"recipe.sampler is \[\]; expected a table"),
        ("sample_terms", 3, "recipe.sample_terms is 3; expected a list"),
        ("sample_terms", ["features"], "recipe.sample_terms is 'features'; expected a table"),
        ("sampler.kind", "diffusion", "unknown sampler 'diffusion'"),
        ("sampler.lr", 0, "learning rate is 0.0; expected above 0"),
        ("sampler.betas", [0.5], r"betas are \(0.5,\); expected two numbers"),
        ("sampler.betas", ["a", 0.9], "betas are .* expected two numbers"),
        ("sampler.betas", 0.5, "betas are 0.5; expected two numbers"),
        ("sampler.betas", [0.5, 1.0], "betas are .* below 1"),
        ("sampler.batches", 0, "batches is 0; expected at least 1"),
        ("sampler.width", 1, "width is 1; expected at least 2"),
        ("schedule.batch", 0, "batch is 0; expected above 0"),
        ("schedule.replay", -1, "replay must not be negative"),
        ("schedule.ranges", "widest", "unknown range estimator 'widest'"),
        ("reconstruction.drop", 1.0, "reconstruction.drop is 1.0; expected a share below 1"),
        ("reconstruction.steps", 1.5, "recipe.reconstruction.steps is 1.5; expected int"),
        ("sample_terms.0.loss", "perceptual", "unknown loss 'perceptual'"),
        ("sample_terms.0.weighting", "both", "unknown weighting 'both'"),
        ("sample_terms.1.distance", "l3", "unknown distance 'l3'"),
        ("student_terms.0.temperature", 0, "temperature is 0.0; expected above 0"),
        ("student_terms", [], "student steps and no student terms"),
        ("sample_terms", [], "no sample terms"),
        ("sample_terms", [{"loss": "features"}], "no sample term that does without a student"),
        ("student_terms", [{"loss": "output"}] * 2, "hold output twice"),
        ("polish.steps", -1, "polish.steps is -1"),
        ("polish.batch", 0, "polish.batch is 0"),
        ("polish.sheen", 1, "unknown key recipe.polish.sheen"),
        ("importance.method", "fisher", "unknown importance method 'fisher'"),
        ("importance.normalize", "sum", "unknown importance normalisation 'sum'"),
        ("importance.probes", 1, "probes is 1; expected at least 2"),
    ],
)
def test_what_can_not_be_used_is_named(path, value, message):
    with pytest.raises(SettingError, match=message):
        Recipe.from_dict(changed(path, value))


def test_images_are_optimised_in_a_warm_up_and_polished_only_after_a_generator():
    zeroq = find_recipe("zeroq", "fast")
    for changes in (
        {"schedule": replace(zeroq.schedule, warmup=0)},
        {"polish": Polish(steps=5)},
    ):
        with pytest.raises(SettingError, match="takes a warm-up and no polish"):
            replace(zeroq, **changes)


@pytest.mark.parametrize("values", ["ddaq", ["ddaq"], 3])
def test_a_recipe_that_is_no_table_is_refused(values):
    with pytest.raises(SettingError, match="expected a table"):
        Recipe.from_dict(values)


@pytest.mark.parametrize("missing", ["name", "sampler"])
def test_what_is_missing_is_named(missing):
    values = changed("name", "mine")
    del values[missing]
    with pytest.raises(SettingError, match=missing):
        Recipe.from_dict(values)


def test_a_whole_number_is_a_valid_learning_rate_and_tables_may_be_left_out():
    values = {"name": "mine", "sampler": {"kind": "images", "lr": 1}}
    values |= {"sample_terms": [{"loss": "bn_statistics"}], "schedule": {"steps": 0}}
    recipe = Recipe.from_dict(values)
    assert recipe == Recipe(
        "mine",
        Sampler("images", 1.0),
        (Term("bn_statistics"),),
        schedule=Schedule(steps=0),
        importance=ImportanceSettings(),
    )
    assert isinstance(recipe.sampler.lr, float)
