"""Multiply-accumulates of a traced model, counted while it runs on one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.fx import Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from fxquant.graph.probes import probe_input
from fxquant.graph.regions import interpreted
from fxquant.inputs import Shapes, input_shapes


@torch.no_grad()
def count_macs(
    model: nn.Module, input_shape: Shapes, hidden: Collection[str] = ()
) -> Counter[Node | str]:
    """Multiply-accumulates for one image: of each node, and by name of modules no graph shows.

    What a module does inside is not counted for the node that calls it where it has nodes of its
    own. Every call counts: a node of a region that runs once a pyramid level counts them all.
    """
    meter = _Meter()

    class Counting(Interpreter):
        def run_node(self, n: Node):
            with meter.measure(n):
                return super().run_node(n)

    inputs = probe_input(model, input_shapes(input_shape), batch=1)
    measured = _measuring(model, hidden, meter)
    with _plain_attention(), meter.counter, measured, interpreted(model, Counting):
        model(*inputs)
    return meter.counts


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Let attention be computed by products that the counter knows, not by one fused function."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Meter:
    """Shares out what torch's counter of operations counts; whoever is innermost gets it."""

    def __init__(self) -> None:
        self.counts: Counter[Node | str] = Counter()
        self.counter = FlopCounterMode(display=False)
        self._inner = [0]

    @contextmanager
    def measure(self, key: Node | str) -> Iterator[None]:
        """What is computed inside the block, but for inner blocks, counts for `key`."""
        before = self.counter.get_total_flops()
        self._inner.append(0)
        yield
        spent = self.counter.get_total_flops() - before
        self.counts[key] += (spent - self._inner.pop()) // 2  # a product and a sum are two
        self._inner[-1] += spent


@contextmanager
def _measuring(model: nn.Module, names: Collection[str], meter: _Meter) -> Iterator[None]:
    """Measure the calls of named modules while the block runs."""
    running: list[ExitStack] = []

    def start(name: str):
        def begin(module: nn.Module, args: tuple) -> None:
            running.append(ExitStack())
            running[-1].enter_context(meter.measure(name))

        return begin

    def stop(module: nn.Module, args: tuple, output: object) -> None:
        running.pop().close()

    with ExitStack() as handles:
        for name in names:
            module = model.get_submodule(name)
            handles.callback(module.register_forward_pre_hook(start(name)).remove)
            handles.callback(module.register_forward_hook(stop).remove)
        yield
