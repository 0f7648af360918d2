"""`timm:NAME`: networks of timm, which is optional."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file

from fxquant.errors import ModelLoadError
from fxquant.models.load import load_model

SMALL = "timm:test_resnet"


def test_without_timm_the_hint_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelLoadError, match="needs the package timm") as caught:
        load_model(SMALL)
    assert "pip install 'fxquant[timm]'" in caught.value.hint


def test_state_dict_with_a_timm_architecture_loads(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_resnet").eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors", arch=SMALL)
    images = torch.randn(2, *loaded.input_shape)
    assert loaded.input_shape == (3, 160, 160)
    assert torch.equal(net(images), loaded.module(images))


def test_name_with_a_tag_loads_its_weights(monkeypatch):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_resnet").eval()
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: net.state_dict()
    )
    loaded = load_model("timm:test_resnet.r160_in1k")
    images = torch.randn(2, 3, 64, 64)
    assert (loaded.name, loaded.sha256) == ("test_resnet.r160_in1k", None)
    assert torch.equal(net(images), loaded.module(images))


def test_weights_that_cannot_be_had_say_so(monkeypatch):
    pytest.importorskip("timm")

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(ModelLoadError, match="no route to host") as caught:
        load_model(SMALL)
    assert f"--arch {SMALL}" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "close"),
    [("test_resnets", "test_resnet"), ("test_resnet.r160_in2k", "test_resnet.r160_in1k")],
)
def test_unknown_names_suggest_close_ones(name, close):
    pytest.importorskip("timm")
    with pytest.raises(ModelLoadError, match="timm has no network") as caught:
        load_model(f"timm:{name}")
    assert close in caught.value.hint
