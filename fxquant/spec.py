"""What to quantize and how: the integer grid of one quantizer, and a whole network's settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase

from fxquant.errors import SettingError

MIN_BITS, MAX_BITS = 2, 8


def check_bits(bits: int, what: str) -> None:
    """Raise `SettingError` unless `bits` is a whole number from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise SettingError(
            f"{what} is {bits!r}; expected a whole number from {MIN_BITS} to {MAX_BITS}"
        )


@dataclass(frozen=True)
class QSpec:
    """The integer grid of one quantizer.

    `signed` grids are symmetric: [-2^(b-1), 2^(b-1) - 1] with zero point 0. Unsigned grids,
    [0, 2^b - 1], have a zero point, so that zero is always representable. `channel_axis` is
    the axis that has a scale for each of its channels; None means one scale for the tensor.
    """

    bits: int
    signed: bool = False
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, "a quantizer's bit width")

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True)
class LayerRule:
    """Bits for the layers whose qualified name matches `pattern` (fnmatch); None keeps them float.

    The bits are those of the layer's weights and of the activations that enter it; with
    `weights_only`, of the weights alone.
    """

    pattern: str
    bits: int | None
    weights_only: bool = False

    def __post_init__(self) -> None:
        if not self.pattern:
            raise SettingError("a layer rule has an empty pattern", "write NAME=BITS or NAME=float")
        if self.bits is not None:
            check_bits(self.bits, f"the bit width of layer rule '{self.pattern}'")

    @classmethod
    def parse(cls, text: str) -> LayerRule:
        """Read `NAME=BITS`, `NAME=wBITS` (weights only) or `NAME=float`."""
        pattern, separator, value = text.rpartition("=")
        bits = value.removeprefix("w")
        if not separator or not (value == "float" or (bits.isdecimal() and len(bits) < 4)):
            raise SettingError(
                f"layer rule '{text[:200]}' can't be read",
                "write NAME=BITS or NAME=float, for example 'features.0=8' or 'classifier.*=float';"
                " 'features.0=w8' sets the width of the weights alone",
            )
        return cls(pattern, None if value == "float" else int(bits), value.startswith("w"))

    def __str__(self) -> str:
        if self.bits is None:
            return f"{self.pattern}=float"
        return f"{self.pattern}={'w' if self.weights_only else ''}{self.bits}"

    def apply(self, bits: LayerBits | None, activation: int) -> LayerBits | None:
        """The bits of a layer that the rule matches, `bits` before it.

        `activation` is the width of activations where there was none.
        """
        if self.bits is None:
            return None
        if not self.weights_only:
            return LayerBits(self.bits, self.bits)
        return LayerBits(self.bits, bits.activation if bits else activation)


@dataclass(frozen=True)
class LayerBits:
    """The bits of one layer: its weights, and the activations that enter it."""

    weight: int
    activation: int


@dataclass(frozen=True)
class QConfig:
    """How a network is quantized.

    `weight_bits` and `act_bits` are the widths of weights and of the activations that enter a
    convolution or linear layer; `sum_bits` that of values that enter additions,
    concatenations or pooling, also where a layer reads them at fewer bits, or the output alone;
    `input_bits` that of the network's input. `first_last_bits`, where given, overrides the width of
    the first and last layer. `layers` are rules over qualified module names; the last match wins.
    `symmetric_activations` puts them on signed grids around zero, as some accelerators want it:
    worth half a bit after a ReLU.
    `per_tensor_weights` gives a weight one scale instead of one for each output channel.
    `equalize` moves scale between layers (`fxquant.graph.equalize`), by default where weights have
    one scale; `absorb_biases` moves high biases to the next layer (`fxquant.graph.absorb_biases`).
    """

    weight_bits: int = 4
    act_bits: int = 4
    sum_bits: int = 8
    input_bits: int = 8
    first_last_bits: int | None = None
    layers: tuple[LayerRule, ...] = ()
    symmetric_activations: bool = False
    per_tensor_weights: bool = False
    equalize: bool | None = None
    absorb_biases: bool = False

    def __post_init__(self) -> None:
        for name in ("symmetric_activations", "per_tensor_weights", "equalize", "absorb_biases"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "equalize" and value is None):
                raise SettingError(f"{name} is {value!r}; expected true or false")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_bits") and value is not None:
                check_bits(value, field.name)

    @property
    def equalizes(self) -> bool:
        """Whether scale is moved between layers."""
        return self.per_tensor_weights if self.equalize is None else self.equalize

    def layer_bits(self, name: str, *, first_or_last: bool = False) -> LayerBits | None:
        """Bits of the layer with this qualified name; None where it stays in floating point."""
        bits: LayerBits | None = LayerBits(self.weight_bits, self.act_bits)
        if first_or_last and self.first_last_bits is not None:
            bits = LayerBits(self.first_last_bits, self.first_last_bits)
        for rule in self.layers:
            if fnmatchcase(name, rule.pattern):
                bits = rule.apply(bits, self.act_bits)
        return bits

    def to_dict(self) -> dict:
        """Plain values for TOML and JSON; rules as `NAME=BITS`."""
        unsaid = {item.name: item.default for item in fields(self) if not item.default}
        values = {
            key: value
            for key, value in asdict(self).items()
            if key not in unsaid or value is not unsaid[key]
        }
        return values | {"layers": [str(rule) for rule in self.layers]}

    def names(self, name: str) -> bool:
        """Whether a rule matches this layer's name."""
        return any(fnmatchcase(name, rule.pattern) for rule in self.layers)
