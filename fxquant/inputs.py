"""One input or several, and outputs of any structure: their shapes, batches and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fxquant.errors import SettingError

Shape = tuple[int, ...]
# What a model of one input takes, or of several.
Shapes = Shape | tuple[Shape, ...]
Inputs = Tensor | Sequence[Tensor]


def input_shapes(shape: Shapes) -> tuple[Shape, ...]:
    """Shape of each input, without the batch, from that of the only one or a tuple of them."""
    shape = tuple(shape)
    if shape and isinstance(shape[0], tuple | list):
        return tuple(tuple(each) for each in shape)
    return (shape,)


def require_one_input(shape: Shapes) -> None:
    """Raise SettingError where there are several inputs, with what works for those."""
    shapes = input_shapes(shape)
    if len(shapes) > 1:
        listed = " and ".join(",".join(map(str, each)) for each in shapes)
        raise SettingError(
            f"the model takes {len(shapes)} inputs ({listed}), and data-free recipes make images "
            "for one",
            "calibrate on inputs of your own through the library: fxquant.prepare, then "
            "fxquant.calibrate(prepared.student, (first, second)), then fxquant.export_onnx",
        )


def as_inputs(images: Inputs) -> tuple[Tensor, ...]:
    """The tensors that a call of the model gets: one of several inputs each, or the only one.

    Raises SettingError where they hold different numbers of images.
    """
    inputs = (images,) if isinstance(images, Tensor) else tuple(images)
    counts = [len(x) for x in inputs]
    if len(set(counts)) != 1:
        raise SettingError(f"the inputs hold {counts} images; expected as many in each")
    return inputs


def split(images: Inputs, batch: int) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of one call of the model after another, of `batch` images each."""
    return zip(*(x.split(batch) for x in as_inputs(images)), strict=True)


def zeros(shape: Shapes, batch: int) -> tuple[Tensor, ...]:
    """Inputs of these shapes that hold zeros."""
    return tuple(torch.zeros(batch, *each) for each in input_shapes(shape))


def flatten(output: object) -> tuple[Tensor, ...]:
    """The tensors of an output that may be nested in tuples, lists and dicts, in order."""
    if isinstance(output, Tensor):
        return (output,)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if not isinstance(output, tuple | list):
        return ()
    return tuple(tensor for value in output for tensor in flatten(value))
