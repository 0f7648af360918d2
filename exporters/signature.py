"""What a file calls its inputs and outputs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn


def input_names(model: nn.Module, count: int) -> list[str]:
    """`input` for the only input; of several, those of the arguments of the model's forward."""
    if count == 1:
        return ["input"]
    return list(inspect.signature(model.forward).parameters)[:count]


def output_names(output: object, taken: Collection[str] = ()) -> list[str]:
    """A name for each tensor of an output, in order, and none of `taken`.

    `output` for a tensor by itself, `output_0`, ... for the entries of a tuple or list, the key for
    those of a dict; inside one another they are joined by `_`.
    """
    paths = list(_paths(output))
    if len(paths) == 1 and not any(isinstance(part, str) for part in paths[0]):
        paths = [()]
    names: list[str] = []
    for path in paths:
        parts = path if path and isinstance(path[0], str) else ("output", *path)
        names.append(_unused("_".join(map(str, parts)), {*names, *taken}))
    return names


def _paths(value: object) -> Iterator[tuple[str | int, ...]]:
    """Keys and indices that lead to each tensor."""
    if isinstance(value, Tensor):
        yield ()
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from ((str(key), *rest) for rest in _paths(entry))
    elif isinstance(value, tuple | list):
        for index, entry in enumerate(value):
            yield from ((index, *rest) for rest in _paths(entry))


def _unused(name: str, taken: Collection[str]) -> str:
    number, unused = 0, name
    while unused in taken:
        number += 1
        unused = f"{name}_{number}"
    return unused
