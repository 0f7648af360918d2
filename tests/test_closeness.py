"""How close a student stays: the ratios and the divergence against their formulas."""

from __future__ import annotations

import torch
from nets import ALL

from fxquant.calibration import calibrate
from fxquant.graph.prepare import prepare
from fxquant.report.closeness import measure_closeness, sqnr_db
from fxquant.spec import QConfig


def test_agreement_divergence_and_sqnr_are_those_of_the_outputs():
    p = prepare(ALL["residual"](), QConfig(3, 3), (3, 16, 16))
    x = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    calibrate(p.student, x)
    closeness = measure_closeness(p.teacher, p.student, x, batch=8)
    with torch.no_grad():
        truth, found = p.teacher(x).double(), p.student(x).double()
    same = (truth.argmax(1) == found.argmax(1)).double().mean()
    p_, q_ = truth.softmax(1), found.softmax(1)
    divergence = (p_ * (p_.log() - q_.log())).sum(1).mean()
    sqnr = 10 * torch.log10(truth.square().sum() / (truth - found).square().sum())
    assert abs(closeness.agreement - 100 * same) < 1e-6
    assert abs(closeness.divergence - divergence) < 1e-5
    assert abs(closeness.output_sqnr - sqnr) < 1e-3
    assert closeness.divergence > 0


def test_an_output_that_is_no_logits_has_neither_agreement_nor_divergence():
    p = prepare(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), QConfig(8, 8), (3, 16, 16))
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    calibrate(p.student, x)
    closeness = measure_closeness(p.teacher, p.student, x)
    assert closeness.agreement is None
    assert closeness.divergence is None


def test_numbers_that_are_not_finite_are_as_far_off_as_can_be():
    assert sqnr_db(1.0, float("nan")) == sqnr_db(1.0, float("inf")) == -200
    assert sqnr_db(1.0, 0.0) == 200
