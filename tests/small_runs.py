"""Recipes of a few steps, an engine to run them, and how to compare what comes out."""

from __future__ import annotations

from dataclasses import replace

import torch
from nets import ALL
from torch import Tensor, nn

from fxquant.datafree.engine import Engine
from fxquant.datafree.recipe import Recipe
from fxquant.datafree.recipes import find_recipe
from fxquant.graph.prepare import Prepared, prepare
from fxquant.spec import QConfig

SHAPE = (3, 16, 16)


def shrunk(name: str, preset: str) -> Recipe:
    """A recipe of a few steps on few images, all its phases kept."""
    recipe = find_recipe(name, preset)
    schedule = replace(
        recipe.schedule,
        batch=6,
        warmup=3,
        adversarial=min(recipe.schedule.adversarial, 2),
        steps=min(recipe.schedule.steps, 4),
        sampler_every=min(recipe.schedule.sampler_every, 2),
        replay=min(recipe.schedule.replay, 10),
        calibration_images=12,
        train_below=0.0,
    )
    return replace(
        recipe,
        schedule=schedule,
        sampler=replace(recipe.sampler, latent=8, width=8),
        reconstruction=replace(
            recipe.reconstruction, steps=min(recipe.reconstruction.steps, 2), batch=4
        ),
        polish=replace(recipe.polish, steps=min(recipe.polish.steps, 2), batches=2, batch=8),
        importance=replace(recipe.importance, probes=3, images=6),
    )


# `ddaq` polishes and replays its images; the paper's draws fresh ones, and seeks the student's
# weak spots where it isn't fine-tuned; `zeroq` optimises pixels alone.
RECIPES = {
    "ddaq": shrunk("ddaq", "default"),
    "ddaq without fine-tuning": shrunk("ddaq", "default").without_fine_tuning(),
    "paper": shrunk("ddaq", "paper"),
    "paper without fine-tuning": shrunk("ddaq", "paper").without_fine_tuning(),
    "zeroq": shrunk("zeroq", "default"),
}


def prepared(name: str = "shared_relu", **options) -> Prepared:
    return prepare(ALL[name](), QConfig(3, 3, **options), SHAPE)


def make(recipe: Recipe, p: Prepared | None = None, **options) -> Engine:
    p = p or prepared()
    return Engine(p.teacher, p.student, recipe, p.input_shape, **options)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states hold the same bytes under the same names."""
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())
