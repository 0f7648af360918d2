"""What each layer's weights add to a network's size and bit operations, and what else does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn
from torch.fx import Node

from fxquant.errors import SettingError
from fxquant.graph.costs import FLOAT_BITS, bitops_per_mac, input_bits, parameter_bits, weight_of
from fxquant.graph.insert_quantizers import first_and_last_layer, layer_name, quantized_layers
from fxquant.graph.macs import count_macs
from fxquant.graph.ops import module_of
from fxquant.graph.prepare import Prepared
from fxquant.mixed.budget import Mixed
from fxquant.quantizer import Quantizer
from fxquant.spec import QConfig


@dataclass(frozen=True)
class Share:
    """A weight whose width is to be chosen, and the layers that read it.

    `macs_bits` are their multiply-accumulates for one image, each times the width of what enters.
    """

    names: tuple[str, ...]
    bits: int
    numel: int
    macs_bits: int


@dataclass(frozen=True)
class Costs:
    """Bits of all parameters and bit operations for one image, as functions of the widths.

    `fixed_bits` and `fixed_bitops` are those of all but the `shares`.
    """

    shares: tuple[Share, ...]
    fixed_bits: int
    fixed_bitops: int

    def size(self, widths: Sequence[int]) -> float:
        """Bytes of all parameters with these widths of the shares."""
        bits = sum(share.numel * width for share, width in zip(self.shares, widths, strict=True))
        return (self.fixed_bits + bits) / 8

    def bitops(self, widths: Sequence[int]) -> int:
        """Bit operations for one image with these widths of the shares."""
        pairs = zip(self.shares, widths, strict=True)
        return self.fixed_bitops + sum(share.macs_bits * width for share, width in pairs)

    @cached_property
    def average(self) -> float:
        """The average width of the shares' weights as they are."""
        return self.average_of([share.bits for share in self.shares])

    def average_of(self, widths: Sequence[int]) -> float:
        """The average of these widths over all weights of the shares."""
        numels = [share.numel for share in self.shares]
        return sum(n * w for n, w in zip(numels, widths, strict=True)) / max(sum(numels), 1)


def measure_costs(prepared: Prepared, config: QConfig) -> Costs:
    """The costs of a prepared student's layers.

    Layers that a rule of `config` names, and the first and last where it says their width, keep
    theirs and are no shares. The others have the width of `config` in their shares, whatever
    `prepared` gave them.
    """
    student = prepared.student
    layers = quantized_layers(student)
    ends = first_and_last_layer(student) if config.first_last_bits is not None else set()
    readers: dict[Quantizer, list[Node]] = {}
    for node in layers:
        readers.setdefault(module_of(node.args[1]), []).append(node)
    hidden = {name for part in prepared.left_out for name in part.hidden}
    macs = count_macs(student, prepared.input_shape, hidden)
    free = {
        quantizer: Share(
            tuple(dict.fromkeys(map(layer_name, nodes))),
            config.weight_bits,
            weight_of(nodes[0]).numel(),
            sum(macs[node] * (input_bits(node) or FLOAT_BITS) for node in nodes),
        )
        for quantizer, nodes in readers.items()
        if not any(_is_fixed(layer_name(node), config, ends) for node in nodes)
    }
    quantized = set(layers)
    bitops = sum(count * bitops_per_mac(node, quantized) for node, count in macs.items())
    return Costs(
        tuple(free.values()),
        parameter_bits(student) - sum(s.numel * q.spec.bits for q, s in free.items()),
        bitops - sum(s.macs_bits * q.spec.bits for q, s in free.items()),
    )


def _is_fixed(name: str, config: QConfig, ends: set[str]) -> bool:
    return name in ends or config.names(name)


def require_possible(costs: Costs, mixed: Mixed) -> None:
    """Raise SettingError where no choice of widths is within the budget: it says the least."""
    if not costs.shares:
        raise SettingError(
            "mixed precision has nothing to choose: layer rules fix the width of every layer"
        )
    narrowest = [mixed.widths[0]] * len(costs.shares)
    least_size, least_bitops = costs.size(narrowest), costs.bitops(narrowest)
    hint = f"that is with {mixed.widths[0]}-bit weights in every layer that is free to choose"
    if mixed.size is not None and mixed.size < least_size:
        raise SettingError(
            f"the target size of {mixed.size:,.0f} bytes can't be met: the least is "
            f"{least_size:,.0f} bytes",
            f"{hint}; of it {costs.fixed_bits / 8:,.0f} bytes are biases and what stays as it is",
        )
    if mixed.bitops is not None and mixed.bitops < least_bitops:
        raise SettingError(
            f"the target of {mixed.bitops:,.0f} bit operations can't be met: the least is "
            f"{least_bitops:,.0f}",
            f"{hint}; narrower activations (--act-bits) need fewer",
        )
    if mixed.size is None and mixed.bitops is None and costs.size(narrowest) > as_is(costs):
        raise SettingError(
            f"mixed precision is to choose from {', '.join(map(str, mixed.widths))} bits, and the "
            f"budget is the size at {costs.average:.3g} bits",
            "allow narrower widths, or give a wider --weight-bits",
        )


def as_is(costs: Costs) -> float:
    """Bytes of all parameters at the widths of the configuration."""
    return costs.size([share.bits for share in costs.shares])


def set_widths(student: nn.Module, widths: dict[str, int]) -> None:
    """Give the weights of the layers of these names these widths."""
    for node in quantized_layers(student):
        bits = widths.get(layer_name(node))
        if bits is not None:
            quantizer = module_of(node.args[1])
            quantizer.spec = replace(quantizer.spec, bits=bits)
