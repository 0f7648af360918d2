"""Names of modules and tensors that a graph may hold: torch.fx writes them into source it compiles.

The reader of model files refuses odd names, too; this wall stands also where a network came another
way, and where a name is that of something else than a module.
"""

from __future__ import annotations

import keyword
import re

from torch import nn
from torch.fx import GraphModule

from fxquant.errors import TraceError
from fxquant.wording import shown

# A part of a path: an identifier, the number of a child, or either with dashes.
_PART = re.compile(r"[\w-]+")
_KINDS = {"call_module": "module", "get_attr": "tensor", "placeholder": "argument"}


class NameRefusedError(TraceError):
    """A name can't be written into a graph."""


def require_plain_name(kind: str, target: object) -> None:
    """Raise NameRefusedError where the target of a node is no dotted path of identifiers."""
    if kind == "call_method":
        reason = None if isinstance(target, str) and target.isidentifier() else _IS_CODE
        what = "method"
    elif kind in _KINDS:
        what, reason = _KINDS[kind], _reason(kind, str(target))
    else:
        return
    if reason:
        raise NameRefusedError(
            f"the {what} called '{shown(target, 200)}' can't be traced: {reason}",
            "rename it: letters, digits, underscores and dashes, with dots between modules",
        )


_IS_CODE = "its name is no dotted path of identifiers"


def _reason(kind: str, target: str) -> str | None:
    path = target.lstrip("*") if kind == "placeholder" else target
    parts = path.split(".")
    if not all(_PART.fullmatch(part) for part in parts):
        return _IS_CODE
    if any(map(keyword.iskeyword, parts)):
        return "a part of its name is a keyword of Python"
    if kind == "placeholder":
        return None if path.isidentifier() else _IS_CODE
    owners = [GraphModule, *[nn.Module] * (len(parts) - 1)]
    taken = [part for part, owner in zip(parts, owners, strict=True) if hasattr(owner, part)]
    return f"torch.fx has '{taken[0]}' for something else" if taken else None
