"""Whether a network out of a file is made of layers and plain values, and of nothing that acts.

A pickled module brings all its attributes along: hooks, a `forward` of its own, children whose
names torch.fx writes into the source code that it compiles. No network that was saved after
training needs any of that.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fxquant.errors import ModelLoadError
from fxquant.models.wording import first_few

# What torch.fx puts between quotes, in code and elsewhere.
_NAME = re.compile(r"[\w \-/:+@#]{1,200}")
_PARTS = {"_modules": nn.Module, "_parameters": nn.Parameter, "_buffers": Tensor}
# Deeper networks than any known stay below both; a file that repeats its layers does not.
MOST_DEPTH = 64
MOST_MODULES = 100_000
# What tensors that share their bytes may add up to beyond those bytes.
MOST_SHARED = 1 << 26

_HINT = "save model.state_dict() instead and name the architecture with --arch"


def check_structure(network: nn.Module, where: str, own_packages: tuple[str, ...]) -> None:
    """Raise ModelLoadError where a network out of the file `where` holds what could act.

    `own_packages` are the prefixes of modules whose layers may hold no network but their
    children; classes that the user trusts may.
    """
    try:
        for name, module in _walk(network):
            _check_module(name, module, own_packages)
        _check_size(network)
    except _OddError as error:
        raise ModelLoadError(f"'{where}' holds no plain network: {error}", _HINT) from error


class _OddError(Exception):
    pass


def _walk(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module once with its path, children first, and only once its children are modules."""
    reach: dict[int, tuple[int, int]] = {}  # modules below one, on all ways; the longest way down
    above: set[int] = set()
    stack = [("", network, False)]
    while stack:
        name, module, left = stack.pop()
        if left:
            above.discard(id(module))
            reach[id(module)] = _add_up([reach[id(m)] for m in _children(name, module).values()])
            yield name, module
        elif id(module) in above:
            raise _OddError(f"{_named(name)} contains itself")
        elif id(module) not in reach:
            above.add(id(module))
            stack.append((name, module, True))
            stack += [
                (f"{name}.{key}".strip("."), child, False)
                for key, child in _children(name, module).items()
            ]


def _add_up(below: list[tuple[int, int]]) -> tuple[int, int]:
    """Modules and depth of what has these children; raises where no code could walk through it."""
    modules = 1 + sum(count for count, _ in below)
    depth = 1 + max((depth for _, depth in below), default=0)
    if modules > MOST_MODULES or depth > MOST_DEPTH:
        raise _OddError(
            f"it has more than {MOST_MODULES:,} modules, counted as often as they occur, or more "
            f"than {MOST_DEPTH} inside each other"
        )
    return modules, depth


def _children(name: str, module: nn.Module) -> dict[str, nn.Module]:
    children = _part(name, module, "_modules")
    return {key: child for key, child in children.items() if child is not None}


def _part(name: str, module: nn.Module, key: str) -> Mapping[str, object]:
    """One of a module's tables of children, parameters or buffers."""
    table, kind = vars(module).get(key), _PARTS[key]
    if not isinstance(table, Mapping):
        raise _OddError(f"{_named(name)} has no {key}")
    for child, value in table.items():
        if not isinstance(child, str) or not _NAME.fullmatch(child):
            raise _OddError(f"a part of {_named(name)} is called {first_few([ascii(child)])}")
        if value is not None and not isinstance(value, kind):
            raise _OddError(f"'{child}' of {_named(name)} is a {type(value).__qualname__}")
    return table


def _check_module(name: str, module: nn.Module, own_packages: tuple[str, ...]) -> None:
    kind = type(module)
    for table in ("_parameters", "_buffers"):
        for key, tensor in _part(name, module, table).items():
            if tensor is not None and tensor._backward_hooks:
                raise _OddError(f"'{key}' of {_named(name)} has hooks, which are run")
    for key, value in vars(module).items():
        if not isinstance(key, str):
            raise _OddError(f"{_named(name)} has an attribute called {first_few([ascii(key)])}")
        if key in _PARTS:
            continue
        if "_hooks" in key and value:
            raise _OddError(f"{_named(name)} has {key}, which are run with it")
        if _overrides(kind, key) and value is not None:
            raise _OddError(f"{_named(name)} replaces {key} of its class {kind.__qualname__}")
        if kind.__module__.startswith(own_packages) and _holds_module(value):
            raise _OddError(f"{_named(name)} holds a module as '{key}' that is no child of it")


def _overrides(kind: type, key: str) -> bool:
    """Whether an attribute of an instance stands in for code of its class."""
    if key.startswith("__") or key == "_compiled_call_impl":
        return True
    there = inspect.getattr_static(kind, key, None)
    return callable(there) or hasattr(there, "__get__")


def _holds_module(value: object) -> bool:
    """Whether a module is in the value, or in containers and plain objects inside it."""
    seen: set[int] = set()
    queue = [value]
    while queue:
        value = queue.pop()
        if isinstance(value, nn.Module):
            return True
        if id(value) in seen or isinstance(value, (str, bytes, type, Tensor)):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            queue += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            queue += value
        elif hasattr(value, "__dict__"):
            queue.append(vars(value))
    return False


def _check_size(network: nn.Module) -> None:
    """A tensor of any size can be made of one number, by a stride of 0, and many of one storage."""
    tensors = [t for t in (*network.parameters(), *network.buffers()) if t.device.type != "meta"]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    claimed = sum(t.numel() * t.element_size() for t in tensors)
    if claimed > sum(storages.values()) + MOST_SHARED:
        raise _OddError(
            f"its tensors would take {claimed:,} bytes and are made of {sum(storages.values()):,}"
        )


def _named(name: str) -> str:
    return f"'{name}'" if name else "the network itself"
