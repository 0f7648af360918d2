"""Networks without batch norms: images by the variety of their patches, under the same engine."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from digits_nets import ChannelNorm
from small_runs import RECIPES, SHAPE, same, shrunk, snapshot
from torch import Tensor, nn

import fxquant
from fxquant.cli.main import run
from fxquant.datafree import losses
from fxquant.datafree.recipes import find_recipe, fit_recipe, nothing_to_match
from fxquant.errors import SettingError
from fxquant.graph.insert_taps import ATTENTION_TAPS, count_taps, record, tap_names
from fxquant.graph.prepare import prepare
from fxquant.pipeline import train
from fxquant.report.facts import build_report
from fxquant.run_folder import RECIPE, REPORT
from fxquant.settings import Settings, read_settings, to_toml
from fxquant.spec import QConfig


class Encoder(nn.Module):
    """A vision transformer of two blocks, 16 tokens of 16 numbers and a class token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16) * 0.3)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2)
        )
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for index in range(2):
            y = self.norms[2 * index](x)
            x = x + self.attention[index](y, y, y, need_weights=False)[0]
            x = x + self.mlp[index](self.norms[2 * index + 1](x))
        return self.head(x[:, 0])


class NextBlock(nn.Module):
    """ConvNeXt's: depthwise 7 x 7, LayerNorm, two linear layers, GELU, layer scale."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 2, 2), ChannelNorm(8), NextBlock(8)),
        *(ChannelNorm(8), nn.Conv2d(8, 16, 2, 2), NextBlock(16)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 10)),
    )


def plain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    )


NETWORKS = {"encoder": Encoder, "convnext": convnext, "plain": plain}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_alike_patches_have_no_entropy_and_varied_ones_much():
    alike = torch.ones(2, 9, 5) * torch.rand(2, 9, 1)
    varied = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(0))
    low, high = losses.patch_entropy(alike), losses.patch_entropy(varied)
    assert float(low) < 1.5  # a single value, as wide as the curve that stands for it
    assert float(high) > float(low) + 1
    one, other = losses.patch_entropy(varied[:1]), losses.patch_entropy(varied[1:])
    assert float(high) == pytest.approx(float(one + other) / 2, rel=1e-5)


def test_entropy_is_that_of_the_density():
    patches = F.normalize(torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    places = torch.linspace(-1, 1, losses.DENSITY_POINTS)
    density = torch.zeros(losses.DENSITY_POINTS)
    for i in range(5):
        for j in range(i):
            s = float(patches[0, i] @ patches[0, j])
            density += torch.exp(-0.5 * ((s - places) / losses.BANDWIDTH) ** 2)
    density /= density.sum()
    expected = -(density * (density + 1e-6).log()).sum()
    assert float(losses.patch_entropy(patches)) == pytest.approx(float(expected), abs=1e-4)


def test_patches_of_all_that_attention_and_features_give():
    x = torch.randn(2 * 4, 3, 49, 5)  # windows, heads, tokens, channels
    assert losses.attention_patches(x, 2).shape == (2, 33, 5)
    heads = torch.randn(2 * 3, 17, 5)
    assert losses.attention_patches(heads, 2).shape == (2, 26, 5)
    assert losses.feature_patches(torch.randn(2, 7, 12, 20)).shape == (2, 36, 7)
    assert losses.feature_patches(torch.randn(2, 7, 3, 3)).shape == (2, 9, 7)
    assert losses.feature_patches(torch.randn(2, 100, 7)).shape == (2, 34, 7)
    exact = torch.randn(2, 7, 6, 6)
    assert torch.allclose(losses.feature_patches(exact)[1, 8], exact[1, :, 1, 2])


def test_class_spread_is_least_for_sure_and_different_answers():
    sure = torch.eye(4) * 50
    assert float(losses.class_spread(sure)) == pytest.approx(-math.log(4), abs=1e-3)
    assert float(losses.class_spread(sure[:1].expand(4, 4))) == pytest.approx(0, abs=1e-3)
    assert float(losses.class_spread(torch.zeros(4, 4))) == pytest.approx(0, abs=1e-3)


def test_attention_is_tapped_where_there_are_no_batch_norms():
    p = prepare(network("encoder"), QConfig(8, 8), SHAPE)
    assert len(tap_names(p.teacher, ATTENTION_TAPS)) == 2
    assert torch.allclose(p.teacher(images()), network("encoder")(images()), atol=1e-5)
    with record(p.teacher, ATTENTION_TAPS) as seen:
        p.teacher(images())
    assert {x[0].shape[-1] for x in seen.values()} == {8}
    assert count_taps(prepare(network("convnext"), QConfig(), SHAPE).teacher, ATTENTION_TAPS) == 0


def test_recipes_are_fitted_where_there_is_nothing_to_match():
    teacher = prepare(network("plain"), QConfig(), SHAPE).teacher
    ddaq = find_recipe("ddaq", "default")
    fitted = fit_recipe(ddaq, teacher)
    assert [t.loss for t in fitted.sample_terms] == [
        *("patch_similarity", "classes", "input_statistics", "features")
    ]
    assert {t.weight for t in fitted.sample_terms[:3]} == {0.5}
    assert replace(fitted, name="ddaq", sample_terms=ddaq.sample_terms) == ddaq
    assert fit_recipe(fitted, teacher) == fitted
    assert "nothing to match" in nothing_to_match(fitted, teacher)
    assert nothing_to_match(ddaq, teacher) is None
    zeroq = fit_recipe(find_recipe("zeroq", "default"), teacher)
    assert [t.loss for t in zeroq.sample_terms] == [
        *("patch_similarity", "classes", "input_statistics")
    ]


@pytest.mark.parametrize("recipe", ["ddaq", "paper", "zeroq"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_recipe_works(name, recipe):
    model = network(name)
    before = snapshot(model)
    result = fxquant.quantize(model, 8, input_shape=SHAPE, recipe=RECIPES[recipe])
    assert same(snapshot(model), before)
    assert any("patch_similarity" in curve for curve in result.curves)
    report = build_report(result)
    assert any("nothing to match" in note for note in report["notes"])
    assert report["quality"]["output_sqnr_db"] > 10
    assert report["quality"]["trust"] is None  # it was never measured on such images


def test_images_come_to_have_varied_patches():
    p = prepare(network("encoder"), QConfig(8, 8), SHAPE)
    recipe = shrunk("psaq", "paper")
    schedule = replace(recipe.schedule, warmup=60, batch=8)
    engine = train(p, Settings(SHAPE, QConfig(8, 8), replace(recipe, schedule=schedule)))
    curve = engine.history.curves["warm-up/sampler.patch_similarity"]
    assert curve[-1] < curve[0] - 0.1


def test_a_network_that_shows_no_patches_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    with pytest.raises(SettingError, match="the model shows none") as caught:
        fxquant.quantize(net, 8, input_shape=SHAPE, recipe=RECIPES["ddaq"])
    assert "fxquant.calibrate" in caught.value.hint


def test_the_command_line_says_what_it_does(tmp_path, capsys):
    config, out = tmp_path / "small.toml", tmp_path / "run"
    config.write_text(to_toml(Settings(SHAPE, recipe=RECIPES["ddaq"]).to_dict()))
    command = ["quantize", "test_patches:convnext", "--config", str(config), "--bits", "8"]
    assert run([*command, "--output", str(out)]) == 0
    shown = capsys.readouterr().err
    assert "the first discriminator has nothing to match" in shown
    assert read_settings(out / RECIPE).recipe.name == "ddaq on patches"
    notes = json.loads((out / REPORT).read_text())["notes"]
    assert any("nothing to match" in note for note in notes)


def test_a_transformer_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("test_vit", img_size=64, num_classes=10).eval()
    result = fxquant.quantize(net, 8, input_shape=(3, 64, 64), recipe=shrunk("ddaq", "fast"))
    report = fxquant.export(result, tmp_path / "run")
    assert report["parity"]["passed"]
    assert count_taps(result.teacher, ATTENTION_TAPS) > 1
    # Its norm before the head leaves little but what differs between images, at random weights.
    assert report["quality"]["output_sqnr_db"] > 5
