"""The engine on both recipes: what it changes, that seeds repeat, shapes, and errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import ALL, ConvBn
from small_runs import RECIPES, SHAPE, make, prepared, same, snapshot
from torch import Tensor, nn

import fxquant
from fxquant.calibration import calibrate
from fxquant.datafree import engine as engine_module
from fxquant.datafree.checks import require_sound
from fxquant.datafree.recipe import Polish
from fxquant.datafree.watcher import Watcher
from fxquant.errors import DivergenceError, ModelLoadError, SettingError
from fxquant.graph.prepare import prepare
from fxquant.quantizer import Quantizer
from fxquant.spec import QConfig


@pytest.fixture(autouse=True)
def watched_at_every_step(monkeypatch):
    monkeypatch.setattr(engine_module, "FLUSH_EVERY", 1)
    monkeypatch.setattr(engine_module, "HELD_BACK", 12)


@pytest.mark.parametrize("name", RECIPES)
def test_the_teacher_stays_and_the_student_is_calibrated(name):
    p = prepared()
    teacher, student = snapshot(p.teacher), snapshot(p.student)
    engine = make(RECIPES[name], p)
    engine.run()
    assert same(snapshot(engine.teacher), teacher)
    assert not any(parameter.requires_grad for parameter in p.teacher.parameters())
    quantizers = [m for m in p.student.modules() if isinstance(m, Quantizer)]
    assert all(q.enabled for q in quantizers)
    assert all((q.log_scale != 0).all() for q in quantizers)
    changed = {
        key for key, value in p.student.state_dict().items() if (value != student[key]).any()
    }
    weights = {key for key in student if key.endswith(".weight")}
    biases = {key for key in student if key.endswith(".bias")}
    schedule = RECIPES[name].schedule
    for keys, adjusted in ((weights, schedule.round_weights), (biases, schedule.correct_biases)):
        trained = engine.choice.kept != "calibrated"
        assert keys <= changed if trained or adjusted else not keys & changed


PHASES = {
    "ddaq": {
        "warm-up": 3,
        "importance": 1,
        "polish": 4,
        "calibration": 1,
        "reconstruction": 8,
        "fine-tuning": 4,
    },
    "ddaq without fine-tuning": {
        **{"warm-up": 3, "importance": 1, "polish": 4, "calibration": 1, "reconstruction": 8},
    },
    "paper": {"warm-up": 3, "importance": 1, "calibration": 1, "fine-tuning": 4},
    "paper without fine-tuning": {
        **{"warm-up": 3, "importance": 1, "calibration": 1, "adversarial": 2, "recalibration": 1},
    },
    "zeroq": {"warm-up": 6, "calibration": 1},
}


class Recorder(Watcher):
    def __init__(self):
        self.phases, self.steps = [], []

    def phase(self, name: str, total: int) -> None:
        self.phases.append((name, total))

    def step(self, done: int, values: dict[str, float]) -> None:
        self.steps.append((self.phases[-1][0], done, values))


@pytest.mark.parametrize("name", RECIPES)
def test_a_watcher_is_told_of_phases_steps_and_losses(name):
    watcher = Recorder()
    engine = make(RECIPES[name], watcher=watcher)
    engine.run()
    assert watcher.phases == list(PHASES[name].items())
    assert [step[:2] for step in watcher.steps] == [
        (phase, done + 1) for phase, total in PHASES[name].items() for done in range(total)
    ]
    assert list(engine.seconds) == list(PHASES[name])
    curves = engine.history.curves
    for phase in ("warm-up", "polish"):
        total = PHASES[name].get(phase, 0)
        assert len(curves.get(f"{phase}/sampler.bn_statistics", [])) == total
    assert watcher.steps[0][2]["warm-up/sampler"] == curves["warm-up/sampler"][0]
    if RECIPES[name].schedule.steps:
        due = 4 // RECIPES[name].schedule.sampler_every
        assert len(curves["fine-tuning/sampler.features"]) == due
        assert len(curves["fine-tuning/student.features"]) == 4


def test_the_losses_of_a_step_add_up_to_its_total():
    engine = make(RECIPES["ddaq"])
    engine.run()
    curves, weights = engine.history.curves, {"bn_statistics": 0.5, "features": -0.5}
    for step, total in enumerate(curves["fine-tuning/sampler"]):
        parts = [w * curves[f"fine-tuning/sampler.{k}"][step] for k, w in weights.items()]
        assert abs(total - sum(parts)) < 1e-5


@pytest.mark.parametrize(
    ("name", "used", "apart"), [("ddaq", 12, 4), ("paper", 12, 12), ("zeroq", 9, 3)]
)
def test_images_are_held_back_from_calibration_and_training(name, used, apart, monkeypatch):
    seen = []

    def calibrate_and_tell(student: nn.Module, images: Tensor, **options) -> None:
        seen.append(images)
        calibrate(student, images, **options)

    monkeypatch.setattr(engine_module, "calibrate", calibrate_and_tell)
    engine = make(RECIPES[name])
    engine.run()
    (images,) = seen
    assert (len(images), len(engine.held_back)) == (used, apart)
    kept = images if engine.replay is None else torch.cat([images, engine.replay.kept])
    distances = (kept[:, None] - engine.held_back[None]).flatten(2).abs().amax(2)
    assert distances.min() > 1e-3


def test_ranges_are_those_of_the_recipes_estimator():
    scales = []
    for ranges in ("search", "min-max"):
        schedule = replace(RECIPES["zeroq"].schedule, ranges=ranges)
        engine = make(replace(RECIPES["zeroq"], schedule=schedule))
        engine.run()
        scales += [torch.stack([q.scale for q in activation_quantizers(engine.student)])]
    assert (scales[0] <= scales[1] * (1 + 1e-6)).all()
    assert (scales[0] < scales[1]).any()


def activation_quantizers(student: nn.Module) -> list[Quantizer]:
    quantizers = [m for m in student.modules() if isinstance(m, Quantizer)]
    return [q for q in quantizers if q.spec.channel_axis is None]


def test_polishing_brings_images_closer_to_the_statistics():
    engine = make(replace(RECIPES["ddaq"], polish=Polish(steps=6, batches=2, batch=8, lr=0.05)))
    engine.run()
    losses = engine.history.curves["polish/sampler.bn_statistics"]
    assert losses[5] < 0.9 * losses[0]
    assert losses[11] < 0.9 * losses[6]
    assert [len(batch) for batch in engine.polisher.finished] == [8, 8]


@pytest.mark.parametrize("name", ["ddaq", "paper without fine-tuning", "zeroq"])
def test_a_seed_repeats_to_the_bit_and_another_differs(name):
    engines = []
    for index, seed in enumerate((1, 1, 2)):
        torch.manual_seed(index)  # nothing may come from the global generator
        engines.append(make(RECIPES[name], seed=seed))
        engines[-1].run()
    first, second, other = engines
    assert same(snapshot(first.student), snapshot(second.student))
    assert torch.equal(first.held_back, second.held_back)
    assert first.history.curves == second.history.curves
    assert first.importance == second.importance
    assert not same(snapshot(first.student), snapshot(other.student))
    assert not torch.equal(first.held_back, other.held_back)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make(RECIPES["ddaq"]).run()
    assert torch.equal(torch.rand(3), expected)


def test_nan_in_the_teacher_is_told_before_training():
    model = ALL["shared_relu"]()
    with torch.no_grad():
        model.first[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelLoadError, match=r"'first\.0\.weight' .* not finite: 1 of 216"):
        make(RECIPES["ddaq"], prepare(model, QConfig(), SHAPE))


@pytest.mark.parametrize("name", ["ddaq", "zeroq"])
def test_nan_in_the_images_names_the_curve(name):
    engine = make(RECIPES[name])
    with torch.no_grad():
        if name == "ddaq":
            engine.sampler.network.project.bias[0] = torch.nan
        else:
            engine.sampler.draw()
            engine.sampler.images[0, 0, 0, 0] = torch.nan
    with pytest.raises(DivergenceError, match=r"diverged: warm-up/sampler.* is nan at step 1") as e:
        engine.run()
    assert "of the generator is not finite" in e.value.message


def test_a_diverging_student_names_the_curve_and_what_to_lower():
    recipe = RECIPES["ddaq"]
    recipe = replace(recipe, schedule=replace(recipe.schedule, student_lr=1e9, scale_lr=1e9))
    with pytest.raises(DivergenceError, match=r"fine-tuning/\S+ is \S+ at step \d") as caught:
        make(recipe).run()
    assert "learning rates" in caught.value.hint


def test_a_parameter_that_is_not_finite_is_named():
    p = prepared()
    require_sound(p.student)
    with torch.no_grad():
        p.student.head.bias[3] = torch.inf
    with pytest.raises(DivergenceError, match=r"head\.bias of the student is not finite"):
        require_sound(p.student)


@pytest.mark.parametrize("name", ["ddaq", "paper", "zeroq"])
def test_a_model_without_batch_norm_has_nothing_to_match(name):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    with pytest.raises(SettingError, match="there is nothing to match") as caught:
        make(RECIPES[name], prepare(model, QConfig(), SHAPE))
    assert "fit_recipe" in caught.value.hint


class OddInput(nn.Module):
    """Takes images of any size and channel count."""

    def __init__(self, channels: int):
        super().__init__()
        self.stem, self.last = ConvBn(channels, 6), ConvBn(6, 8, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("shape", [(1, 10, 14), (3, 8, 20), (4, 13, 9)])
@pytest.mark.parametrize("name", ["ddaq", "zeroq"])
def test_images_have_the_models_shape(name, shape):
    p = prepare(OddInput(shape[0]).eval(), QConfig(), shape)
    engine = make(RECIPES[name], p)
    engine.run()
    assert engine.held_back.shape[1:] == shape
    assert torch.isfinite(engine.student(engine.held_back)).all()


class Sequence(nn.Module):
    """A network on sequences, whose input is no image."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x))).mean(2))


