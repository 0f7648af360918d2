"""The figures that `fxquant bench` gives: plain numbers, which need nothing to be shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call at a number of threads and images: median and quartiles.

    `cpu_ms` is the median of the processor's time, over all threads: on one thread it is what the
    call would take on an idle machine.
    """

    threads: int
    images: int
    runs: int
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Benchmark:
    """What was measured of one file.

    `integer_share` is the part of all kernels' time, one thread and one image, that is spent on
    8-bit integers, `conversion_share` that of going from float to integers and back; `float_ops`
    has the shares of the other operators, largest first. `peak_memory_bytes` is what loading and
    one call at the largest number of images add to an idle process, None where it can't be run.
    `saturating_layers` are those that x86 processors without VNNI get wrong; `processor_note` says
    what to do about them, None where there are none.
    """

    file: str
    size_bytes: int
    peak_memory_bytes: int | None
    latencies: tuple[Latency, ...]
    integer_share: float
    conversion_share: float
    float_ops: dict[str, float]
    saturating_layers: int
    processor_note: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Benchmark:
        """The inverse of `to_dict`."""
        latencies = tuple(Latency(**one) for one in values["latencies"])
        return cls(**{**values, "latencies": latencies})
