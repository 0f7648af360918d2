"""Importing what the user names, and nothing else."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from fxquant.errors import ModelLoadError
from fxquant.wording import did_you_mean, reason_of


@contextmanager
def user_modules() -> Iterator[None]:
    """Let imports find modules in the working directory, as long as the user's own are imported.

    Not for longer: a file there that is called like a package must not be taken for it later.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


def import_module(name: str) -> ModuleType:
    """Import a module by its dotted name; raises ModelLoadError where that fails."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script may well exit when it is imported
        raise ModelLoadError(
            f"module '{name}' can't be imported: {reason_of(error)}",
            "modules are looked for in the installed packages and in the working directory",
        ) from error


def find_attribute(module: ModuleType, path: str) -> object:
    """The object at the dotted `path` in `module`; raises ModelLoadError where there is none."""
    value: object = module
    for part in path.split("."):
        if not hasattr(value, part):
            raise ModelLoadError(
                f"module '{module.__name__}' has no '{path}'", did_you_mean(part, dir(value))
            )
        value = getattr(value, part)
    return value


def import_object(name: str) -> object:
    """The object with the dotted name `name`, for example 'torch.nn.modules.linear.Linear'.

    The module is the longest part of the name that can be imported; what follows may be nested.
    Raises ModelLoadError where there is no such module or object.
    """
    if not is_dotted(name):
        raise ModelLoadError(
            f"'{name}' is no dotted name of a class", "write it like 'my.module.Net'"
        )
    parts = name.split(".")
    for split in range(len(parts) - 1, 1, -1):
        with suppress(_NoSuchModuleError):
            return find_attribute(_import_if_found(parts[:split]), ".".join(parts[split:]))
    return find_attribute(import_module(parts[0]), ".".join(parts[1:]))


def is_dotted(name: str) -> bool:
    """Whether `name` is identifiers with dots between them, at least two."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


class _NoSuchModuleError(Exception):
    pass


def _import_if_found(parts: list[str]) -> ModuleType:
    name = ".".join(parts)
    try:
        return import_module(name)
    except ModelLoadError as error:
        cause = error.__cause__
        # a module that is there and misses another one inside is the user's to hear about
        if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}."):
            raise _NoSuchModuleError from error
        raise
