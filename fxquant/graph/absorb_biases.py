"""High-bias absorption: what is almost always in a channel becomes part of the next bias.

Nagel et al., 2019, section 4.1.3: where a batch norm with mean beta and deviation gamma is followed
by a ReLU, c = max(0, beta - 3 gamma) is below all but 0.13 % of the values of the channel;
relu(x) = relu(x - c) + c for x >= c, so that b1 - c and b2 + W2 c compute the same there, and the
activations between have a smaller range.
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.fx import GraphModule

from fxquant.graph.chains import Chain, find_chains, groups_of
from fxquant.graph.ops import kind, module_of

logger = logging.getLogger(__name__)

DEVIATIONS = 3.0
SMALLEST = 1e-3  # of a deviation: less is not worth a pass, and is what rounding leaves


@torch.no_grad()
def absorb_biases(gm: GraphModule) -> int:
    """Absorb high biases of a graph that has its batch norms still; the number of chains changed.

    The graph computes what it did where no value is below its channel's c. Where the second layer
    pads with zeros, which are below, it is left as it is.
    """
    return sum(_absorb(chain) for chain in find_chains(gm))


def _absorb(chain: Chain) -> int:
    if chain.batchnorm is None or [kind(node) for node in chain.between] != ["relu"]:
        return 0
    first, second = module_of(chain.batchnorm), module_of(chain.second)
    deviation = first.weight.double().abs()
    amount = first.bias.double() - DEVIATIONS * deviation
    amount = torch.where(amount > SMALLEST * deviation, amount, 0.0)
    if not bool(amount.any()):
        return 0
    if _pads(second):
        logger.info("the bias of %s is not absorbed: %s pads", chain.first.target, chain.second)
        return 0
    first.bias.sub_(amount)
    groups = groups_of(chain.second)
    weight = second.weight.double().reshape(*second.weight.shape[:2], -1).sum(2)
    rows = weight.reshape(groups, len(weight) // groups, -1)
    added = (rows @ amount.reshape(groups, -1, 1)).flatten()
    if second.bias is None:
        zeros = torch.zeros(len(second.weight), dtype=second.weight.dtype)
        second.bias = nn.Parameter(zeros.to(second.weight.device), requires_grad=False)
    second.bias.add_(added)
    return 1


def _pads(layer: nn.Module) -> bool:
    padding = getattr(layer, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, tuple) else bool(padding)
