"""Guards: assertions, and branches that only raise. An input that passes takes the other way."""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from types import FrameType

_HARMLESS = {"warn", "warn_once", "warning", "info", "debug", "print"}


def is_guard(frame: FrameType) -> bool:
    """Whether the line that a frame is at belongs to the condition of a guard.

    A guard is an `assert`, or an `if` with a side that ends in `raise`, or that only warns. Code
    whose example run didn't raise goes past it with every input that it is meant for.
    """
    return frame.f_lineno in _guard_lines(frame.f_code.co_filename)


@lru_cache(maxsize=256)
def _guard_lines(file: str) -> frozenset[int]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return frozenset()
    tests = [node.test for node in ast.walk(tree) if _is_guard(node)]
    return frozenset(
        line for test in tests for line in range(test.lineno, (test.end_lineno or test.lineno) + 1)
    )


def _is_guard(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.If):
        return False
    only_warns = not node.orelse and all(_is_harmless(statement) for statement in node.body)
    return _raises(node.body) or _raises(node.orelse) or only_warns


def _raises(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Raise)


def _is_harmless(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return False
    function = statement.value.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in _HARMLESS
