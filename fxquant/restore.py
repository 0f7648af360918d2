"""From the folder of a finished run back to its student."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import OutputError
from fxquant.files import open_regular
from fxquant.graph.prepare import Prepared, prepare
from fxquant.graph.snap_biases import separate_biases
from fxquant.models.files import is_file
from fxquant.models.load import load_model
from fxquant.models.zoos import is_named, names_code
from fxquant.quantizer import Quantizer
from fxquant.run_folder import IMAGES, RECIPE, REPORT, STUDENT, model_hash
from fxquant.schema import table, text
from fxquant.settings import Settings, read_toml, settings_of
from fxquant.tensor_files import read_tensors
from fxquant.wording import shown

_FACTS = {"name": text, "source": text, "sha256": text, "arch": text}
_check_facts = table({}, None, **_FACTS)
# Of generated images, that many bytes are kept in a run's folder.
IMAGE_BYTES, FEWEST_IMAGES = 1 << 24, 4


@dataclass(frozen=True)
class Restored:
    """A finished run's student, calibrated and in eval mode, and what is known of the run.

    `images` are generated ones that the student was not trained on, (n, channels, height,
    width); `model` holds the facts about the model that was quantized: name, source, sha256.
    """

    student: nn.Module
    prepared: Prepared
    settings: Settings
    images: Tensor
    model: dict[str, Any]


def restore(folder: str | Path, model: nn.Module) -> Restored:
    """The student of a finished run, from its folder and the model that was quantized.

    Raises OutputError where the folder holds no finished run, or that of another model.
    """
    folder = Path(folder)
    settings, facts = _read(folder)
    if facts.get("sha256") and model_hash(model) != facts["sha256"]:
        raise OutputError(
            f"{folder} was made from another model: the weights differ",
            "give the one that was quantized with --model MODEL",
        )
    prepared = prepare(model, settings.applied_config, settings.input_shape)
    load_student(prepared.student, folder / STUDENT)
    return Restored(prepared.student, prepared, settings, _images_of(folder, settings), facts)


def find_model(
    folder: str | Path,
    *,
    source: str | None = None,
    arch: str | None = None,
    trust_classes: Sequence[str] = (),
) -> nn.Module:
    """The model that a finished run quantized: from where the run had it, or from `source`.

    A folder may come from anywhere, so that code which its recipe.toml names is not run, and a
    zoo's network not downloaded: who calls names it again. Raises OutputError where the model is
    not known, ModelLoadError where it can't be loaded.
    """
    folder = Path(folder)
    facts = _read(folder)[1]
    if not (source or facts.get("source")):
        raise OutputError(
            f"{folder} doesn't say where its model came from", "give it with --model MODEL"
        )
    if source is None:
        source = _told(folder, facts["source"], "--model")
        arch = arch or (facts.get("arch") and _told(folder, facts["arch"], "--arch"))
    return load_model(source, arch=arch, trust_classes=trust_classes).module


def _told(folder: Path, name: object, option: str) -> str:
    """A model or architecture as a folder names it, unless that is code, a download or no file.

    A zoo's network stands for its weights as a model, for none of them as an architecture.
    """
    name = str(name)
    acts = is_named(name) if option == "--model" else names_code(name)
    if acts and not is_file(Path(name)):
        what = "is not run" if names_code(name) else "is not downloaded"
        raise OutputError(
            f"{folder} says that its model is built by '{shown(name, 200)}', and what a folder "
            f"names {what} unasked",
            f"where you trust it, name it again: {option} {shown(name, 200)}",
        )
    if option == "--model" and os.path.lexists(name):
        _require_regular(folder, name)
    return name


def _require_regular(folder: Path, name: str) -> None:
    try:
        open_regular(name).close()
    except OSError as error:
        raise OutputError(
            f"'{shown(name, 200)}', the model of {folder}, can't be read: {error.strerror}",
            "give it with --model MODEL",
        ) from error


def load_student(student: nn.Module, path: Path) -> None:
    """Fill an untrained student with the tensors of a student.safetensors and enable it."""
    tensors = _load(path)
    separate_biases(student)
    state = {k: v for k, v in student.state_dict().items() if not k.endswith("_extra_state")}
    strange = sorted(state.keys() ^ tensors.keys()) or [
        name
        for name, value in state.items()
        if (value.shape, value.dtype) != (tensors[name].shape, tensors[name].dtype)
    ]
    if strange:
        raise OutputError(
            f"{path} is of another network: '{shown(strange[0], 200)}' doesn't fit",
            "it may have been written by another version of fxquant",
        )
    broken = sorted(name for name, value in tensors.items() if not value.isfinite().all())
    if broken:
        raise OutputError(f"{path} is damaged: '{broken[0]}' is not finite")
    student.load_state_dict(tensors, strict=False)
    for module in student.modules():
        if isinstance(module, Quantizer):
            module.enabled = True
    student.eval().requires_grad_(False)


def images_to_keep(images: Tensor) -> Tensor:
    """As many of the images, (n, ...), as a run's folder keeps, in half precision."""
    each = 2 * math.prod(images.shape[1:])
    count = max(FEWEST_IMAGES, IMAGE_BYTES // max(each, 1))
    return images[:count].to(torch.float16).contiguous()


def load_images(folder: Path) -> Tensor:
    """The images that a run left in its folder, float32, (n, channels, height, width)."""
    images = _load(folder / IMAGES).get("images")
    fits = images is not None and images.is_floating_point() and images.dim() >= 2
    if not fits or not images.numel() or not images.isfinite().all():
        raise OutputError(f"{folder / IMAGES} holds no images")
    return images.float()


def _images_of(folder: Path, settings: Settings) -> Tensor:
    images = load_images(folder)
    if images.shape[1:] != settings.input_shape:
        raise OutputError(
            f"the images in {folder / IMAGES} have the shape {tuple(images.shape[1:])}, and the "
            f"run's have {settings.input_shape}"
        )
    return images


def _read(folder: Path) -> tuple[Settings, dict[str, Any]]:
    needed = (RECIPE, STUDENT, REPORT, IMAGES)
    missing = [name for name in needed if not os.path.lexists(folder / name)]
    if missing:
        raise OutputError(
            f"{folder} holds no finished run: there is no {missing[0]}",
            "expected the output folder of fxquant quantize",
        )
    values = read_toml(folder / RECIPE)
    try:
        _check_facts(values.get("model", {}), "model")
    except ValueError as error:
        raise OutputError(f"{folder / RECIPE} can't be used: {error}") from error
    return settings_of(values, folder / RECIPE), values.get("model", {})


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)[0]
    except OSError as error:
        raise OutputError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise OutputError(f"{path} can't be read: {error}") from error
