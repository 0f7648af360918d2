"""Shapes of a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence

# One shape, (channels, height, width), or a tuple of shapes where there are several inputs.
InputShape = tuple[int, ...] | tuple[tuple[int, ...], ...]


def input_shapes(input_shape: Sequence) -> tuple[tuple[int, ...], ...]:
    """The shape of each input, without the batch: of one shape, or of a sequence of shapes."""
    several = bool(input_shape) and not isinstance(input_shape[0], int)
    return tuple(map(tuple, input_shape)) if several else (tuple(input_shape),)
