"""Whether a recipe can work on a model, and whether what came out is sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fxquant.datafree.objective import flatten
from fxquant.datafree.recipe import HELD_BACK, Recipe
from fxquant.errors import DivergenceError, ModelLoadError, SettingError
from fxquant.graph.insert_taps import (
    ATTENTION_TAPS,
    BN_TAPS,
    FEATURE_TAPS,
    count_taps,
    record,
    tap_names,
)
from fxquant.inputs import require_one_input
from fxquant.memory import memory_bytes
from fxquant.quantizer import Quantizer

# The square of a larger number is none in float32, and statistics are matched by their squares.
LARGEST_STATISTIC = 1e18


def check_recipe(recipe: Recipe, teacher: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raise SettingError where the recipe can't work on this teacher, with what works instead.

    Raises ModelLoadError where nothing can: the teacher holds or computes what is no number.
    """
    require_one_input(image_shape)
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
            "take fxquant.datafree.recipes.fit_recipe(recipe, teacher), as fxquant.train does",
        )
    compares = any(term.loss == "patch_similarity" for term in recipe.sample_terms)
    if compares and not _has_patches(teacher, image_shape):
        raise SettingError(
            f"recipe '{recipe.name}' compares patches of images, and the model shows none: it has "
            "no batch norm, no attention and no features with positions",
            "calibrate on images of your own through the library: fxquant.prepare, then "
            "fxquant.calibrate(prepared.student, images), then fxquant.export_onnx",
        )
    _check_memory(recipe, image_shape)
    _check_numbers(teacher)
    _check_statistics(teacher)
    _check_values(teacher, image_shape)


@torch.no_grad()
def _has_patches(teacher: nn.Module, image_shape: tuple[int, ...]) -> bool:
    """Whether there is attention, or a feature tap's value has more than one position."""
    if count_taps(teacher, ATTENTION_TAPS):
        return True
    device = next(teacher.parameters()).device
    with record(teacher, FEATURE_TAPS) as features:
        teacher(torch.zeros(2, *image_shape, device=device))
    return any(x.dim() > 2 and x[0].numel() > x.shape[1] for x in features.values())


def _check_memory(recipe: Recipe, image_shape: tuple[int, ...]) -> None:
    """Raise SettingError where images and generator alone would fill the memory there is."""
    there = memory_bytes()
    needed = 4 * (_image_values(recipe, image_shape) + _generator_values(recipe, image_shape))
    if there is not None and needed > there:
        raise SettingError(
            f"recipe '{recipe.name}' needs {needed / 1e9:,.0f} GB for its images and its "
            f"generator, and there are {there / 1e9:,.0f} GB of memory",
            "smaller numbers in [recipe.schedule], [recipe.polish] and [recipe.sampler] need less",
        )


def _image_values(recipe: Recipe, image_shape: tuple[int, ...]) -> int:
    """Numbers in the images that are kept, and in one batch with its gradient."""
    schedule, polish = recipe.schedule, recipe.polish
    kept = schedule.calibration_images + HELD_BACK
    if recipe.sampler.kind == "images":
        kept = recipe.sampler.batches * schedule.batch
    elif polish.steps:
        kept = polish.batches * polish.batch
    at_once = max(schedule.batch, polish.batch if polish.steps else 0, recipe.importance.images)
    return math.prod(image_shape) * (kept + schedule.replay + 2 * at_once)


def _generator_values(recipe: Recipe, image_shape: tuple[int, ...]) -> int:
    """Numbers in the generator with its gradients and Adam's two averages, and in one layer's."""
    if recipe.sampler.kind != "generator":
        return 0
    _, height, width = image_shape
    sampler, places = recipe.sampler, -(-height // 4) * -(-width // 4)
    weights = sampler.width * (sampler.latent * places + 9 * sampler.width)
    return 4 * weights + 16 * places * sampler.width * recipe.schedule.batch


def _check_numbers(teacher: nn.Module) -> None:
    for name, value in teacher.named_parameters():
        broken = int((~torch.isfinite(value)).sum())
        if broken:
            raise ModelLoadError(
                f"'{name}' of the model holds values that are not finite: {broken} of "
                f"{value.numel()}",
                "its training diverged, or its weights don't fit float32",
            )


def _check_statistics(teacher: nn.Module) -> None:
    for name in tap_names(teacher, BN_TAPS):
        norm = teacher.get_submodule(name)
        mean, variance = norm.running_mean.float(), norm.running_var.float()
        if not bool((variance >= 0).all()):
            raise ModelLoadError(
                f"batch norm '{name}' has a running variance of {float(variance.min()):.3g}; "
                "a variance is at least 0",
                "the file is damaged, or the network was never trained",
            )
        largest = max(float(mean.abs().max()), float(variance.max().sqrt()))
        if not largest < LARGEST_STATISTIC:
            raise ModelLoadError(
                f"batch norm '{name}' has running statistics of up to {largest:.3g}, which can't "
                "be matched in float32",
                "its training diverged: such a network can't be quantized",
            )


@torch.no_grad()
def _check_values(teacher: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raise ModelLoadError where the teacher gives no numbers for noise: it says where first."""
    noise = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    device = next(teacher.parameters()).device
    with record(teacher, BN_TAPS) as inputs:
        outputs = flatten(teacher(noise.to(device)))
    values = [(f"the input of batch norm '{name}'", value) for name, value in inputs.items()]
    values += [("its output", output) for output in outputs]
    broken = next((where for where, value in values if not _is_finite(value)), None)
    if broken:
        raise ModelLoadError(
            f"the model overflows on noise: {broken} is not finite",
            "its weights or statistics are too large for float32, or its training diverged",
        )


def find_unsound(parts: Mapping[str, nn.Module | Tensor | None]) -> str | None:
    """Words for the first tensor of any part that is not finite, or scale that has collapsed."""
    for what, part in parts.items():
        for name, value in _tensors(part):
            if not _is_finite(value):
                return f"{name or 'the images'} of the {what} is not finite"
        for name, scale in _scales(part):
            normal = (scale >= torch.finfo(torch.float32).tiny) & torch.isfinite(scale)
            if not bool(normal.all()):
                value = float(scale[~normal].flatten()[0])
                return f"the scale of '{name}' of the {what} has gone to {value:.3g}"
    return None


def require_sound(student: nn.Module) -> None:
    """Raise DivergenceError that names the first parameter or scale that is not sound."""
    unsound = find_unsound({"student": student})
    if unsound:
        raise DivergenceError(
            f"training diverged: {unsound}",
            "lower the learning rates (schedule.student_lr, schedule.scale_lr) in recipe.toml",
        )


def _tensors(part: nn.Module | Tensor | None) -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, Tensor):
        yield "", part
    elif part is not None:
        state = part.state_dict().items()
        yield from ((name, value) for name, value in state if isinstance(value, Tensor))


def _scales(part: nn.Module | Tensor | None) -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, nn.Module):
        quantizers = (item for item in part.named_modules() if isinstance(item[1], Quantizer))
        yield from ((name, quantizer.scale.detach()) for name, quantizer in quantizers)


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
