"""AdaRound: which way each weight is rounded is learned (Nagel et al., 2020).

W = s clamp(floor(w / s0) + h(V), qmin, qmax), h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1), eq. 22
and 23. The scale s starts at s0 and is learned beside V, as in Genie (Jeon et al., 2023); floors
stay. V starts between the weight itself, as in the paper, and the way in which it has been
rounded before, which few steps then improve on and do not have to find.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.quantizer import Quantizer

LOW, HIGH = -0.1, 1.1
# Where between the weight, 0, and its rounded value, 1, soft rounding starts: past the middle, so
# that without a step the rounding stays.
TRUST = 0.6


class SoftRounding(nn.Module):
    """The weight of one layer while its rounding is learned, on the grid of its `quantizer`.

    `rounded` is the weight as it was rounded before; without it, `weight` is rounded to nearest.
    Of the two grid values to choose from one is that, the other the next towards `weight`.
    """

    def __init__(self, weight: Tensor, quantizer: Quantizer, rounded: Tensor | None = None):
        super().__init__()
        self.quantizer = quantizer
        self.shape = [-1 if i == quantizer.spec.channel_axis else 1 for i in range(weight.dim())]
        scale = quantizer.scale.detach().reshape(self.shape)
        ratio = weight.detach() / scale
        before = (ratio if rounded is None else rounded.detach() / scale).round()
        self.register_buffer("floor", torch.where(ratio < before, before - 1, before))
        fraction = (ratio - self.floor).clamp(0, 1)
        start = fraction + TRUST * (before - self.floor - fraction)
        self.logits = nn.Parameter(torch.logit((start - LOW) / (HIGH - LOW)))

    def up(self) -> Tensor:
        """h(V), the share of each weight that is rounded up, in [0, 1]."""
        return (torch.sigmoid(self.logits) * (HIGH - LOW) + LOW).clamp(0, 1)

    def forward(self) -> Tensor:
        """The weight with soft rounding."""
        return self._weight(self.up())

    def hard(self) -> Tensor:
        """The weight on its grid, rounded the way that h(V) is closer to."""
        return self._weight((self.logits >= 0).to(self.floor.dtype))

    def _weight(self, up: Tensor) -> Tensor:
        spec = self.quantizer.spec
        q = (self.floor + up).clamp(spec.qmin, spec.qmax)
        return q * self.quantizer.scale.reshape(self.shape)


def undecided(up: Tensor, sharpness: float) -> Tensor:
    """sum 1 - |2 h - 1|^beta (Nagel et al., 2020, eq. 24), 0 once every h is 0 or 1."""
    return (1 - (2 * up - 1).abs().pow(sharpness)).sum()
