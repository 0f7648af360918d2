"""Loss curves that cost no host synchronisation while they grow, and notice what diverges."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import DivergenceError


class History:
    """Values by curve name, one a step; device tensors are read in blocks by `flush`."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}
        self._pending: list[tuple[str, Tensor]] = []

    def add(self, phase: str, values: dict[str, Tensor]) -> None:
        """Append one step's values, without waiting for them."""
        self._pending += [(f"{phase}/{name}", value.detach()) for name, value in values.items()]

    def flush(self) -> dict[str, float]:
        """Read what is pending; the newest value of each curve that it holds.

        Raises DivergenceError for a value that is not finite.
        """
        if not self._pending:
            return {}
        names = [name for name, _ in self._pending]
        numbers = torch.stack([value.float() for _, value in self._pending]).tolist()
        self._pending.clear()
        for name, number in zip(names, numbers, strict=True):
            if not math.isfinite(number):
                step = len(self.curves.get(name, ())) + 1
                raise DivergenceError(
                    f"training diverged: {name} is {number} at step {step}",
                    "lower the learning rates (sampler.lr, schedule.student_lr, "
                    "reconstruction.rounding_lr) in recipe.toml",
                )
            self.curves.setdefault(name, []).append(number)
        return dict(zip(names, numbers, strict=True))

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        return {"curves": {n: torch.tensor(v, dtype=torch.float64) for n, v in self.curves.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curves = {name: values.tolist() for name, values in state["curves"].items()}
