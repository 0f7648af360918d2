"""Why a module's code can't be recorded, in a person's words and with the line that says so."""

from __future__ import annotations

import linecache
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fxquant.graph.proxies import ExampleProxy, UnansweredError

_HERE = str(Path(__file__).parent)
# Lines of a statement that are quoted.
_LONGEST = 4


@dataclass(frozen=True)
class Failure:
    """Where recording stopped, in code that is neither torch's nor this package's, and why."""

    file: str
    line: int
    reason: str


def failure(error: Exception) -> Failure:
    """The innermost line of the user's or the zoo's code that `error` went through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_foreign(f.filename)]
    file, line = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
    code = _code(file, line)
    return Failure(file, line, f"it {_what(error)}: `{code}`" if code else f"it {_what(error)}")


def source_line(frame: FrameType) -> str:
    """`code` file:line of the innermost foreign frame at or above `frame`."""
    while frame.f_back and not _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"`{_code(file, line)}` {file}:{line}"


def _code(file: str, line: int) -> str:
    """The code that starts at a line, up to where its brackets close, in one line."""
    code = ""
    for number in range(line, line + _LONGEST):
        code = f"{code} {linecache.getline(file, number).strip()}".strip()
        if all(code.count(opening) <= code.count(closing) for opening, closing in ("()", "[]")):
            break
    return code


def _is_foreign(file: str) -> bool:
    parts = Path(file).parts
    is_ours = str(Path(file).parent) == _HERE
    return "torch" not in parts and not is_ours and not file.startswith("<")


def _what(error: Exception) -> str:
    if isinstance(error, UnansweredError):
        return str(error)
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    said = said.replace(ExampleProxy.__name__, "traced value")
    return f"does what can't be recorded ({said})"
