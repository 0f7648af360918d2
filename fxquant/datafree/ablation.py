"""What a method is worth without one of its parts: the switches of the paper's Tables 3 to 5."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fxquant.datafree.recipe import Recipe, Term
from fxquant.errors import SettingError

# Both discriminators' losses by the paper's name, and the weighting that the paper gives each.
LOSSES = {"l_bn": "bn_statistics", "l_adv": "features"}
MATRICES = {"x1": "sample", "x2": "layer"}
PARTS = (*LOSSES, *MATRICES)
_OTHER = {"sample": "layer", "layer": "sample", "none": "none"}


def ablate(recipe: Recipe, *, without: Collection[str] = (), swap: Collection[str] = ()) -> Recipe:
    """The recipe without some of its parts, under a name that says so.

    `without`: `l_bn` and `l_adv` leave a loss of the sampler out (Li et al., 2022, Table 3), and
    with the last loss that needs no student goes whatever trains on such losses alone: warm-up
    and polish. `x1` and `x2` leave a weighting out, of sampler and student (Table 4). `swap`:
    `l_bn` and `l_adv` weigh a loss of the sampler as the paper weighs the other one (Table 5).
    Raises SettingError for what the recipe hasn't got.
    """
    _check(recipe, without, PARTS, "--without")
    _check(recipe, swap, tuple(LOSSES), "--swap")
    removed = {LOSSES[part] for part in without if part in LOSSES}
    plain = {MATRICES[part] for part in without if part in MATRICES}
    swapped = {LOSSES[part] for part in swap}
    terms = [_unweighted(term, plain) for term in recipe.sample_terms if term.loss not in removed]
    terms = [_swapped(term) if term.loss in swapped else term for term in terms]
    student = tuple(_unweighted(term, plain) for term in recipe.student_terms)
    schedule, polish = recipe.schedule, recipe.polish
    if all(term.needs_student for term in terms):
        schedule, polish = replace(schedule, warmup=0), replace(polish, steps=0)
    return replace(
        recipe,
        name=_name(recipe.name, without, swap),
        sample_terms=tuple(terms),
        student_terms=student,
        schedule=schedule,
        polish=polish,
    )


def _check(recipe: Recipe, parts: Collection[str], known: tuple[str, ...], flag: str) -> None:
    for part in parts:
        if part not in known:
            raise SettingError(f"unknown part '{part}' of {flag}", f"one of {', '.join(known)}")
        if part not in _parts_of(recipe):
            raise SettingError(
                f"recipe '{recipe.name}' has no {part}",
                f"it has {', '.join(_parts_of(recipe)) or 'nothing that can be switched'}",
            )


def _parts_of(recipe: Recipe) -> list[str]:
    """Names of the parts that can be left out of a recipe."""
    losses = {term.loss for term in recipe.sample_terms}
    weightings = {term.weighting for term in recipe.sample_terms + recipe.student_terms}
    found = [part for part, loss in LOSSES.items() if loss in losses]
    return found + [part for part, weighting in MATRICES.items() if weighting in weightings]


def _unweighted(term: Term, weightings: set[str]) -> Term:
    return replace(term, weighting="none") if term.weighting in weightings else term


def _swapped(term: Term) -> Term:
    return replace(term, weighting=_OTHER[term.weighting])


def _name(name: str, without: Collection[str], swap: Collection[str]) -> str:
    """`ddaq without l_bn, x2 with l_adv swapped`: what reports show."""
    words = [name]
    if without:
        words += ["without", ", ".join(part for part in PARTS if part in without)]
    if swap:
        words += ["with", ", ".join(part for part in LOSSES if part in swap), "swapped"]
    return " ".join(words)
