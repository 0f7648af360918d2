"""Who looks on: several watchers, TensorBoard's events, and training that leads away."""

from __future__ import annotations

import sys
from dataclasses import replace

import nets
import pytest
from small_cli import artifacts, small_command
from small_runs import RECIPES, SHAPE, make

import fxquant
from fxquant.cli.main import run
from fxquant.datafree import divergence
from fxquant.datafree import engine as engine_module
from fxquant.datafree.divergence import require_convergence
from fxquant.datafree.recipe import Term
from fxquant.errors import DivergenceError


class Teller(fxquant.Watcher):
    """Writes down what it was told, and by which name."""

    def __init__(self, name: str, told: list):
        self.name, self.told = name, told

    def phase(self, name: str, total: int) -> None:
        self.told.append((self.name, "phase", name))

    def finish(self, engine) -> None:
        self.told.append((self.name, "finish", engine.step))


def test_several_watchers_are_told_in_turn():
    told = []
    watcher = fxquant.Watchers(Teller("a", told), Teller("b", told))
    make(RECIPES["zeroq"], watcher=watcher).run()
    assert told == [
        (name, what, which)
        for what, which in (("phase", "warm-up"), ("phase", "calibration"), ("finish", 0))
        for name in "ab"
    ]


def test_what_a_watcher_raises_ends_the_run():
    class Stop(Exception):  # noqa: N818
        pass

    class Stopper(fxquant.Watcher):
        def checkpoint(self, engine) -> None:
            if engine.step == 2:
                raise Stop

    model = nets.ALL["plain"]()
    with pytest.raises(Stop):
        fxquant.quantize(
            model, bits=4, input_shape=SHAPE, recipe=RECIPES["ddaq"], watcher=Stopper()
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorboard")


def test_tensorboard_gets_losses_rates_and_images_and_changes_no_result(folder, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command = small_command(folder)
    assert run([*command, str(folder / "plain")]) == 0
    monkeypatch.setattr(engine_module, "FLUSH_EVERY", 2)
    assert run([*command, str(folder / "run"), "--tensorboard"]) == 0
    assert artifacts(folder / "run") == artifacts(folder / "plain")
    events = accumulator.EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    scalars, images = events.Tags()["scalars"], events.Tags()["images"]
    report = (folder / "run" / "report.json").read_text()
    assert {"warm-up/sampler.bn_statistics", "fine-tuning/student.features"} <= set(scalars)
    assert {"warm-up/rate.sampler", "fine-tuning/rate.student"} <= set(scalars)
    assert "fine-tuning/steps per second" in scalars
    assert any(name.startswith("warm-up/images") for name in images)
    losses = events.Scalars("fine-tuning/student.features")
    assert [event.step for event in losses] == [2, 4]
    assert all(event.value > 0 for event in losses)
    assert f"{losses[-1].value:.4g}"[:5] in report
    rates = [event.value for event in events.Scalars("fine-tuning/rate.student")]
    assert 1 > rates[0] > rates[1] > 0  # half a cosine


def test_tensorboard_that_is_missing_is_told_before_the_run(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run([*small_command(folder), str(tmp_path / "run"), "--tensorboard"]) == 2
    said = capsys.readouterr().err
    assert "TensorBoard isn't installed" in said
    assert "pip install 'fxquant[tensorboard]'" in said
    assert "warm-up" not in said


def test_a_student_worse_than_none_ends_the_run(monkeypatch):
    monkeypatch.setattr(divergence, "BLOCK", 3)
    monkeypatch.setattr(engine_module, "FLUSH_EVERY", 1)
    recipe = RECIPES["paper"]
    schedule = replace(recipe.schedule, steps=40, student_lr=300.0, scale_lr=1e-4)
    engine = make(replace(recipe, schedule=schedule))
    with pytest.raises(DivergenceError, match=r"was at least \S+ in the last 3 of \d+ steps") as e:
        engine.run()
    assert e.value.exit_code == 5
    assert "student_lr" in e.value.hint
    assert engine.step < 40


TERM = Term("features", 1.0, weighting="layer")


class Zeros:
    def error_of_zeros(self, term: Term) -> float:
        return 3.0


@pytest.mark.parametrize(
    ("began", "now", "ends"),
    [(0.1, 5.9, False), (0.1, 6.1, True), (4.0, 6.1, False), (4.0, 8.1, True)],
)
def test_worse_than_zeros_and_than_at_first(began, now, ends):
    curves = {"fine-tuning/student.features": [began] * 20 + [1.0] * 5 + [now] * 20}
    if ends:
        with pytest.raises(DivergenceError):
            require_convergence(curves, Zeros(), [TERM])
    else:
        require_convergence(curves, Zeros(), [TERM])
    curves["fine-tuning/student.features"][-1] = 0.5  # one good step
    require_convergence(curves, Zeros(), [TERM])
    require_convergence({}, Zeros(), [TERM])
    require_convergence(curves, Zeros(), [Term("output")])


def test_the_error_of_zeros_is_what_zeros_have():
    engine = make(RECIPES["paper"])
    engine.run()
    images = engine.held_back
    for weighting in ("none", "layer", "sample"):
        term = Term("features", weighting=weighting)
        view = engine.objective.compare(engine.objective.view(images, teacher_grad=False))
        zeros = {name: value * 0 for name, value in view.student_features.items()}
        losses = engine.objective.losses([term], replace(view, student_features=zeros))
        _, value = losses["features"]
        assert abs(float(value.detach()) - engine.objective.error_of_zeros(term)) < 1e-3
