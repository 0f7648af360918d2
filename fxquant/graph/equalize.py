"""Cross-layer equalization: move scale between layers until their channels have like ranges.

Nagel et al. (Data-Free Quantization through Weight Equalization and Bias Correction, 2019),
section 4.1: for the channel j between two layers, s_j = sqrt(r1_j r2_j) / r2_j with r1_j and r2_j
the ranges of the weights that write and read it; W1_j / s_j and W2_j s_j compute the same through
a ReLU, and have the same range, sqrt(r1_j r2_j). Repeated over all pairs until nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.graph.chains import Chain, find_chains, folded_weight, groups_of
from fxquant.graph.ops import kind, module_of

MOST_ROUNDS = 40
STILL = 1e-3  # relative change of any scale below which nothing moves any more
LARGEST = 2.0**20  # a scale beyond it, or below its inverse, comes from a channel that is dead


@dataclass
class _Layer:
    """A layer's largest folded |weight| for each output and input, (groups, outputs, inputs)."""

    largest: Tensor

    @classmethod
    def of(cls, layer: Node, batchnorm: Node | None) -> _Layer:
        weight = folded_weight(layer, batchnorm).abs()
        largest = weight.flatten(2).amax(2) if weight.dim() > 2 else weight
        groups = groups_of(layer)
        return cls(largest.reshape(groups, len(largest) // groups, -1).clone())

    def output_range(self) -> Tensor:
        return self.largest.amax(2).flatten()

    def input_range(self) -> Tensor:
        return self.largest.amax(1).flatten()

    def scale_outputs(self, factor: Tensor) -> None:
        self.largest *= factor.reshape(len(self.largest), -1, 1)

    def scale_inputs(self, factor: Tensor) -> None:
        self.largest *= factor.reshape(len(self.largest), 1, -1)


@torch.no_grad()
def equalize(gm: GraphModule) -> int:
    """Equalize all chains of a graph that has its batch norms still; the number of chains.

    The graph computes what it did, within the rounding of floats; inputs of batch norms, and so
    their statistics, stay as they are.
    """
    chains = find_chains(gm)
    batchnorms = {chain.first: chain.batchnorm for chain in chains}
    following = {chain.second: _batchnorm_after(chain.second) for chain in chains}
    nodes = {**following, **batchnorms}
    layers = {node: _Layer.of(node, batchnorm) for node, batchnorm in nodes.items()}
    scales = {chain: torch.ones_like(layers[chain.first].output_range()) for chain in chains}
    for _ in range(MOST_ROUNDS):
        moved = [_step(chain, layers, scales) for chain in chains]
        if max(moved, default=0.0) < STILL:
            break
    for chain, scale in scales.items():
        _apply(chain, scale)
    return len(chains)


def _batchnorm_after(layer: Node) -> Node | None:
    """The batch norm that will be folded into a layer, if its scale counts."""
    users = list(layer.users)
    if len(users) != 1 or kind(users[0]) != "batchnorm":
        return None
    module = module_of(users[0])
    scales = getattr(module, "running_var", None) is not None and module.weight is not None
    return users[0] if scales else None


def _step(chain: Chain, layers: dict[Node, _Layer], scales: dict[Chain, Tensor]) -> float:
    """Equalize one chain for now; the largest relative change of a channel's scale."""
    first, second = layers[chain.first], layers[chain.second]
    writes, reads = first.output_range(), second.input_range()
    scale = (writes / reads).sqrt()
    total = scale * scales[chain]
    usable = scale.isfinite() & (scale > 0) & (total < LARGEST) & (total > 1 / LARGEST)
    scale = torch.where(usable, scale, 1.0)
    first.scale_outputs(1 / scale)
    second.scale_inputs(scale)
    scales[chain] *= scale
    return float((scale - 1).abs().max())


def _apply(chain: Chain, scale: Tensor) -> None:
    """Divide what the first layer and its batch norm write by `scale`; the second multiplies."""
    layer = module_of(chain.first)
    if chain.batchnorm is not None:
        bn = module_of(chain.batchnorm)
        _multiply(bn, "weight", 1 / scale)
        _multiply(bn, "bias", 1 / scale)
    else:
        _multiply(layer, "weight", (1 / scale).reshape(-1, *[1] * (layer.weight.dim() - 1)))
        _multiply(layer, "bias", 1 / scale)
    second = module_of(chain.second)
    groups, inputs = groups_of(chain.second), second.weight.shape[1]
    each = scale.reshape(groups, 1, inputs).expand(-1, len(second.weight) // groups, -1)
    factor = each.reshape(len(second.weight), inputs, *[1] * (second.weight.dim() - 2))
    _multiply(second, "weight", factor)


def _multiply(module: nn.Module, name: str, factor: Tensor) -> None:
    value = getattr(module, name)
    if value is not None:
        value.copy_(value.double() * factor)
