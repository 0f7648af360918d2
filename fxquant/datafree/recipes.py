"""The methods, as values: DDAQ, ZeroQ, PSAQ, and the presets that scale them to time."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fxquant.datafree.recipe import (
    ImportanceSettings,
    Polish,
    Recipe,
    Reconstruction,
    Sampler,
    Schedule,
    Term,
)
from fxquant.errors import SettingError
from fxquant.graph.insert_taps import ATTENTION_TAPS, BN_TAPS, count_taps

# Li et al., 2022, Algorithm 1: one generator step, then one student step on a fresh draw;
# L_G = 0.5 L_bn - 0.5 L_adv (eq. 16), L_Q = L_adv (eq. 17), ranges from min to max (eq. 1).
_DDAQ = Recipe(
    name="ddaq",
    sampler=Sampler("generator", lr=1e-3),
    sample_terms=(
        Term("bn_statistics", 0.5, weighting="sample"),
        Term("features", -0.5, weighting="layer"),
    ),
    student_terms=(Term("features", 1.0, weighting="layer"),),
    schedule=Schedule(
        warmup=2000,
        adversarial=2000,
        steps=8000,
        ranges="min-max",
        round_weights=False,
        correct_biases=False,
        keep_closer=False,
    ),
)

# Cai et al., 2020: images matched one by one to the statistics, and calibration only. Where they
# lower the learning rate when the loss stalls, it follows half a cosine here.
_ZEROQ = Recipe(
    name="zeroq",
    sampler=Sampler("images", lr=0.5, betas=(0.9, 0.999), batches=1),
    sample_terms=(
        Term("bn_statistics", per_sample=True),
        Term("input_statistics", per_sample=True),
    ),
    schedule=Schedule(
        warmup=500, adversarial=0, steps=0, round_weights=False, correct_biases=False
    ),
)

# Li et al., 2022 (PSAQ-ViT), for networks without batch norms: images whose patches differ. Classes
# are not drawn at random but spread over the batch, and the input's statistics stand for their
# smoothness term.
PATCH_TERMS = (Term("patch_similarity"), Term("classes"), Term("input_statistics"))
_PSAQ = replace(
    _ZEROQ,
    name="psaq",
    sampler=Sampler("images", lr=0.2, betas=(0.5, 0.9), batches=1),
    sample_terms=PATCH_TERMS,
)

# What helps most for its time, beside the paper: pixels of the generator's images are optimised
# before they are kept; the input's range reaches past theirs; weights are rounded for their layers'
# outputs, then for those of their units; stored images are replayed, shifted and mirrored; the
# output is distilled beside the features. Of 25 dB and more, as 6 and 8 bits leave, training takes
# as much as it gives.
_FAST = replace(
    _DDAQ,
    sampler=replace(_DDAQ.sampler, pixels="measured"),
    student_terms=(Term("features", 1.0, weighting="layer"), Term("output", 1.0)),
    polish=Polish(steps=30, batches=3),
    schedule=Schedule(
        warmup=100,
        adversarial=0,
        steps=150,
        sampler_every=10,
        replay=512,
        crop=2,
        input_reach=3.0,
        student_lr=2e-2,
        scale_lr=1e-3,
        train_below=25.0,
    ),
    reconstruction=Reconstruction(steps=120, rounding_lr=2e-2),
    importance=ImportanceSettings(probes=10),
)

RECIPES: dict[str, dict[str, Recipe]] = {
    "ddaq": {
        "paper": _DDAQ,
        "fast": _FAST,
        "default": replace(
            _FAST,
            polish=Polish(steps=40, batches=6),
            schedule=replace(_FAST.schedule, warmup=150, steps=300, replay=1024),
            reconstruction=Reconstruction(steps=250, rounding_lr=2e-2),
            importance=ImportanceSettings(probes=20),
        ),
        "best": replace(
            _FAST,
            polish=Polish(steps=60, batches=6),
            schedule=replace(_FAST.schedule, warmup=200, steps=300, replay=1024),
            reconstruction=Reconstruction(steps=600, rounding_lr=1e-2),
            importance=ImportanceSettings(probes=20),
        ),
    },
    "zeroq": {
        "paper": _ZEROQ,
        "default": replace(_ZEROQ, sampler=replace(_ZEROQ.sampler, batches=2)),
        "fast": replace(_ZEROQ, schedule=replace(_ZEROQ.schedule, warmup=200)),
    },
    "psaq": {
        "paper": _PSAQ,
        "default": replace(_PSAQ, sampler=replace(_PSAQ.sampler, batches=2)),
        "fast": replace(_PSAQ, schedule=replace(_PSAQ.schedule, warmup=200)),
    },
}


def find_recipe(name: str, preset: str) -> Recipe:
    """The recipe of this name at this preset; raises SettingError for unknown ones."""
    if name not in RECIPES:
        raise SettingError(f"unknown recipe '{name}'", f"one of {', '.join(RECIPES)}")
    if preset not in RECIPES[name]:
        raise SettingError(f"unknown preset '{preset}'", f"one of {', '.join(RECIPES[name])}")
    return RECIPES[name][preset]


def fit_recipe(recipe: Recipe, teacher: nn.Module) -> Recipe:
    """The recipe as it is for this teacher: without batch norms, on patches in their place.

    What would match the statistics of batch norms has nothing to match where there are none with
    running statistics; images are then made for the variety of their patches.
    """
    matched = next((term for term in recipe.sample_terms if term.loss == "bn_statistics"), None)
    if matched is None or count_taps(teacher, BN_TAPS):
        return recipe
    others = [term for term in recipe.sample_terms if term is not matched]
    there = {term.loss for term in others}
    terms = [replace(t, weight=matched.weight) for t in PATCH_TERMS if t.loss not in there]
    return replace(recipe, name=f"{recipe.name} on patches", sample_terms=(*terms, *others))


def nothing_to_match(recipe: Recipe, teacher: nn.Module) -> str | None:
    """What to say of a recipe that `fit_recipe` changed for this teacher; None of any other."""
    losses = {term.loss for term in recipe.sample_terms}
    if "patch_similarity" not in losses or count_taps(teacher, BN_TAPS):
        return None
    how = "attention's outputs" if count_taps(teacher, ATTENTION_TAPS) else "its features"
    return (
        "the first discriminator has nothing to match: the network has no batch norm with running "
        f"statistics; images are made for the variety of their patches in {how} instead"
    )
