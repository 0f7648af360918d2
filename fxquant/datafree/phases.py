"""One stretch of an engine's run, and what becomes of it where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxquant.errors import ResourceError
from fxquant.memory import is_out_of_memory


@dataclass(frozen=True)
class Phase:
    """One stretch of the run: `run(step)` is called `total` times.

    `trains`: it trains a calibrated student, and is left out where that is close enough.
    """

    name: str
    total: int
    run: Callable[[int], None]
    trains: bool = False

    def run_step(self, step: int, batch: int, device: object) -> None:
        """One step of the phase; raises ResourceError where it needs more memory than there is.

        It is not tried again on fewer images: statistics of a batch can't be had in parts, and
        what came out would depend on how much memory happened to be free.
        """
        try:
            self.run(step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"memory ran out on {device} in step {step + 1} of {self.total} of the "
                f"{self.name}, with {batch} images at a time",
                "free memory and run the same command again, which goes on from the last "
                "checkpoint; or begin anew with schedule.parts = 4, which trains the same in less "
                "memory, or a smaller schedule.batch in recipe.toml",
            ) from error
