"""Example runs of a model: what its modules are called with, and which weights take part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxquant.errors import SettingError, TraceError
from fxquant.inputs import Shapes, input_shapes

# A parameter that one of these reads is a layer's weight, whatever module it belongs to.
_LAYER_FUNCTIONS = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"),
    *("einsum", "deform_conv2d", "batch_norm", "lstm", "gru", "lstm_cell", "gru_cell"),
    *("multi_head_attention_forward", "_native_multi_head_attention"),
}
# Largest difference between a graph and the model, relative to the largest output.
_TOLERANCE = 1e-4
# Images from this height or width up are tried at about half of it first, which takes less time.
_LARGE = 192
# What is tried as another size, in this order: height and width from those of the first.
_OTHER_SIZES = (
    lambda height, width: (height // 64 * 32, width // 64 * 32 + 32),
    lambda height, width: (height + 32, width + 64),
    lambda height, width: (height + 32, width + 32),
    lambda height, width: (height * 3 // 2, width * 3 // 2),
    lambda height, width: (height * 2, width * 2),
)


@dataclass(frozen=True)
class Call:
    """One call of a module in an example run; `other_size` in the run on another image size."""

    args: tuple
    kwargs: dict
    output: object
    other_size: bool


class Probes:
    """A run on two images and one on a single image, of another size where the model takes it.

    `called` has the names of the modules that are called, `early` those of them that are reached
    before any weight is used, `used` the ids of the parameters and buffers that take part,
    `multiplied` of those that a layer's function reads.
    """

    def __init__(self, model: nn.Module, input_shape: Shapes):
        self.shapes = input_shapes(input_shape)
        inputs = probe_input(model, self.shapes, 2)
        with _watched(model) as watch:
            output = _first_run(model, inputs, self.shapes)
        self.called, self.early = watch.called, watch.early
        self.used, self.multiplied = watch.used, watch.multiplied
        self._single: list[Call] = []
        other = _at_another_size(model, self.shapes)
        self.runs = [Call(inputs, {}, output, False), *(other or self.single(model))]

    def single(self, model: nn.Module) -> list[Call]:
        """A run of the model on one image of the traced size."""
        if not self._single:
            inputs = probe_input(model, self.shapes, 1)
            self._single = [Call(inputs, {}, run(model, inputs), False)]
        return self._single

    def calls(
        self, model: nn.Module, names: Collection[str], runs: list[Call] | None = None
    ) -> dict[str, list[Call]]:
        """The calls of the named modules in these runs of `model`, all if none are given."""
        calls: dict[str, list[Call]] = {name: [] for name in names}
        for call in runs or self.runs:
            with ExitStack() as stack:
                for name in names:
                    keep = _keeper(calls[name], call.other_size)
                    stack.enter_context(_hooked(model.get_submodule(name), *keep))
                run(model, call.args)
        return calls

    def check_deterministic(self, model: nn.Module) -> None:
        """Raise TraceError where two runs on the same input differ."""
        first = self.runs[0]
        if not same(run(model, first.args), first.output):
            raise TraceError(
                f"{type(model).__name__} gives another output each time it runs on the same "
                "input, in eval mode too, so no graph can be checked against it",
                "switch off what is random in it (dropout or noise that ignores eval mode), or "
                "seed it in forward",
            )


def probe_input(model: nn.Module, shapes: tuple, batch: int) -> tuple[Tensor, ...]:
    """Deterministic noise of these shapes, with a batch in front, on the model's device."""
    generator = torch.Generator().manual_seed(batch)
    device = next(model.parameters(), torch.empty(0)).device
    return tuple(torch.randn(batch, *s, generator=generator).to(device) for s in shapes)


def run(model: Callable, args: tuple, kwargs: dict | None = None):
    """Output of a call with copies of these arguments, without gradients."""
    with torch.no_grad():
        return model(*clone(args), **clone(kwargs or {}))


