"""Remove what does nothing in eval mode: identities, dropout, stochastic depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torchvision.ops import StochasticDepth

from fxquant.graph.ops import argument, first_input, is_real, kind, module_of

_MODULES = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.FeatureAlphaDropout, StochasticDepth),
)
_FUNCTIONS = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
)


def drop_identities(gm: GraphModule) -> int:
    """Let those who read such an op read what it reads instead; the number removed."""
    dropped = 0
    for node in list(gm.graph.nodes):
        source = first_input(node)
        if source is not None and _does_nothing(node):
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
            dropped += 1
    gm.delete_all_unused_submodules()
    return dropped


def _does_nothing(node: Node) -> bool:
    module = module_of(node)
    if module is not None:
        return isinstance(module, _MODULES) or _returns_its_input(node, module)
    if node.target in _FUNCTIONS:
        return argument(node, 2, "training", True) is False
    return node.target is torch.dropout and argument(node, 2, "train", True) is False


def _returns_its_input(node: Node, module: nn.Module) -> bool:
    """Whether a module without weights gives back the very tensor that it gets, as DropPath does.

    Torch's own modules are in the tables; this is for those that others write.
    """
    source = first_input(node)
    known = kind(node) != "other" or type(module).__module__.startswith(("torch.", "fxquant."))
    if known or not is_real(source) or len(node.all_input_nodes) > 1 or node.kwargs:
        return False
    if any(True for _ in (*module.parameters(), *module.buffers())):
        return False
    probe = torch.zeros(source.meta["shape"])
    rest = node.args[1:]
    try:
        with torch.no_grad():
            return module.eval()(probe, *rest) is probe
    except Exception:
        # Whatever it does, it takes more than one plain tensor.
        return False
