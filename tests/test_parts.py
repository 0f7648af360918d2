"""A batch in parts: the gradients of the whole for every loss and weighting, or a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets import ALL
from small_runs import RECIPES, SHAPE, make
from torch import Tensor, nn

from fxquant.calibration import calibrate
from fxquant.datafree.history import History
from fxquant.datafree.objective import Objective
from fxquant.datafree.recipe import Term
from fxquant.datafree.steps import Steps
from fxquant.errors import SettingError
from fxquant.graph.insert_taps import BN_TAPS, FEATURE_TAPS
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig

BATCH = 7  # which no number of parts shares out evenly


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def objective(model: nn.Module) -> Objective:
    """In double precision, in which parts and the whole agree to the last digits."""
    prepared = prepare(model, QConfig(3, 3), SHAPE)
    calibrate(prepared.student, noise(8, *SHAPE).float())
    return Objective(prepared.teacher.double(), prepared.student.double())


def gradients(o: Objective, terms: list[Term], parts: int, *, student: bool) -> dict:
    """Of one step's images or of the student, with the losses, by name."""
    steps, images = Steps(o, History(), parts), noise(BATCH, *SHAPE, seed=3)
    o.student.zero_grad(set_to_none=True)
    o.student.requires_grad_(student)
    if not student:
        images.requires_grad_()
    steps._descend("", "", terms, images)
    found = {name: p.grad for name, p in o.student.named_parameters() if p.grad is not None}
    assert bool(found) == student
    found |= {} if student else {"images": images.grad}
    return found | {n: torch.tensor(v) for n, v in steps.history.flush().items()}


@pytest.mark.parametrize("weighting", ["none", "layer", "sample"])
@pytest.mark.parametrize("distance", ["l1", "mse"])
@pytest.mark.parametrize("student", [False, True])
def test_parts_have_the_gradients_and_losses_of_the_whole(student, distance, weighting):
    o = objective(ALL["shared_relu"]())
    o.importance = {
        BN_TAPS: torch.tensor([0.7, 3.0, 0.0]).double(),
        FEATURE_TAPS: torch.tensor([2.5, 0.4]).double(),
    }
    terms = [
        Term("features", -0.5, weighting=weighting, distance=distance),
        Term("output", 0.3),
    ]
    terms += [] if student else [Term("bn_statistics", 0.5, weighting=weighting)]
    whole = gradients(o, terms, 1, student=student)
    for parts in (2, 3, 5, 100):
        found = gradients(o, terms, parts, student=student)
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


@pytest.mark.parametrize("name", ["paper", "ddaq", "paper without fine-tuning"])
def test_a_run_in_parts_comes_out_as_one_in_a_piece(name):
    """The same losses, but for values that lie on the edge of a grid."""
    schedule = replace(RECIPES[name].schedule, keep_closer=False, round_weights=False)
    whole, parts = (
        make(replace(RECIPES[name], schedule=replace(schedule, parts=count))) for count in (1, 4)
    )
    whole.run()
    parts.run()
    assert whole.history.curves.keys() == parts.history.curves.keys()
    for curve, values in whole.history.curves.items():
        found = torch.tensor(parts.history.curves[curve])
        assert (found - torch.tensor(values)).abs().max() < 0.02 * max(map(abs, values)), curve


class TimeFirst(nn.Module):
    """An output for each row of each image, the rows in its first dimension."""

    def __init__(self):
        super().__init__()
        self.bn, self.linear = nn.BatchNorm2d(3), nn.Linear(3 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.bn(x).permute(2, 0, 1, 3).flatten(2))


@pytest.mark.parametrize("batch", [7, 8])  # of 16 rows: no share for each image, or a wrong one
def test_what_is_not_by_the_image_is_refused_in_parts(batch):
    o = objective(TimeFirst().eval())
    images, terms = noise(batch, *SHAPE).requires_grad_(), [Term("features"), Term("output")]
    Steps(o, History())._descend("", "", terms, images)
    assert images.grad.abs().max() > 0
    with pytest.raises(SettingError, match="one image after the other") as told:
        Steps(o, History(), 2)._descend("", "", terms, images)
    assert told.value.hint == "schedule.parts = 1"
