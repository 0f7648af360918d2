"""What a box says: its title, the line below it, and what shows up under the pointer."""

from __future__ import annotations

from torch.fx import Node

from fxquant.drawing.boxes import Box
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS
from fxquant.graph.ops import is_transposed, kind, module_of
from fxquant.report.floating import operation
from fxquant.report.formats import amount

TIMES, ARROW, DOT = "\N{MULTIPLICATION SIGN}", "\N{RIGHTWARDS ARROW}", " \N{MIDDLE DOT} "
WIDTHS = (("W", "weight"), ("A", "act"))
_CONV_ARGUMENTS = {"stride": 3, "dilation": 5, "groups": 6}
_TRANSPOSED_ARGUMENTS = {"stride": 3, "groups": 6, "dilation": 7}


def title(box: Box) -> str:
    """The layer's or module's qualified name; of a function its own name."""
    if box.row is not None:
        return box.row["name"]
    if box.node.op == "call_module":
        return box.path
    if box.node.op == "placeholder":
        return f"input {box.node.target}"
    name = operation(box.node)
    return f"{name} + {box.limit}" if box.limit else name


def detail(box: Box) -> str:
    """What the op is, beside its title."""
    if box.row is not None:
        return DOT.join(_layer(box))
    if box.node.op == "placeholder":
        return shape(box.node)
    if box.node.op == "call_module":
        return operation(box.node) + (f" + {box.limit}" if box.limit else "")
    return box.path


def tips(box: Box) -> list[str]:
    """All that is known about an op, a line each."""
    lines = [title(box), detail(box)]
    if shape(box.node):
        lines.append(f"gives {shape(box.node)}, {_width(box.bits)}")
    row = box.row
    if row is not None:
        counts = f"{row['parameters']:,} parameters, {amount(row['macs'])} MACs"
        lines.append(counts)
        if row["weight_shape"]:
            lines.append(f"weights {TIMES.join(map(str, row['weight_shape']))}")
        verdict = "will run in an integer kernel"
        if row["kernel_reason"]:
            verdict = f"no integer kernel: {row['kernel_reason']}"
        lines.append(verdict)
    if box.reason:
        lines.append(f"in floating point: {box.reason}")
    for group, what in ((BN_TAPS, "batch norm tap"), (FEATURE_TAPS, "feature tap")):
        lines += [f"{what} {name}" for name in box.taps.get(group, [])]
    return [line for line in lines if line]


def shape(node: Node) -> str:
    """Shape of a node's value without the batch."""
    sides = node.meta.get("shape")
    return TIMES.join(map(str, sides[1:])) if sides is not None else ""


def _width(bits: int | None) -> str:
    return "in floating point" if bits is None else f"at {bits} bits"


def _layer(box: Box) -> list[str]:
    row = box.row
    parts = [row["kind"], *_geometry(box)]
    widths = [f"{k}{row[f'{name}_bits']}" for k, name in WIDTHS if row[f"{name}_bits"]]
    parts.append(" ".join(widths) or "float")
    return [*parts, box.limit] if box.limit else parts


def _geometry(box: Box) -> list[str]:
    """Kernel, stride and channels of a convolution; inputs and outputs of a linear layer."""
    weight = box.row["weight_shape"]
    if len(weight) < 2:
        return []
    if len(weight) == 2:
        return [f"{weight[1]}{ARROW}{weight[0]}"]
    transposed = is_transposed(box.node)
    names = _TRANSPOSED_ARGUMENTS if transposed else _CONV_ARGUMENTS
    stride, dilation, groups = (_argument(box.node, name, names[name]) for name in names)
    inputs, outputs = weight[1] * groups, weight[0]
    if transposed:
        inputs, outputs = weight[0], weight[1] * groups
    kernel = TIMES.join(map(str, weight[2:]))
    kernel += f" /{stride}" if stride != 1 else ""
    parts = [kernel, f"{inputs}{ARROW}{outputs}"]
    if dilation != 1:
        parts.append(f"dilation {dilation}")
    if groups > 1:
        parts.append("depthwise" if groups == inputs else f"{groups} groups")
    return parts


def _argument(node: Node, name: str, index: int) -> int:
    """A convolution's stride, dilation or number of groups; of several sides the largest."""
    module = module_of(node)
    if module is not None:
        value = getattr(module, name, 1)
    else:
        value = node.kwargs.get(name, node.args[index] if len(node.args) > index else 1)
    return max(value) if isinstance(value, tuple | list) else value


def is_plain(box: Box) -> bool:
    """Whether an op between the layers has a box of one line."""
    return box.row is None


def style(box: Box) -> str:
    """Name of the box's look: by its kind, its width, and whether it computes in floating point."""
    if box.row is not None:
        bits = box.row["weight_bits"] or box.row["act_bits"]
        return f"w{bits}" if bits else "float"
    if box.reason:
        return "float"
    return "move" if kind(box.node) in ("move", "placeholder", "output") else "grid"
