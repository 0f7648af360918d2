"""From a model to a torch.fx graph that is known to compute the same."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Tracer
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from fxquant.errors import SettingError, TraceError

_LEAVES = (FrozenBatchNorm2d, StochasticDepth, nn.modules.batchnorm._NormBase)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ModelTracer(Tracer):
    """torch.fx's tracer with torch.nn layers, and classes that inherit their forward, as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _LEAVES):
            return True
        owner = next(base for base in type(m).__mro__ if "forward" in vars(base))
        return owner.__module__.startswith("torch.nn.") and owner not in _CONTAINERS


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> GraphModule:
    """Trace a copy of `model` in eval mode and check it against the original.

    `input_shape` is (channels, height, width) without the batch. The graph's nodes carry
    `meta["shape"]`. Raises SettingError where the model doesn't take such an input, TraceError
    where it can't be traced or the graph computes something else.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    probe = probe_input(model, input_shape)
    expected = _run_model(model, probe, input_shape)
    tracer = ModelTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise _trace_error(tracer, model, error) from error
    _input_first(graph)
    gm = GraphModule(model, graph, class_name=type(model).__name__)
    gm.delete_all_unused_submodules()
    _check_equal(gm, probe, expected)
    smaller = probe[:1]
    _check_equal(gm, smaller, _run_model(model, smaller, input_shape))
    record_shapes(gm, probe)
    return gm


def probe_input(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Two deterministic noise images of `input_shape` on the model's device."""
    generator = torch.Generator().manual_seed(0)
    parameter = next(model.parameters(), torch.empty(0))
    return torch.randn(2, *input_shape, generator=generator).to(parameter.device)


def record_shapes(gm: GraphModule, example: Tensor) -> None:
    """Run `gm` on `example` and keep each tensor's shape in its node's `meta["shape"]`."""

    class Recorder(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            if isinstance(value, Tensor):
                n.meta["shape"] = value.shape
            if n.op == "placeholder":
                n.meta["network_input"] = True
            return value

    with torch.no_grad():
        Recorder(gm).run(example)


def _input_first(graph: Graph) -> None:
    """Let calls of modules by keyword, `bn(input=x)`, have their input as first argument."""
    for node in graph.nodes:
        if node.op == "call_module" and not node.args and "input" in node.kwargs:
            rest = dict(node.kwargs)
            node.args = (rest.pop("input"),)
            node.kwargs = rest


def _run_model(model: nn.Module, probe: Tensor, input_shape: tuple[int, ...]):
    try:
        with torch.no_grad():
            return model(probe)
    except Exception as error:
        shape = ",".join(map(str, input_shape))
        raise SettingError(
            f"the model does not take an input of shape {shape} (channels first, no batch): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "give the shape that it was trained on with --input-shape C,H,W",
        ) from error


def _check_equal(gm: GraphModule, probe: Tensor, expected) -> None:
    try:
        with torch.no_grad():
            torch.testing.assert_close(gm(probe), expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    except Exception as error:
        raise TraceError(
            f"the traced graph of {gm.__class__.__name__} does not compute what the model does: "
            f"{str(error).splitlines()[0]}",
            "the model's forward depends on values that torch.fx can't see; "
            "rewrite it without branches on the input",
        ) from error


def _trace_error(tracer: Tracer, model: nn.Module, error: Exception) -> TraceError:
    """Name the innermost module that was being traced, and the line of the user's code."""
    # A second call's key has a suffix; the path beside it has none.
    stack = list(tracer.module_stack.values())
    name = stack[-1][0] if stack else ""
    module = model.get_submodule(name) if name else model
    where = f"module '{name}' ({type(module).__name__})" if name else type(module).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "torch" not in Path(frame.filename).parts and frame.filename != __file__
    ]
    line = ""
    if frames:
        line = f", {frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TraceError(
        f"{where} can't be traced{line}: {reason}",
        "torch.fx records what forward does without running it on numbers: move branches and "
        "loops that depend on the input out of this forward, or quantize the part that traces",
    )
