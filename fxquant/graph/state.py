"""Modules put back as they were after code ran in them that may have changed them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_CONTAINERS = (dict, OrderedDict, list, set)


@contextmanager
def kept_as_is(module: nn.Module) -> Iterator[None]:
    """After the block, all modules inside have the attributes that they had before it.

    Also what their lists, dicts and sets hold, but not the numbers in their tensors.
    """
    before = [(vars(m), dict(vars(m)), _contents(m)) for m in module.modules()]
    try:
        yield
    finally:
        for attributes, values, contents in before:
            attributes.clear()
            attributes.update(values)
            for name, content in contents.items():
                _refill(values[name], content)


def _contents(module: nn.Module) -> dict:
    return {k: copy.copy(v) for k, v in vars(module).items() if type(v) in _CONTAINERS}


def _refill(container, content) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
