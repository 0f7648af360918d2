"""All settings of a run: validation, and recipe.toml there and back."""

from __future__ import annotations

import pytest

from fxquant.datafree.recipes import find_recipe
from fxquant.errors import SettingError
from fxquant.settings import Settings, read_settings, read_toml, to_toml
from fxquant.spec import LayerRule, QConfig

SETTINGS = Settings(
    input_shape=(3, 40, 24),
    config=QConfig(5, 4, first_last_bits=8, layers=(LayerRule("a.*", 8), LayerRule("a.b", None))),
    recipe=find_recipe("zeroq", "fast"),
    seed=2**40,
    device="cpu",
)


@pytest.mark.parametrize("settings", [SETTINGS, Settings((1, 28, 28))])
def test_settings_survive_recipe_toml(settings, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml({"fxquant": "0.1", "model": {"name": "net"}, **settings.to_dict()}))
    assert read_settings(file) == settings


def test_the_file_is_readable():
    text = to_toml(SETTINGS.to_dict())
    assert "weight_bits = 5" in text
    assert '"a.b=float"' in text
    assert "[recipe.schedule]" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputshape": [3, 32, 32]}, "unknown key 'inputshape'"),
        ({"input_shape": "3,32,32"}, "input_shape is '3,32,32'; expected list"),
        ({"input_shape": [3, 32.0, 32]}, "input shape is 3,32.0,32; expected positive whole"),
        ({"input_shape": [3, 0, 32]}, "input shape is 3,0,32; expected positive whole"),
        ({"input_shape": [True, 32, 32]}, "input shape is True,32,32"),
        ({"input_shape": []}, "input shape is empty"),
        ({"seed": "1"}, "seed is '1'; expected int"),
        ({"seed": -1}, "seed is -1; expected 0 to"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"device": 0}, "device is 0; expected str"),
        ({"config": "w4a4"}, "config is 'w4a4'; expected a table"),
        ({"config": {"weight_bits": 9}}, "weight_bits is 9; expected a whole number from 2 to 8"),
        ({"config": {"weight_bits": "4"}}, "weight_bits is '4'; expected a whole number"),
        ({"config": {"bits": 4}}, "unknown key config.bits"),
        ({"config": {"layers": "conv=8"}}, "config.layers is 'conv=8'; expected a list"),
        ({"config": {"layers": [8]}}, r"config.layers is \[8\]; expected a list"),
        ({"config": {"layers": ["conv"]}}, "layer rule 'conv' can't be read"),
        ({"recipe": "ddaq"}, "recipe is 'ddaq'; expected a table"),
        ({"recipe": {"name": "x", "colour": 1}}, "recipe.colour|recipe.sampler"),
    ],
)
def test_what_can_not_be_used_is_named(changes, message):
    with pytest.raises(SettingError, match=message):
        Settings.from_dict(SETTINGS.to_dict() | changes)


def test_an_input_shape_is_required():
    with pytest.raises(SettingError, match="input shape is empty"):
        Settings.from_dict({"seed": 3})


def test_what_is_left_out_has_its_default():
    assert Settings.from_dict({"input_shape": [3, 8, 8]}) == Settings((3, 8, 8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "can't be read"),
        (b"\xff\xfe\x00", "can't be read"),
        (b"[config]\nweight_bits = 1", "weight_bits is 1; expected"),
    ],
)
def test_errors_name_the_file(content, message, tmp_path):
    file = tmp_path / "odd.toml"
    file.write_bytes(content)
    with pytest.raises(SettingError, match=message) as caught:
        read_settings(file)
    assert str(file) in caught.value.message


def test_no_file_and_no_text_file(tmp_path):
    with pytest.raises(SettingError, match="no such settings file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(SettingError, match="can't be read"):
        read_toml(tmp_path)
