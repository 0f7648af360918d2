"""Which modules a graph calls instead of showing what is inside."""

from __future__ import annotations

from torch import nn
from torchvision import ops

# Name of the class attribute of modules that are run as they are, their parts traced one by one.
HOST = "fxquant_host"
_LEAVES = (
    *(ops.FrozenBatchNorm2d, ops.StochasticDepth, ops.DeformConv2d, ops.MultiScaleRoIAlign),
    *(ops.RoIAlign, ops.RoIPool, ops.PSRoIAlign, ops.PSRoIPool),
)
_CONTAINERS = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer),
    *(nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)


def is_leaf(module: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether a module is recorded as one call."""
    if isinstance(module, (*leaves, *_LEAVES)) or getattr(module, HOST, False):
        return True
    if "forward" in vars(module):
        return False  # one of several ways to compute, chosen when it was made
    owner = next((base for base in type(module).__mro__ if "forward" in vars(base)), nn.Module)
    return owner.__module__.startswith("torch.nn.") and owner not in _CONTAINERS
