"""Whether two networks are made of the same classes, attributes and tensors, shared alike."""

from __future__ import annotations

import functools
import weakref
from enum import Enum

import torch
from torch import Tensor


def difference(left: object, right: object, path: str = "it") -> str | None:
    """Where two objects differ first, None where they are the same through and through."""
    return _difference(left, right, path, {})


def _difference(left: object, right: object, path: str, seen: dict[int, object]) -> str | None:
    if isinstance(left, dict) and isinstance(right, dict):  # torch's tables are of either kind
        if list(left) != list(right):
            return f"{path} has the keys {list(left)}, not {list(right)}"
        pairs = [(left[key], right[key], f"{path}.{key}") for key in left]
        return _first(pairs, seen)
    if type(left) is not type(right):
        return f"{path} is a {type(left).__name__}, not a {type(right).__name__}"
    if id(left) in seen and isinstance(left, Tensor | torch.nn.Module):
        return None if seen[id(left)] is right else f"{path} is shared with something else"
    seen[id(left)] = right
    if isinstance(left, Tensor):
        return None if _same_tensor(left, right) else f"{path} is another tensor"
    if isinstance(left, list | tuple):
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(left, right, strict=False))]
        return f"{path} is of another length" if len(left) != len(right) else _first(pairs, seen)
    if isinstance(left, functools.partial):
        return None if (left.func, left.keywords) == (right.func, right.keywords) else path
    if isinstance(left, weakref.ref):
        return _difference(left(), right(), path, seen)
    if isinstance(left, Enum):
        return None if left is right else f"{path} is {left!r:.80}, not {right!r:.80}"
    if type(left).__module__ != "builtins" and hasattr(left, "__dict__"):
        names = sorted(vars(left))
        if names != sorted(vars(right)):
            return f"{path} has {sorted(set(names) ^ set(vars(right)))} on one side"
        return _first([(vars(left)[n], vars(right)[n], f"{path}.{n}") for n in names], seen)
    return None if left == right else f"{path} is {left!r:.80}, not {right!r:.80}"


def _first(pairs: list[tuple[object, object, str]], seen: dict[int, object]) -> str | None:
    found = (_difference(left, right, path, seen) for left, right, path in pairs)
    return next((words for words in found if words), None)


def _same_tensor(left: Tensor, right: Tensor) -> bool:
    looks = [
        (t.dtype, t.shape, t.stride(), t.storage_offset(), t.requires_grad) for t in (left, right)
    ]
    return looks[0] == looks[1] and not vars(right) and torch.equal(left, right)
