"""Records what a module's forward does as a torch.fx graph, while it runs on an example."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn
from torch.fx import Node, Tracer

from fxquant.graph.aware_builtins import proxy_aware_builtins, real_function
from fxquant.graph.failures import Failure, failure, source_line
from fxquant.graph.guards import is_guard
from fxquant.graph.leaves import is_leaf
from fxquant.graph.names import NameRefusedError, require_plain_name
from fxquant.graph.proxies import (
    ExampleProxy,
    UnansweredError,
    example_of,
    map_values,
    proxies_in,
    refilled,
)
from fxquant.graph.recording import CalledTwiceError, Recording, Way
from fxquant.graph.state import kept_as_is
from fxquant.graph.structure import (
    describe,
    hides_weights,
    is_models_own,
    is_structure,
    tidy,
    with_node,
)

_LEN = len  # the real one, while the builtin knows proxies
# What returns parts of its tensor: taking one of them brings in nothing from outside the graph.
_SPLITS = {
    *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "hsplit", "vsplit"),
    *("dsplit", "unsafe_chunk", "unsafe_split"),
}


class Recorder(Tracer):
    """torch.fx's tracer, run on example arguments, that makes leaves of what it can't record.

    Leaves are torch.nn layers, classes that inherit their forward from one, torchvision's
    operators, and those of `leaves`, classes or names. Modules named in `values` may use numbers
    of the example.
    """

    def __init__(
        self,
        leaves: Collection[type[nn.Module]] = (),
        forced: dict[str, Failure] | None = None,
        values: Collection[str] = (),
        way: Way | None = None,
    ):
        super().__init__()
        way = way or Way()
        self.recording = Recording(failures=dict(forced or {}))
        self.in_place = way.in_place
        self._leaves = tuple(leaves)
        self._values = frozenset(values)
        self._bind_numbers, self._plain_buffers = way.bind_numbers, way.plain_buffers
        self._is_running = False
        self._entered: set[str] = set()
        self._tensors: dict[str, ExampleProxy] = {}

    def record(self, module: nn.Module, args: tuple, kwargs: dict) -> Recording:
        """Record `module` called with these arguments, which the run may change."""
        given = inspect.signature(module.forward).bind(*args, **kwargs)
        self._arguments = dict(given.arguments)
        given.apply_defaults()
        names = given.arguments.keys() - self._arguments.keys()
        self.recording.bound = {name: given.arguments[name] for name in names}
        self._names = {id(t): name for name, t in _tensors_of(module)}
        before = set(vars(module))
        with torch.no_grad(), kept_as_is(module), proxy_aware_builtins(module):
            self.recording.graph = self.trace(module)
            names = {name: tensor for tensor, name in self.tensor_attrs.items()}
            made = set(names) & set(vars(module)) - before
            self.recording.constants = {name: names[name] for name in made}
        tidy(self.recording.graph)
        return self.recording

    # What torch.fx asks for while it traces.

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.recording.failures or is_leaf(m, self._leaves)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        if self._is_running:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        try:
            result = self._enter(m, forward, args, kwargs)
        except (CalledTwiceError, NameRefusedError):
            raise
        except Exception as error:
            reason = failure(error)
            if name in self._entered:
                raise CalledTwiceError(name, reason) from error
            self.recording.failures[name] = reason
            return super().call_module(m, forward, args, kwargs)
        self._entered.add(name)
        return result

    def _enter(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        """Record what is inside a module, its buffers as values of the graph or as they are."""
        before = self._plain_buffers
        for self._plain_buffers in (before, True):
            last, depth = self._last_node(), len(self.module_stack)
            entered, noted = set(self._entered), self.recording.noted()
            try:
                return super().call_module(m, forward, args, kwargs)
            except Exception as error:
                while len(self.module_stack) > depth:
                    self.module_stack.popitem()
                self._erase_after(last)
                self._entered = entered
                self.recording.take_back(noted)
                is_last = self._plain_buffers or not m._buffers
                if is_last or isinstance(error, CalledTwiceError | NameRefusedError):
                    raise
            finally:
                self._plain_buffers = before

    def getattr(self, attr: str, attr_val, parameter_proxy_cache: dict):
        if self._is_running or id(attr_val) not in self._names:
            return attr_val
        if self._plain_buffers and not isinstance(attr_val, nn.Parameter):
            return attr_val
        name = self._names[id(attr_val)]
        if name not in self._tensors:
            node = self.create_node("get_attr", name, (), {})
            self._tensors[name] = self._wrap(node, attr_val, constant=True)
        return self._tensors[name]

    def create_args_for_root(self, root_fn, is_module: bool, concrete_args=None):
        """Placeholders for the arguments of the example; a closure that calls forward on them."""
        signature = inspect.signature(self.root.forward)
        nodes = {p.name: self._placeholder(p) for p in signature.parameters.values()}
        values = {
            name: self._wrap_argument(name, node, self._arguments[name])
            for name, node in nodes.items()
            if name in self._arguments
        }

        def call(*_):
            bound = inspect.BoundArguments(signature, values)
            return self.root.forward(*bound.args, **bound.kwargs)

        return call, []

    def create_arg(self, a):
        if type(a) is ExampleProxy:
            return a.node
        arg = super().create_arg(a)
        if isinstance(a, Tensor):
            _describe_tensor(arg, a)
        return arg

    def create_proxy(
        self, kind, target, args, kwargs, name=None, type_expr=None, proxy_factory_fn=None
    ):
        """Record an op, run it on the examples, and return what it gives as proxies."""
        target = real_function(target)
        if target is torch._assert:
            self.recording.passed.add(source_line(inspect.currentframe()))
            return None
        is_own = is_models_own(kind, target)
        if is_own and hides_weights(args, kwargs):
            return target(*args, **kwargs)
        result = self._run(kind, target, args, kwargs)
        if not is_own and is_structure(target, args, kwargs, result):
            return result
        constant = kind != "call_module" and all(p.constant for p in proxies_in(args, kwargs))
        constant = constant or (target is _LEN and type(args[0]) is not ExampleProxy)
        node = self.create_node(
            kind, target, self.create_arg(args), self.create_arg(kwargs), name, type_expr
        )
        proxies = self._wrap(node, result, constant)
        return with_node(proxies, node) if is_own else proxies

    # What proxies ask for.

    def answer_bool(self, proxy: ExampleProxy, frame: FrameType) -> bool:
        """The truth of a traced value, where a guard asks, or where it is the same for all."""
        if not proxy.constant and is_guard(frame):
            self.recording.passed.add(source_line(frame))
            return bool(proxy.example)
        return bool(self.answer_number(proxy, "branches on {}"))

    def answer_number(self, proxy: ExampleProxy, question: str):
        """The example of a proxy as a number; raises UnansweredError where a run decides."""
        if proxy.constant:
            return proxy.example
        if not self._may_use_values():
            raise UnansweredError(question.format(describe(proxy)))
        self.recording.values.add(source_line(inspect.currentframe()))
        return proxy.example

    def _may_use_values(self) -> bool:
        stack = ["", *(name for name, _ in self.module_stack.values())]
        return any(name in self._values for name in stack)

    # Nodes and their examples.

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):
        """A node of the graph, unless its target could be code; all nodes are made here."""
        require_plain_name(kind, target)
        return super().create_node(kind, target, args, kwargs, name, type_expr)

    @contextmanager
    def _running(self):
        before, self._is_running = self._is_running, True
        try:
            yield
        finally:
            self._is_running = before

    def _run(self, kind: str, target, args: tuple, kwargs: dict):
        args, kwargs = map_values(example_of, (args, kwargs))
        with self._running():
            if kind == "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)

    def _wrap(self, node: Node, value, constant: bool = False):
        """What a node gives, as proxies; lists, tuples and dicts as such with proxies in them."""
        if isinstance(value, Tensor):
            _describe_tensor(node, value)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, dict):
            entries = {key: self._entry(node, key, v, constant) for key, v in value.items()}
            return refilled(value, entries)
        if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            entries = [self._entry(node, i, v, constant) for i, v in enumerate(value)]
            return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
        return ExampleProxy(node, self, value, constant)

    def _entry(self, container: Node, key, value, constant: bool):
        node = self.create_node("call_function", operator.getitem, (container, key), {})
        name = getattr(container.target, "__name__", container.target)
        brought_in = container.meta.get("entries", name not in _SPLITS)
        node.meta["entries"] = brought_in
        if isinstance(value, Tensor) and brought_in:
            node.meta["entry"] = True
        return self._wrap(node, value, constant)

    def _placeholder(self, parameter: inspect.Parameter) -> Node:
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        has_default = parameter.default is not parameter.empty
        default = (self.create_arg(parameter.default),) if has_default else ()
        return self.create_node(
            "placeholder", stars.get(parameter.kind, "") + parameter.name, default, {}
        )

    def _wrap_argument(self, name: str, node: Node, value):
        leaves: list = []
        map_values(leaves.append, value)
        traced = (Tensor,) if self._bind_numbers else (Tensor, int, float)
        if any(isinstance(leaf, traced) and not isinstance(leaf, bool) for leaf in leaves):
            return self._wrap(node, value)
        self.recording.bound[name] = value
        return value

    def _last_node(self) -> Node:
        return next(iter(reversed(self.graph.nodes)))

    def _erase_after(self, last: Node) -> None:
        erased = set()
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            erased.add(node)
        for node in list(reversed(self.graph.nodes)):
            if node in erased:
                self.graph.erase_node(node)
        self._tensors = {k: p for k, p in self._tensors.items() if p.node not in erased}


def _describe_tensor(node: Node, value: Tensor) -> None:
    node.meta["shape"], node.meta["dtype"] = value.shape, value.dtype


def _tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
