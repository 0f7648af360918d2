"""Whether a recipe can work on a model, and whether what came out is sound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.datafree.recipe import Recipe
from fxquant.errors import DivergenceError, SettingError
from fxquant.graph.insert_taps import BN_TAPS, count_taps


def check_recipe(recipe: Recipe, teacher: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raise SettingError where the recipe can't work on this teacher, with what works instead."""
    if recipe.sampler.kind == "generator" and len(image_shape) != 3:
        raise SettingError(
            f"recipe '{recipe.name}' generates images (channels, height, width), and the model's "
            f"input has {len(image_shape)} axes",
            "a recipe whose sampler is 'images', such as zeroq, takes any shape",
        )
    matches = any(term.loss == "bn_statistics" for term in recipe.sample_terms)
    if matches and not count_taps(teacher, BN_TAPS):
        raise SettingError(
            f"recipe '{recipe.name}' matches batch norm statistics, and the model has no batch "
            "norm with running statistics: there is nothing to match",
            "calibrate on images of your own through the library: fxquant.prepare, then "
            "fxquant.calibrate(prepared.student, images), then fxquant.export_onnx",
        )


def require_finite(student: nn.Module) -> None:
    """Raise DivergenceError that names the first parameter that is not finite."""
    for name, value in student.state_dict().items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise DivergenceError(f"training diverged: {name} of the student is not finite")