def test_sequences_go_with_zeroq_and_are_refused_by_the_generator():
    p = prepare(Sequence().eval(), QConfig(), (4, 20))
    with pytest.raises(SettingError, match=r"generates images .* has 2 axes") as caught:
        make(RECIPES["ddaq"], p)
    assert "zeroq" in caught.value.hint
    engine = make(RECIPES["zeroq"], p)
    engine.run()
    assert engine.held_back.shape == (3, 4, 20)


def test_quantize_in_one_call():
    model = ALL["residual"]()
    before = snapshot(model)
    result = fxquant.quantize(model, bits=8, input_shape=SHAPE, recipe=RECIPES["zeroq"], seed=3)
    assert same(snapshot(model), before)
    assert result.settings.seed == 3
    assert result.settings.recipe == RECIPES["zeroq"]
    assert result.images.shape == (3, *SHAPE)
    assert not any(p.requires_grad for p in result.student.parameters())
    difference = (result.student(result.images) - model(result.images)).abs().max()
    assert 0 < difference < 0.2
    without = fxquant.quantize(
        model, bits=8, input_shape=SHAPE, recipe=RECIPES["paper"], finetune=False
    )
    assert without.settings.recipe == RECIPES["paper without fine-tuning"]


@pytest.mark.parametrize("widths", [{}, {"bits": 4, "config": QConfig()}])
def test_quantize_wants_either_bits_or_a_config(widths):
    with pytest.raises(SettingError, match="either bits or a QConfig"):
        fxquant.quantize(ALL["plain"](), input_shape=SHAPE, **widths)


