"""Multiply-accumulates of a run, by layer, as PyTorch executes them; knows nothing of graphs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxquant.quantizer import Quantizer

MATMUL = "matmul"  # the key of products of two activations

_aten = torch.ops.aten
_PRODUCTS = {  # which two arguments are multiplied
    _aten.mm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.bmm.default: (0, 1),
    _aten.baddbmm.default: (1, 2),
    _aten.mv.default: (0, 1),
    _aten.linear.default: (0, 1),
}


class MacCounter(TorchDispatchMode):
    """Counts, while active, by the layer that owns the weight: `float` and `quantized` apart.

    A weight is quantized where it came out of a Quantizer. Convolutions with a computed weight
    count for the module that runs them.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.float: Counter[str] = Counter()
        self.quantized: Counter[str] = Counter()
        self.convolution = 0
        self._net, self._stack = net, [""]
        self._owners = {
            parameter.untyped_storage().data_ptr(): name.rpartition(".")[0]
            for name, parameter in net.named_parameters(remove_duplicate=False)
        }
        self._grids: dict[int, tuple[str, Tensor]] = {}

    def run(self, call: Callable[[Tensor], object], x: Tensor) -> None:
        """Count what `call(x)` does; the network's own fast paths for attention are off."""
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as undo, torch.no_grad():
            undo.callback(torch.backends.mha.set_fastpath_enabled, fast)
            for name, module in self._net.named_modules():
                for handle in self._watch(name, module):
                    undo.callback(handle.remove)
            with self:
                call(x)

    def _watch(self, name: str, module: nn.Module):
        def enter(*_) -> None:
            self._stack.append(name)

        def leave(_module, _args, output) -> Tensor | None:
            self._stack.pop()
            if not isinstance(module, Quantizer) or module.spec.channel_axis is None:
                return None
            # A tensor of its own also where nothing is rounded yet, and held, so that its memory
            # can't become another tensor's.
            output = output.clone()
            self._grids[output.untyped_storage().data_ptr()] = name.rpartition(".")[0], output
            return output

        yield module.register_forward_pre_hook(enter)
        yield module.register_forward_hook(leave)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is _aten.convolution.default:
            x, weight, transposed = args[0], args[1], args[6]
            macs = (x if transposed else output).numel() * weight[0].numel()
            self.convolution += macs
            self._count(macs, self._owner(weight) or (self._stack[-1], False))
        elif func in _PRODUCTS:
            a, b = (args[i] for i in _PRODUCTS[func])
            macs = output.numel() * a.shape[-1]
            self._count(macs, self._owner(b) or self._owner(a) or (MATMUL, False))
        elif "scaled_dot_product" in func.__name__:
            q, k, v = args[:3]
            pairs = math.prod(q.shape[:-1]) * k.shape[-2]
            self._count(pairs * (q.shape[-1] + v.shape[-1]), (MATMUL, False))
        return output

    def _owner(self, weight: Tensor) -> tuple[str, bool] | None:
        """The layer that a weight belongs to, and whether it comes from a Quantizer."""
        pointer = weight.untyped_storage().data_ptr()
        if pointer in self._grids:
            return self._grids[pointer][0], True
        return (self._owners[pointer], False) if pointer in self._owners else None

    def _count(self, macs: int, owner: tuple[str, bool]) -> None:
        (self.quantized if owner[1] else self.float)[owner[0]] += macs


def share_quantized(
    original: Counter[str], student: MacCounter, quantized_names: set[str]
) -> tuple[float, dict[str, float]]:
    """Share of the original's layer MACs that the student does on quantized weights.

    `original` is what the untouched network does. A layer counts by the share of the student's
    own calls of it that are quantized; one that the student's graph does not run itself counts by
    `quantized_names`. Also the share that each layer with any float part misses.
    """
    total = sum(macs for name, macs in original.items() if name != MATMUL)
    missing = {}
    for name, macs in original.items():
        if name == MATMUL:
            continue
        good, bad = student.quantized[name], student.float[name]
        part = good / (good + bad) if good + bad else float(name in quantized_names)
        if part < 1:
            missing[name] = (1 - part) * macs / total
    return 1 - sum(missing.values()), missing
