"""Regions of a traced model: the graphs inside a module, or the one that it is itself.

A model that torch.fx traces as a whole is one region, the root. Of any other the parts that could
be traced are regions, put in place of the modules that they came from; what lies between them
stays the model's own code. A region's name is the qualified name of its module, '' for the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.fx import GraphModule, Interpreter, Node

REGION = "region"


def regions(model: nn.Module) -> list[GraphModule]:
    """The traced graphs of `model`, outer ones before those inside the leaves that they call."""
    return [module for module in model.modules() if isinstance(module, GraphModule)]


def all_nodes(model: nn.Module) -> Iterator[Node]:
    """The nodes of all regions."""
    for region in regions(model):
        yield from region.graph.nodes


def region_of(node: Node) -> GraphModule:
    """The graph module that a node belongs to."""
    return node.graph.owning_module


def qualify(region: GraphModule, name: str) -> str:
    """Name in the whole model of what is called `name` in one of its regions."""
    return ".".join(part for part in (region.meta.get(REGION, ""), name) if part)


def value_name(node: Node) -> str:
    """Name in the whole model of the value that a node of teacher or student computes.

    What a student computes in place of a value of the traced graph has that value's name.
    """
    return qualify(region_of(node), node.meta.get("twin", node.name))


@contextmanager
def interpreted(
    model: nn.Module, make: Callable[[GraphModule], Interpreter]
) -> Iterator[list[Interpreter]]:
    """Inside the block, calls of `model` run each region through the interpreter made for it."""
    interpreters = [make(region) for region in regions(model)]
    for interpreter in interpreters:
        interpreter.module.forward = partial(_run, interpreter)
    try:
        yield interpreters
    finally:
        for interpreter in interpreters:
            del interpreter.module.forward


def _run(interpreter: Interpreter, *args, **kwargs):
    """Run by positional arguments; those of a graph's placeholders can be given by keyword."""
    names = [n.target for n in interpreter.module.graph.nodes if n.op == "placeholder"]
    return interpreter.run(*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))