class NoWaiting(Watcher):
    """Lets torch raise where the host waits for the GPU in a step of fine-tuning."""

    def __init__(self):
        self.now, self.steps = "", 0

    def phase(self, name: str, total: int) -> None:
        self.now = name

    def checkpoint(self, engine) -> None:
        within = self.now == "fine-tuning" and 2 <= engine.step < engine_module.FLUSH_EVERY - 1
        torch.cuda.set_sync_debug_mode("error" if within else "default")
        self.steps += within


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["ddaq", "paper"])
def test_the_host_does_not_wait_for_a_gpu(name, monkeypatch):
    monkeypatch.setattr(engine_module, "FLUSH_EVERY", 12)
    recipe = RECIPES[name]
    recipe = replace(recipe, schedule=replace(recipe.schedule, steps=12))
    watcher = NoWaiting()
    try:
        make(recipe, watcher=watcher, device="cuda").run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watcher.steps == 9


@pytest.mark.parametrize(("wanted", "trains"), [(0.0, True), (1.0, False), (200.0, True)])
def test_a_student_that_is_close_enough_is_not_trained(wanted, trains):
    recipe, watcher = RECIPES["ddaq"], Recorder()
    recipe = replace(recipe, schedule=replace(recipe.schedule, train_below=wanted))
    engine = make(recipe, watcher=watcher)
    engine.run()
    phases = {name for name, _ in watcher.phases}
    training = {"reconstruction", "fine-tuning"}
    assert phases & training == (training if trains else set())
    assert engine.choice.trains is trains
    assert trains or engine.choice.kept == "calibrated"
