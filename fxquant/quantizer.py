"""The one module that fake-quantizes: weights and activations, while calibrating and training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant import numerics
from fxquant.ranges import RangeEstimator, search
from fxquant.spec import QSpec

# Values kept per observed batch: enough for a range search, little enough for any network.
SAMPLES_PER_BATCH = 1 << 15


class Quantizer(nn.Module):
    """Fake-quantizes a tensor onto the grid of `spec`.

    The scale is trained as its logarithm, which keeps it positive and makes an optimiser's step
    a relative one. `channels` is the size of `spec.channel_axis` and None for one scale per
    tensor. Until calibrated, and while `enabled` is False, the input passes through unchanged.
    """

    def __init__(self, spec: QSpec, channels: int | None = None):
        super().__init__()
        self.spec = spec
        shape = () if channels is None else (channels,)
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("zero_point", torch.zeros(shape))
        self.enabled = False
        self._observed: list[Tensor] | None = None

    @property
    def scale(self) -> Tensor:
        """Positive scale, shape () or (channels,), float32."""
        return self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        if self._observed is not None:
            self._observed.append(self._sample(x.detach()))
        if not self.enabled:
            return x
        scale, zero_point = self._broadcast(self.scale, x), self._broadcast(self.zero_point, x)
        dtype = x.dtype
        y = numerics.fake_quantize(x.float(), scale, zero_point, self.spec.qmin, self.spec.qmax)
        return y.to(dtype)

    def quantize(self, x: Tensor) -> Tensor:
        """Integer grid values of `x`, int32, same shape."""
        scale, zero_point = self._broadcast(self.scale, x), self._broadcast(self.zero_point, x)
        return numerics.quantize(x, scale, zero_point, self.spec.qmin, self.spec.qmax).int()

    def observe(self) -> None:
        """Start to collect the values that pass through."""
        self._observed = []

    def calibrate(self, estimator: RangeEstimator = search) -> None:
        """Set scale and zero point from the values collected since `observe`, and enable."""
        observed, self._observed = self._observed, None
        if observed:
            self.set_range(*estimator(torch.cat(observed, 1), self.spec))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [low, high], each of shape (1,) or (channels,), and enable."""
        scale, zero_point = numerics.scale_and_zero_point(
            low, high, self.spec.qmin, self.spec.qmax, symmetric=self.spec.signed
        )
        with torch.no_grad():
            self.log_scale.copy_(scale.log().reshape(self.log_scale.shape))
            self.zero_point.copy_(zero_point.reshape(self.zero_point.shape))
        self.enabled = True

    def extra_repr(self) -> str:
        sign = "signed" if self.spec.signed else "unsigned"
        axis = "" if self.spec.channel_axis is None else f", channel axis {self.spec.channel_axis}"
        return f"{self.spec.bits} bits, {sign}{axis}"

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.enabled)

    def set_extra_state(self, state: Tensor) -> None:
        self.enabled = bool(state)

    def _broadcast(self, values: Tensor, x: Tensor) -> Tensor:
        axis = self.spec.channel_axis
        if axis is None:
            return values
        return values.reshape([-1 if i == axis else 1 for i in range(x.dim())])

    def _sample(self, x: Tensor) -> Tensor:
        """Rows of values per channel; of a whole tensor an evenly spread part, extremes kept."""
        if self.spec.channel_axis is not None:
            return x.transpose(0, self.spec.channel_axis).flatten(1).float()
        flat = x.flatten().float()
        if flat.numel() <= SAMPLES_PER_BATCH:
            return flat[None].clone()  # what follows may write into it
        picked = flat[:: flat.numel() // SAMPLES_PER_BATCH + 1]
        return torch.cat([picked, flat.amin()[None], flat.amax()[None]])[None]