def clone(value):
    """Copies of the tensors and containers in a structure of values."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(clone, value))
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)([clone(entry) for entry in value])
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update({key: clone(entry) for key, entry in value.items()})
        return copied
    return value


def same(left, right) -> bool:
    """Whether two outputs have the same structure, and numbers equal up to float rounding."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return _same_tensor(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return _same_tensor(torch.tensor(left), torch.tensor(right))
    if type(left) is not type(right):
        return False
    if hasattr(left, "__array__"):
        return left.shape == right.shape and bool((left == right).all())
    if hasattr(left, "__dict__"):
        return same(vars(left), vars(right))
    return bool(left == right)


def _same_tensor(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    finite = right.isfinite()
    if not torch.equal(left[~finite].nan_to_num(), right[~finite].nan_to_num()):
        return False
    if not finite.any():
        return True
    difference = (left[finite] - right[finite]).abs().max()
    return bool(difference <= _TOLERANCE * right[finite].abs().max())


def _first_run(model: nn.Module, inputs: tuple, shapes: tuple):
    try:
        return run(model, inputs)
    except Exception as error:
        shape = " and ".join(",".join(map(str, s)) for s in shapes)
        raise SettingError(
            f"the model does not take an input of shape {shape} (channels first, no batch): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "give the shape that it was trained on with --input-shape C,H,W",
        ) from error


def _at_another_size(model: nn.Module, shapes: tuple) -> list[Call]:
    """A run on one image of another height and width; none where the model refuses them."""
    is_large = all(min(shape[-2:]) >= _LARGE for shape in shapes if len(shape) > 1)
    for change in _OTHER_SIZES if is_large else _OTHER_SIZES[1:]:
        other = tuple(_resized(shape, change) for shape in shapes)
        if other == shapes:
            return []
        inputs = probe_input(model, other, 1)
        try:
            return [Call(inputs, {}, run(model, inputs), True)]
        except Exception:  # whatever a model raises, it doesn't take this size
            continue
    return []


def _resized(shape: tuple[int, ...], change: Callable) -> tuple[int, ...]:
    if len(shape) < 2:
        return shape
    if len(shape) == 2:
        return (shape[0], change(shape[1], shape[1])[0])
    return (*shape[:-2], *change(*shape[-2:]))


def _keeper(calls: list[Call], other_size: bool):
    """Hooks before and after a call that add it to `calls`."""
    arguments: list[tuple[tuple, dict]] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments.append((clone(args), clone(kwargs)))

    def after(module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        calls.append(Call(*arguments.pop(), clone(output), other_size))

    return before, after


@contextmanager
def _hooked(module: nn.Module, before, after):
    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Notes which of the tensors with these ids are arguments of torch functions."""

    def __init__(self, parameters: set[int], buffers: set[int]):
        super().__init__()
        self.parameters, self.buffers = parameters, buffers
        self.used: set[int] = set()
        self.multiplied: set[int] = set()
        self.called: set[str] = set()
        self.early: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        tensors: set[int] = set()
        for value in (*args, *(kwargs or {}).values()):
            tensors.update(map(id, value if isinstance(value, tuple | list) else (value,)))
        tensors &= self.parameters | self.buffers
        self.used |= tensors
        if getattr(func, "__name__", "") in _LAYER_FUNCTIONS:
            self.multiplied |= tensors
        return func(*args, **(kwargs or {}))

    def note_call(self, name: str) -> None:
        self.called.add(name)
        if not self.used & self.parameters:
            self.early.add(name)


@contextmanager
def _watched(model: nn.Module):
    parameters, buffers = map(id, model.parameters()), map(id, model.buffers())
    watch = _Watch(set(parameters), set(buffers))
    modules = list(model.named_modules(remove_duplicate=False))
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: watch.note_call(name))
        for name, module in modules
    ]
    try:
        with watch:
            yield watch
    finally:
        for handle in handles:
            handle.remove()
