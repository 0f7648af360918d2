"""What a recorder gives, and how it may be asked to go about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Graph

from fxquant.graph.failures import Failure


class CalledTwiceError(Exception):
    """A module whose first call was recorded from inside can't be in its second: start again."""

    def __init__(self, name: str, reason: Failure):
        super().__init__(name)
        self.name, self.reason = name, reason


@dataclass
class Recording:
    """What one pass over a module's forward gave.

    `graph` computes what it does; `failures` has the modules inside that became leaves because
    their forward can't be recorded, by name; `values` the places where a number was answered from
    the example; `passed` the guards that were taken as passing; `constants` are tensors made
    while recording, which the graph reads as attributes; `augmented` says whether tensors were
    changed by `+=` or its kin; `bound` are the arguments that are constants in the graph.
    """

    graph: Graph | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    values: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    constants: dict[str, Tensor] = field(default_factory=dict)
    augmented: bool = False
    bound: dict[str, object] = field(default_factory=dict)

    def noted(self) -> tuple[dict, set, set]:
        """What has been noted so far of leaves, values and guards."""
        return dict(self.failures), set(self.values), set(self.passed)

    def take_back(self, noted: tuple[dict, set, set]) -> None:
        """Forget what was noted since."""
        self.failures, self.values, self.passed = noted


@dataclass(frozen=True)
class Way:
    """How a module is recorded, where the usual way fails or gives a wrong graph.

    `bind_numbers` makes constants of the numbers among the arguments; `in_place` records `x += y`
    as the change of a tensor that it is; `plain_buffers` hands the module its buffers themselves.
    """

    bind_numbers: bool = False
    in_place: bool = False
    plain_buffers: bool = False
