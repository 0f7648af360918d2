"""report.json, recipe.toml and the importance cache from elsewhere: refused where they are odd."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_run_folder import folder, small_report

from fxquant.datafree.importance import Importance
from fxquant.errors import OutputError
from fxquant.importance_cache import ImportanceCache
from fxquant.run_folder import REPORT

SHOWN = [
    *(("model", "name"), ("settings", "config", "weight_bits"), ("settings", "recipe", "name")),
    *(("summary", "layers_quantized"), ("size", "float_bytes"), ("bitops", "float")),
    *(("quality", "output_sqnr_db"), ("parity", "passed"), ("parity", "unoptimized", "images")),
    *(("parity", "linears_integer"), ("parity",), ("settings", "config"), ("float",), ("size",)),
]
# A value that stands for none of those above.
ODD = {
    "a list": [1],
    "a table": {"a": 1},
    "text without end": "x" * 5000,
    "a number of 400 digits": 10**400,
    "nothing": None,
}


def read(path: Path, content: str | bytes) -> dict[str, Any]:
    """What a run finds in a report of this content."""
    with folder(path) as run:
        (path / REPORT).write_bytes(content if isinstance(content, bytes) else content.encode())
        return run.read_report()


def refused(path: Path, content: str | bytes) -> str:
    with pytest.raises(OutputError, match=r"report\.json can't be read") as caught:
        read(path, content)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 1000
    return caught.value.message


def changed(keys: tuple[str, ...], change: Callable[[dict, str], object]) -> str:
    """The report after a change of the place down these keys."""
    report = copy.deepcopy(small_report())
    place = report
    for key in keys[:-1]:
        place = place[key]
    change(place, keys[-1])
    return json.dumps(report)


def test_a_good_report_is_read(tmp_path):
    assert read(tmp_path, json.dumps(small_report())) == small_report()


@pytest.mark.parametrize("keys", SHOWN, ids=".".join)
def test_a_report_that_lacks_what_is_shown(keys, tmp_path):
    assert ".".join(keys) in refused(tmp_path, changed(keys, lambda at, key: at.pop(key)))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("keys", SHOWN, ids=".".join)
def test_a_report_with_another_kind_of_value(keys, odd, tmp_path):
    if (keys, odd) == (("float",), "a list"):
        odd = "a table"
    content = changed(keys, lambda at, key: at.update({key: ODD[odd]}))
    assert keys[0] in refused(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        *("", "null", "[]", "1", '"text"', "{", '{"model": ', "[" * 100_000, '{"a":' * 100_000),
        *("NaN", '{"model": NaN}', "1" * 5000, "[[],"), b"\xff\xfe", b"\0" * 100,
        '{"model": {}, "model": {}}',
        json.dumps({key: {} for key in small_report()}),
        "[" + "[]," * 1_000_001 + "[]]",
        json.dumps({**small_report(), "curves": [[[[[[[[[[[[[[1]]]]]]]]]]]]]]}),
        json.dumps({**small_report(), "x" * 10_000: 1}),
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_what_is_no_report(content, tmp_path):
    refused(tmp_path, content)


def test_a_report_larger_than_any(tmp_path, monkeypatch):
    monkeypatch.setattr("fxquant.run_folder.MOST_REPORT", 100)
    assert "larger than 100 bytes" in refused(tmp_path, json.dumps(small_report()))


MEASURED = {"layers": ["a", "b"], "trace": [1.0, 2.0], "standard_error": [0.1, 0.2]}


@pytest.mark.parametrize(
    "content",
    [
        *("", "null", "{}", "[" * 100_000, "1" * 5000, '{"layers": 1}'),
        json.dumps({**MEASURED, "layers": "ab"}),
        json.dumps({**MEASURED, "layers": ["a"]}),
        json.dumps({**MEASURED, "layers": [["a"], {}]}),
        json.dumps({**MEASURED, "trace": [1.0]}),
        json.dumps({**MEASURED, "trace": [1.0, 10**400]}),
        json.dumps({**MEASURED, "trace": [1.0, float("nan")]}),
        json.dumps({**MEASURED, "trace": [1.0, float("inf")]}),
        json.dumps({**MEASURED, "trace": ["1.0", "2.0"]}),
        json.dumps({**MEASURED, "trace": [True, False]}),
        json.dumps({**MEASURED, "trace": {"0": 1.0}}),
        json.dumps({**MEASURED, "evil": 1}),
    ],
    ids=lambda content: repr(content[-40:]),
)
def test_an_odd_measurement_counts_as_none(content, tmp_path):
    (tmp_path / "key.json").write_text(content)
    assert ImportanceCache(tmp_path).read("key") is None


def test_a_measurement_is_kept(tmp_path):
    found = Importance(("a", "b"), (1.0, 2.0), (0.1, 0.2))
    ImportanceCache(tmp_path).write("key", found)
    assert ImportanceCache(tmp_path).read("key") == found
