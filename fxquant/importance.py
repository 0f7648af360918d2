"""How important each layer of a network is, measured without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fxquant.datafree.engine import Engine
from fxquant.datafree.importance import Importance, measure_importance
from fxquant.datafree.recipe import IMPORTANCE_METHODS, Recipe
from fxquant.datafree.recipes import find_recipe, fit_recipe
from fxquant.datafree.watcher import Watcher
from fxquant.errors import SettingError
from fxquant.graph.prepare import Prepared, prepare
from fxquant.pipeline import resolve_device
from fxquant.settings import Settings
from fxquant.spec import QConfig


def layer_importance(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...],
    methods: Sequence[str] = ("gauss-newton",),
    images: Tensor | None = None,
    labels: Tensor | None = None,
    count: int = 64,
    probes: int = 50,
    recipe: str | Recipe = "ddaq",
    preset: str = "default",
    seed: int = 0,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> dict[str, Importance]:
    """Average Hessian trace of each layer, with its standard error, by method.

    `gauss-newton` takes any output; `hessian`, the paper's, is that of the cross-entropy, for
    logits alone. Without `images`, (n, channels, height, width), `count` of them are generated as
    `recipe` at `preset` warms up: matched to the statistics of the batch norms. `labels`, (n,), go
    with images of your own and are used by `hessian`, which otherwise takes the most likely
    classes. Raises SettingError for what can't be used.
    """
    for method in methods:
        if method not in IMPORTANCE_METHODS:
            known = ", ".join(IMPORTANCE_METHODS)
            raise SettingError(f"unknown method '{method}'", f"one of {known}")
    if labels is not None and images is None:
        raise SettingError("labels without the images that they belong to", "give both or neither")
    recipe = find_recipe(recipe, preset) if isinstance(recipe, str) else recipe
    settings = Settings(tuple(input_shape), recipe=recipe, seed=seed, device=resolve_device(device))
    prepared = prepare(model, QConfig(), settings.input_shape)
    if images is None:
        images = matched_images(prepared, settings, count, watcher)
    return importance_on(prepared.teacher, images, settings, methods, probes, labels)


def matched_images(
    prepared: Prepared, settings: Settings, count: int, watcher: Watcher | None = None
) -> Tensor:
    """At most `count` images whose statistics are those of the teacher's batch norms."""
    recipe = fit_recipe(settings.recipe, prepared.teacher)
    own = tuple(term for term in recipe.sample_terms if not term.needs_student)
    schedule = replace(recipe.schedule, steps=0)
    engine = Engine(
        prepared.teacher,
        prepared.student,
        replace(recipe, sample_terms=own, schedule=schedule),
        settings.input_shape,
        seed=settings.seed,
        device=settings.device,
        watcher=watcher,
    )
    engine.run(only="warm-up")
    return engine.sampler.collect(count).detach().contiguous()


def importance_on(
    teacher: nn.Module,
    images: Tensor,
    settings: Settings,
    methods: Sequence[str],
    probes: int,
    labels: Tensor | None = None,
) -> dict[str, Importance]:
    """Importance of the teacher's layers on these images, each method with the same probes."""
    device = torch.device(settings.device)
    teacher = teacher.to(device)
    return {
        method: measure_importance(
            teacher,
            images.to(device),
            method=method,
            probes=probes,
            labels=None if labels is None else labels.to(device),
            rng=torch.Generator().manual_seed(settings.seed),
        )
        for method in methods
    }


@torch.no_grad()
def gives_logits(teacher: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether the teacher's output is one tensor (n, classes), which a cross-entropy takes."""
    device = next(teacher.parameters()).device
    output = teacher(torch.zeros(1, *input_shape, device=device))
    return isinstance(output, Tensor) and output.dim() == 2
