"""The benchmark of a training step, on a small network: what it times and what it reports."""

from __future__ import annotations

import json
import sys

import pytest
import step_time

ARGUMENTS = ["nets:Residual", "--input-shape", "3,16,16", "--batch", "6", "--device", "cpu"]


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_both_are_timed_in_turns(preset, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_time.py", *ARGUMENTS, "--runs", "3", "--json"])
    sys.argv += ["--preset", preset, "--profile"]
    if preset == "default":  # new processes take a while
        monkeypatch.setattr(step_time, "in_child", lambda function, what, args: 1000)
    assert step_time.main() == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    for key in ("iteration_seconds", "plain_seconds", "ratio"):
        low, median, high = facts[key]
        assert 0 < low <= median <= high
    assert facts["memory"].keys() == {"training", "distillation"}
    assert all(number > 0 for number in facts["memory"].values())
    assert "_FakeQuantizeBackward" in printed.err


def test_every_iteration_has_both_steps_and_the_plain_passes_train_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_time.py", *ARGUMENTS])
    args = step_time.parse_args()
    watch = step_time.Stopwatch(step_time.Plain(args), lambda: None)
    before = {name: p.clone() for name, p in watch.plain.second.named_parameters()}
    engine = step_time.make_engine(args, 4, watch)
    engine.run()
    assert len(watch.training) == len(watch.passes) == 4
    assert len(engine.history.curves["fine-tuning/sampler"]) == 4
    assert len(engine.history.curves["fine-tuning/student"]) == 4
    parameters = dict(watch.plain.second.named_parameters())
    assert all((parameters[name] == value).all() for name, value in before.items())
    assert all(p.grad is None for p in parameters.values())
