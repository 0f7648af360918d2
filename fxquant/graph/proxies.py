"""Proxies that carry the value of an example run, and answer questions of structure from it.

How many entries a list has, which keys a dict, whether something is a tensor and of which rank:
that is the same for every input. Numbers, such as sizes, are not, and are never answered, except
of what depends on no input, to a guard, and in modules that the recorder traces with values.
"""

from __future__ import annotations

import copy
import dis
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from functools import wraps
from types import FrameType

import torch
from torch import Tensor
from torch.fx import Node, Proxy

# The real one: inside the recorder's blocks the builtin sees through proxies.
_isinstance = isinstance


class UnansweredError(Exception):
    """The code that is being traced asks for what only a run can tell; the message says what."""


class ExampleProxy(Proxy):
    """A traced value with its `example`; `constant` where that is the same for every input."""

    def __init__(self, node: Node, tracer, example, constant: bool = False):
        super().__init__(node, tracer)
        self.example = example
        self.constant = constant

    def __getattr__(self, k: str):
        if k.startswith("__") or not hasattr(self.example, k):
            raise AttributeError(f"'{type(self.example).__name__}' has no attribute '{k}'")
        if callable(getattr(self.example, k)):
            return lambda *args, **kwargs: self.tracer.create_proxy(
                "call_method", k, (self, *args), kwargs
            )
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __bool__(self) -> bool:
        if isinstance(self.example, torch.Size):
            return bool(self.example)
        return self.tracer.answer_bool(self, inspect.currentframe().f_back)

    def __int__(self) -> int:
        return int(self._number("turns {} into a Python number"))

    def __float__(self) -> float:
        return float(self._number("turns {} into a Python number"))

    def __index__(self) -> int:
        return operator.index(self._number("uses {} as a Python number"))

    def __len__(self) -> int:
        if isinstance(self.example, Tensor):
            return len(self._number("asks how many entries a tensor has"))
        return len(self.example)

    def __iter__(self) -> Iterator:
        if isinstance(self.example, torch.Size):
            return iter([self[i] for i in range(len(self.example))])
        if isinstance(self.example, Tensor):
            if not _unpacks(inspect.currentframe().f_back):
                self._number("loops over the entries of a tensor")
            return iter([self[i] for i in range(len(self.example))])
        raise TypeError(f"'{type(self.example).__name__}' object is not iterable")

    def __contains__(self, item) -> bool:
        return any(entry is item or entry == item for entry in self)

    def __setitem__(self, key, value) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __format__(self, spec: str) -> str:
        return format(self.example, spec) if spec else repr(self)

    def __deepcopy__(self, memo):
        return self

    def _number(self, question: str):
        return self.tracer.answer_number(self, question)


def _recorded(function: Callable) -> Callable:
    """A method that is recorded as a call of a function on the proxy."""

    @wraps(function)
    def method(self: ExampleProxy, *args):
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    return method


for _name, _function in {
    "__round__": round,
    "__divmod__": divmod,
    "__floor__": math.floor,
    "__ceil__": math.ceil,
    "__trunc__": math.trunc,
}.items():
    setattr(ExampleProxy, _name, _recorded(_function))


def _in_place(function: Callable) -> Callable:
    """`x += y` and its kin, recorded as `x = x + y` unless the recorder is told otherwise."""

    def method(self: ExampleProxy, other):
        if not isinstance(self.example, Tensor):
            return NotImplemented
        self.tracer.recording.augmented = True
        if not self.tracer.in_place:
            return NotImplemented
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(ExampleProxy, f"__{_name}__", _in_place(getattr(operator, _name)))


def _unpacks(frame: FrameType) -> bool:
    """Whether the frame is at an assignment like `a, b = x`, whose length the code itself says."""
    at = [i for i in dis.get_instructions(frame.f_code) if i.offset == frame.f_lasti]
    return bool(at) and at[0].opname == "UNPACK_SEQUENCE"


def map_values(function: Callable, value):
    """`function` of each value inside tuples, lists, dicts and slices, in the same structure."""
    if type(value) is ExampleProxy:
        return function(value)
    if _isinstance(value, torch.Size):
        value = tuple(value)
    if _isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_values(function, entry) for entry in value))
    if _isinstance(value, tuple | list):
        return type(value)([map_values(function, entry) for entry in value])
    if _isinstance(value, dict):
        return refilled(value, {key: map_values(function, v) for key, v in value.items()})
    if type(value) is slice:
        parts = (value.start, value.stop, value.step)
        return slice(*(map_values(function, part) for part in parts))
    return function(value)


def refilled(value: dict, entries: dict) -> dict:
    """A dict of the type of `value` with these entries under its keys."""
    if type(value) is dict:
        return entries
    copied = copy.copy(value)
    copied.update(entries)
    return copied


def proxies_in(*values) -> list[ExampleProxy]:
    """The proxies inside a structure of values."""
    found: list[ExampleProxy] = []
    map_values(lambda v: found.append(v) if type(v) is ExampleProxy else None, values)
    return found


def example_of(value):
    """The example of a proxy; any other value is its own."""
    return value.example if type(value) is ExampleProxy else value
