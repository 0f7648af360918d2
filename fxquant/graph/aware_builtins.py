"""Builtins and torch functions that take no part in `__torch_function__`, made to know proxies."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, wraps
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from fxquant.graph.proxies import ExampleProxy, proxies_in

# Functions whose sizes may be lists of proxies, or that have no tensor among their arguments.
_TORCH = (
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randn"),
    *("tensor", "zeros", "reshape", "roll", "tile", "broadcast_to"),
)
_FUNCTIONAL = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
# Methods of tensors that are no proxies themselves, with proxies among their arguments.
_METHODS = ("to", "expand", "repeat", "view", "reshape", "__getitem__")
_isinstance, _len = isinstance, len


@contextmanager
def proxy_aware_builtins(module: nn.Module) -> Iterator[None]:
    """Inside the block, what `module`'s code calls by these names knows proxies.

    `isinstance` looks at the example. `len` of a tensor (as its first size), `max`, `min`, `int`
    and `float` of sizes, and torch's functions of sizes are recorded, so that what they give is
    right at every size.
    """
    with ExitStack() as stack:
        replaced: dict[str, Callable] = {"isinstance": _aware_isinstance, "len": _aware_len}
        replaced |= {f.__name__: _recording_numbers(f) for f in (max, min)}
        stack.enter_context(_replaced(vars(builtins), replaced))
        for place, names in ((torch, _TORCH), (F, _FUNCTIONAL)):
            functions = {name: _recording(getattr(place, name)) for name in names}
            stack.enter_context(_replaced(vars(place), functions))
        stack.enter_context(_recorded_methods())
        # As builtins these would break torch's own code, which compares types by identity.
        for file in _files_of(module):
            stack.enter_context(_replaced(vars(sys.modules[file]), {"int": _Int, "float": _Float}))
        yield


@contextmanager
def _replaced(names: dict, values: dict) -> Iterator[None]:
    before = {name: names[name] for name in values if name in names}
    names.update(values)
    try:
        yield
    finally:
        names.update(before)
        for name in values.keys() - before.keys():
            del names[name]


@contextmanager
def _recorded_methods() -> Iterator[None]:
    own = {name: vars(Tensor)[name] for name in _METHODS if name in vars(Tensor)}
    for name in _METHODS:
        setattr(Tensor, name, _recording_method(name, getattr(Tensor, name)))
    try:
        yield
    finally:
        for name in _METHODS:
            delattr(Tensor, name)
        for name, method in own.items():
            setattr(Tensor, name, method)


def _recording_method(name: str, method: Callable) -> Callable:
    @wraps(method)
    def recorded(self: Tensor, *args, **kwargs):
        proxies = proxies_in(args, kwargs)
        if not proxies or type(self) is ExampleProxy:
            return method(self, *args, **kwargs)
        return proxies[0].tracer.create_proxy("call_method", name, (self, *args), kwargs)

    return recorded


def _files_of(module: nn.Module) -> list[str]:
    """Names of the files that the module's classes, and functions they use, come from."""
    modules = list(module.modules())
    held = {_file_of(value) for m in modules for value in vars(m).values()}
    classes = {cls.__module__ for m in modules for cls in type(m).__mro__}
    return _with_named(frozenset(held | classes))


@lru_cache(maxsize=64)
def _with_named(files: frozenset[str]) -> list[str]:
    """These files and those that their names come from, of the same packages."""
    packages = {file.split(".")[0] for file in files} - {"torch", "", *sys.stdlib_module_names}
    own = {f for f in files if f.split(".")[0] in packages and f in sys.modules}
    named = {_file_of(value) for file in own for value in list(vars(sys.modules[file]).values())}
    wanted = own | {f for f in named if f.split(".")[0] in packages and f in sys.modules}
    redefine = {f for f in wanted if {"int", "float"} & set(vars(sys.modules[f]))}
    return sorted(wanted - redefine)


def _file_of(value) -> str:
    return value.__module__ or "" if _isinstance(value, FunctionType | type) else ""


def real_function(function: Callable) -> Callable:
    """What a function that knows proxies stands for, where `fx.wrap` has picked it up."""
    known = {_aware_len: _len, _aware_isinstance: _isinstance}
    is_known = _isinstance(function, FunctionType) and function in known
    return known[function] if is_known else getattr(function, "proxied", function)


def _aware_isinstance(value, classes) -> bool:
    if type(value) is not ExampleProxy:
        return _isinstance(value, classes)
    named = classes if _isinstance(classes, tuple) else (classes,)
    return any(c is ExampleProxy or c is Proxy for c in named) or _isinstance(
        value.example, classes
    )


def _aware_len(value) -> int:
    if type(value) is ExampleProxy and _isinstance(value.example, Tensor):
        return value.size(0)  # which torch.export can leave free; a len must be a number
    return _len(value)


def _recording(function: Callable) -> Callable:
    @wraps(function)
    def recorded(*args, **kwargs):
        proxies = proxies_in(args, kwargs)
        if not proxies:
            return function(*args, **kwargs)
        return proxies[0].tracer.create_proxy("call_function", function, args, kwargs)

    recorded.proxied = function
    return recorded


def _recording_numbers(function: Callable) -> Callable:
    recorded = _recording(function)

    @wraps(recorded)
    def of_numbers(*args, **kwargs):
        numbers = all(_isinstance(p.example, int | float) for p in proxies_in(args))
        return recorded(*args, **kwargs) if numbers and not kwargs else function(*args, **kwargs)

    return of_numbers


class _NumberType(type):
    """Type of names that stand for a number type `of`: a conversion that is recorded."""

    of: type

    def __call__(cls, *args, **kwargs):
        return _recording_numbers(cls.of)(*args, **kwargs)

    def __instancecheck__(cls, instance) -> bool:
        return _isinstance(instance, cls.of)

    def __subclasscheck__(cls, subclass) -> bool:
        return issubclass(subclass, cls.of)

    def __eq__(cls, other) -> bool:
        return other is cls or other is cls.of

    def __hash__(cls) -> int:
        return hash(cls.of)

    def __or__(cls, other):
        return cls.of | other

    def __ror__(cls, other):
        return other | cls.of


class _Int(metaclass=_NumberType):
    of = int


class _Float(metaclass=_NumberType):
    of = float
