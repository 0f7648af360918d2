"""Checkpoints from elsewhere: files that are none, and states that are not those of the run."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from small_runs import RECIPES, SHAPE, make, prepared

from fxquant.errors import OutputError
from fxquant.pipeline import train
from fxquant.run_folder import CHECKPOINT, RunFolder
from fxquant.settings import Settings
from fxquant.spec import QConfig
from fxquant.state_files import read_state, write_state
from fxquant.tensor_files import read_tensors

SETTINGS = Settings(SHAPE, QConfig(3, 3), RECIPES["ddaq"])


def entry(shape: list, start: int, end: int, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def outlined(outline: object, **tensors: dict) -> dict:
    return {"__metadata__": {"fxquant.state": json.dumps(outline)}, **tensors}


ONE = {"a": entry([1], 0, 4)}
NAMED = {"0": entry([1], 0, 4)}
FLAT = {"0": entry([2, 2], 0, 16)}
# Header, or its length alone, and how many bytes follow it.
FILES: dict[str, tuple[object, int]] = {
    "no header": (b"", 0),
    "a header of text": (b"text", 0),
    "a header of a list": ([], 0),
    "a header of 2^62 bytes": (2**62, 0),
    "a header of 90 MB": (90_000_000, 0),
    "a header of more than there is": (3, 2),
    "a header without end": (b"[" * 100_000, 0),
    "a header of two same names": (b'{"a": {}, "a": {}}', 0),
    "no state": ({}, 0),
    "another kind of metadata": ({"__metadata__": []}, 0),
    "metadata of numbers": ({"__metadata__": {"fxquant.state": 1}}, 0),
    "more metadata": ({"__metadata__": {"fxquant.state": "1", "x": "y"}}, 0),
    "a tensor of no kind": ({"a": {}}, 0),
    "a tensor of text": ({"a": "text"}, 0),
    "a tensor of an unknown kind": ({"a": entry([1], 0, 4, "CODE")}, 4),
    "a tensor of float8": ({"a": entry([4], 0, 4, "F8_E4M3")}, 4),
    "a kind that is a list": ({"a": entry([1], 0, 4, [])}, 4),
    "a size of thousands of digits": (b'{"a": {"shape": [1%s]}}' % (b"0" * 5000), 0),
    "a size of hundreds of digits": ({"a": entry([10**400], 0, 4)}, 4),
    "a negative size": ({"a": entry([-1], 0, 4)}, 4),
    "a size that is true": ({"a": entry([True], 0, 4)}, 4),
    "a size that is a float": ({"a": entry([1.0], 0, 4)}, 4),
    "sizes that are text": ({"a": entry("1", 0, 4)}, 4),
    "a hundred sizes": ({"a": entry([1] * 100, 0, 4)}, 4),
    "sizes that overflow": ({"a": entry([2**40, 2**40], 0, 0)}, 0),
    "a tensor behind the end": ({"a": entry([10], 0, 40)}, 4),
    "a tensor before the start": ({"a": entry([1], -4, 0)}, 4),
    "a tensor larger than its place": ({"a": entry([2], 0, 4)}, 4),
    "tensors that overlap": ({**ONE, "b": entry([1], 2, 6)}, 6),
    "tensors with a gap": ({**ONE, "b": entry([1], 8, 12)}, 12),
    "bytes of no tensor": (ONE, 8),
    "a place of three numbers": ({"a": {**ONE["a"], "data_offsets": [0, 4, 4]}}, 4),
    "another key": ({"a": {**ONE["a"], "evil": 1}}, 4),
    "a state that is no JSON": ({"__metadata__": {"fxquant.state": "{"}}, 0),
    "a state without end": ({"__metadata__": {"fxquant.state": "[" * 100_000}}, 0),
    "a state nested deep": (outlined([[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]), 0),
    "a state of an unknown part": (outlined({"call": ["os.system", "touch ran"]}), 0),
    "a state of a class": (outlined({"dict": [], "class": "torch.nn.Linear"}), 0),
    "a table that is no list": (outlined({"dict": {"a": 1}}), 0),
    "a table with a key alone": (outlined({"dict": [["a"]]}), 0),
    "a table with a list for a key": (outlined({"dict": [[["a"], 1]]}), 0),
    "a table with a key twice": (outlined({"dict": [["a", 1], ["a", 2]]}), 0),
    "a tuple that is none": (outlined({"tuple": 1}), 0),
    "a tensor that is not there": (outlined({"tensor": "0"}), 0),
    "a tensor with a number for a name": (outlined({"tensor": 0}, **NAMED), 4),
    "a tensor twice": (outlined([{"tensor": "0"}, {"tensor": "0"}], **NAMED), 4),
    "a tensor that is left over": (outlined([], **NAMED), 4),
    "axes in no order": (
        outlined({"tensor": "0", "order": [0, 0], "strides": [2, 1]}, **FLAT), 16,
    ),
    "axes that are text": (outlined({"tensor": "0", "order": "01", "strides": [2, 1]}, **FLAT), 16),
    "strides beyond the end": (
        outlined({"tensor": "0", "order": [0, 1], "strides": [2**40, 1]}, **FLAT), 16,
    ),
    "negative strides": (
        outlined({"tensor": "0", "order": [0, 1], "strides": [-2, 1]}, **FLAT), 16,
    ),
    "too few strides": (outlined({"tensor": "0", "order": [0, 1], "strides": [2]}, **FLAT), 16),
    "a number that is none": ({"__metadata__": {"fxquant.state": "NaN"}}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_checkpoint(name, tmp_path):
    header, size = FILES[name]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = header if isinstance(header, int) else len(text)
    content = struct.pack("<Q", length) + (b"" if header == length else text) + b"\0" * size
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(OutputError, match=r"checkpoint\.safetensors can't be read: ") as caught:
        RunFolder(tmp_path, SETTINGS, {}).load_checkpoint()
    assert caught.value.exit_code == 2
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("content", [b"\x00\x00\xc0\x7f", b"\x01\x00\xff\xff"])
def test_values_that_are_no_numbers(content, tmp_path):
    header = json.dumps(outlined({"tensor": "0"}, **NAMED)).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header + content)
    with pytest.raises(ValueError, match="no numbers"):
        read_state(tmp_path / "file")


def test_truth_values_of_another_kind(tmp_path):
    header = json.dumps({"a": entry([1], 0, 1, "BOOL")}).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header + b"\2")
    with pytest.raises(ValueError, match="neither true nor false"):
        read_tensors(tmp_path / "file")


def test_every_bit_of_the_tensors_counts(tmp_path):
    write_state({"a": torch.arange(3.0)}, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for place in range(len(content) - 12, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            read_state(tmp_path / "damaged")


def test_every_cut_of_a_file_is_refused(tmp_path):
    write_state({"a": torch.arange(5.0), "b": [1, None, "x"]}, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ValueError):  # noqa: PT011, which of them doesn't matter
            read_state(tmp_path / "cut")


KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
KINDS += [torch.int16, torch.int8, torch.uint8, torch.bool]


def test_files_are_those_of_safetensors(tmp_path):
    """What this package writes the library reads, and the other way round."""
    values = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in KINDS}
    values |= {"empty": torch.zeros(0, 3), "number": torch.tensor(1.5)}
    (tmp_path / "theirs").write_bytes(save(values))
    write_state(values, tmp_path / "ours")
    for found in (read_tensors(tmp_path / "theirs")[0], read_state(tmp_path / "ours")):
        assert found.keys() == values.keys()
        assert all(torch.equal(found[name], value) for name, value in values.items())
    assert len(load_file(tmp_path / "ours")) == len(values)


LAID_OUT = {
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last of one": torch.randn(4, 1, 3, 3).to(memory_format=torch.channels_last),
    "transposed": torch.randn(3, 4).T,
    "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
    "a part": torch.randn(6, 4)[1:3],
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_tensors_lie_as_they_lay(name, tmp_path):
    write_state(LAID_OUT[name], tmp_path / "state")
    found = read_state(tmp_path / "state")
    assert torch.equal(found, LAID_OUT[name])
    assert found.stride() == LAID_OUT[name].stride()


def test_plain_values_come_back_as_they_were(tmp_path):
    state = {"a": [1, -2.5, 1e-300, None, True, "x\n\0"], 3: (0.9, ()), "d": {}}
    write_state(state, tmp_path / "state")
    assert read_state(tmp_path / "state") == state
    with pytest.raises(TypeError, match="a state can't hold a set"):
        write_state({1, 2}, tmp_path / "state")


@pytest.fixture(scope="module")
def states() -> dict[str, dict]:
    """States of runs that have finished, by recipe."""
    engines = {name: make(RECIPES[name], seed=1) for name in ("ddaq", "paper", "zeroq")}
    for engine in engines.values():
        engine.run()
    return {name: engine.state_dict() for name, engine in engines.items()}


def _set(*path: object) -> Callable[[dict], None]:
    """Put the last of these at the place that the others lead to."""

    def change(state: dict) -> None:
        *way, key, value = path
        place: Any = state
        for step in way:
            place = place[step]
        place[key] = value

    return change


def _moment(name: str, value: object) -> Callable[[dict], None]:
    def change(state: dict) -> None:
        next(iter(state["optimizer"]["state"].values()))[name] = value

    return change


def _drop(key: str) -> Callable[[dict], None]:
    return lambda state: state.pop(key)


GROUP = ("optimizer", "param_groups", 0)
IMAGES = torch.zeros(2, *SHAPE)
STATES: dict[str, Callable[[dict], object]] = {
    "a phase that is not there": _set("phase_index", 99),
    "a phase before the first": _set("phase_index", -1),
    "a phase that is true": _set("phase_index", True),
    "a step behind the last": _set("step", 10**12),
    "a step before the first": _set("step", -5),
    "a step that is text": _set("step", "1"),
    "no random numbers": _set("rng", None),
    "few random numbers": _set("rng", torch.zeros(3, dtype=torch.uint8)),
    "random numbers that are floats": _set("rng", torch.zeros(5056)),
    "a student of text": _set("student", "x"),
    "a student of nothing": _set("student", {}),
    "a student of texts": _set("student", {"a": "b"}),
    "an optimiser of text": _set("optimizer", "adam"),
    "an optimiser of nothing": _set("optimizer", {}),
    "an optimiser without groups": _set("optimizer", "param_groups", []),
    "a learning rate of text": _set(*GROUP, "lr", "fast"),
    "a learning rate of infinity": _set(*GROUP, "lr", float("inf")),
    "betas of one": _set(*GROUP, "betas", (1.0, 1.0)),
    "betas of text": _set(*GROUP, "betas", "ab"),
    "another way to step": _set(*GROUP, "fused", True),
    "another eps": _set(*GROUP, "eps", 0),
    "another option": _set(*GROUP, "hook", 1),
    "parameters of text": _set(*GROUP, "params", "0"),
    "moments of another shape": _moment("exp_avg", torch.zeros(7)),
    "moments of text": _moment("exp_avg_sq", "x"),
    "steps of several numbers": _moment("step", torch.zeros(3)),
    "a sampler of nothing": _set("sampler", {}),
    "a sampler of text": _set("sampler", "x"),
    "a generator of nothing": _set("sampler", "network", {}),
    "a replay of other images": _set("replay", "images", torch.zeros(2, 1, 1)),
    "a replay of no images": _set("replay", "kept", torch.zeros(0, *SHAPE)),
    "a replay without images": _set("replay", "kept", None),
    "a replay of whole numbers": _set("replay", "kept", IMAGES.long()),
    "a replay at no place": _set("replay", "position", -1),
    "curves of text": _set("history", "curves", {"a": "b"}),
    "curves of other numbers": _set("history", "curves", {"a": torch.zeros(3)}),
    "importance of text": _set("importance", "x"),
    "importance of lists": _set(
        "importance", {"layers": ["a"], "trace": [1.0], "standard_error": [1.0]}
    ),
    "widths of text": _set("widths", "x"),
    "widths of nothing": _set("widths", {}),
    "images held back of text": _set("held_back", "x"),
    "images held back of another size": _set("held_back", torch.zeros(2, 3, 1, 1)),
    "no images held back": _set("held_back", None),
    "a choice of nothing": _set("choice", {}),
    "a choice of numbers": _set("choice", {"trains": 1, "kept": "calibrated", "before": None}),
    "seconds of text": _set("seconds", {"a": "b"}),
    "a unit of nothing": _set("reconstructor", "current", {}),
    "another part": _set("evil", 1),
    **{f"no {key}": _drop(key) for key in ("student", "rng", "optimizer", "choice", "held_back")},
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_something_else_is_refused(name, states):
    state = copy.deepcopy(states["ddaq"])
    STATES[name](state)
    with pytest.raises(OutputError, match="is not that of this run: ") as caught:
        train(prepared(), SETTINGS, state=state)
    assert caught.value.exit_code == 2
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("name", ["paper", "zeroq"])
def test_the_state_of_another_recipe_is_refused(name, states):
    with pytest.raises(OutputError, match="is not that of this run: "):
        train(prepared(), SETTINGS, state=copy.deepcopy(states[name]))


def test_the_state_of_the_run_is_taken(states, tmp_path: Path):
    write_state(states["ddaq"], tmp_path / "state")
    engine = train(prepared(), SETTINGS, state=read_state(tmp_path / "state"))
    assert torch.equal(engine.held_back, states["ddaq"]["held_back"])
