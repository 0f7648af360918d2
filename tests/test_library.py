"""The library as the README shows it, on a user's own network."""

from __future__ import annotations

import nets
import pytest
import torch
from small_runs import SHAPE, shrunk

import fxquant
from fxquant.exporters.parity import check_parity


def test_the_whole_job_in_two_calls(tmp_path):
    model = nets.ALL["shared_relu"]()
    recipe = shrunk("ddaq", "default")
    result = fxquant.quantize(model, bits=4, input_shape=SHAPE, recipe=recipe, device="cpu")
    report = fxquant.export(result, tmp_path / "out")
    assert report["parity"]["passed"]
    assert report["parity"]["convolutions_integer"] == report["parity"]["convolutions"] > 0
    assert report["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert {layer["act_bits"] for layer in report["layers"][1:]} == {4}
    assert (tmp_path / "out" / "recipe.toml").exists()


def test_the_steps_apart_with_images_of_ones_own(tmp_path):
    model, images = nets.ALL["plain"](), torch.randn(32, *SHAPE)
    config = fxquant.QConfig(8, 8, layers=(fxquant.LayerRule("head*", None),))
    prepared = fxquant.prepare(model, config, SHAPE)
    fxquant.calibrate(prepared.student, images)
    path = fxquant.export_onnx(prepared.student, tmp_path / "m.onnx", input_shape=SHAPE)
    assert check_parity(prepared.student, path, images).passed


def test_training_apart_leaves_a_student_that_exports(tmp_path):
    settings = fxquant.Settings(SHAPE, fxquant.QConfig(3, 3), shrunk("ddaq", "default"))
    prepared = fxquant.prepare(nets.ALL["residual"](), settings.config, SHAPE)
    engine = fxquant.train(prepared, settings)
    path = fxquant.export_onnx(prepared.student, tmp_path / "m.onnx", input_shape=SHAPE)
    assert check_parity(prepared.student, path, engine.held_back).passed


def test_bits_and_config_exclude_each_other():
    model = nets.ALL["residual"]()
    for widths in ({}, {"bits": 4, "config": fxquant.QConfig()}):
        with pytest.raises(fxquant.FxQuantError, match="either bits or a QConfig"):
            fxquant.quantize(model, input_shape=SHAPE, **widths)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        fxquant.quantise  # noqa: B018
