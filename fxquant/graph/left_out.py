"""What tracing could not look into, told so that a person finds it in their own code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LeftOut:
    """A module that stays a black box in the traced model.

    `name` is its qualified name, '' for the model itself, and `type` its class; `file` and `line`
    are where tracing stopped, None where no line of code is to blame. `hidden` names the layers
    with weights inside it that no region of the traced model holds.
    """

    name: str
    type: str
    file: str | None
    line: int | None
    reason: str
    hidden: tuple[str, ...] = ()
