"""The pictures of report.html: images, curves and importance, and numbers in words."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from report_pages import MINUS, Page, decode, full_report, plain_report, texts

from fxquant.report import pictures
from fxquant.report.formats import amount, breakable, cell, db, number, percent, size, words
from fxquant.report.html import render


def test_grid_shows_each_image_from_its_minimum_to_its_maximum():
    images = torch.linspace(-3, 5, 16).reshape(1, 1, 4, 4).repeat(4, 1, 1, 1)
    images[1] *= 100
    sheet = imread(BytesIO(decode(pictures.image_grid(images).light)))
    assert sheet.shape == (9, 9, 4)
    first, second = sheet[:4, :4], sheet[:4, 5:]
    assert first[..., :3].min() == 0
    assert first[..., :3].max() == 1
    assert np.array_equal(first, second)
    assert (sheet[4] == 0).all()


@pytest.mark.parametrize(
    ("shape", "note"),
    [
        ((70, 3, 8, 8), ""),
        ((3, 1, 8, 20), ""),
        ((5, 5, 20, 8), "of 5 channels the first is shown, as grey"),
        ((2, 2, 1, 1), "of 2 channels the first is shown, as grey"),
        ((4, 3, 300, 40), ""),
    ],
)
def test_grid_of_any_channels_and_shape(shape, note):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    images[0] = 0.5
    images[1, 0, 0, 0] = float("nan")
    page = Page(render(plain_report(), images))
    sheet = imread(BytesIO(decode(page.sources()[0])))
    shown = min(shape[0], 64)
    opaque = (sheet[..., 3] > 0).sum()
    scale = min(1, 56 / max(shape[2:]))
    assert opaque == shown * max(1, round(shape[2] * scale)) * max(1, round(shape[3] * scale))
    assert f"{shape[1]} by {shape[2]} by {shape[3]} values each" in page.section_text("images")
    assert note in page.section_text("images")


def test_only_the_first_channel_of_odd_images_is_shown():
    images = torch.zeros(1, 2, 4, 4)
    images[0, 1] = torch.randn(4, 4)
    sheet = imread(BytesIO(decode(pictures.image_grid(images).light)))
    assert sheet[..., :3].max() == 0


@pytest.mark.parametrize("images", [torch.zeros(0, 3, 8, 8), torch.zeros(4, 3, 8)])
def test_no_grid_where_there_are_no_pictures(images):
    assert pictures.image_grid(images) is None


def test_page_stays_small():
    noise = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    report = full_report()
    report["curves"] = {name: torch.rand(20_000).tolist() for name in report["curves"]}
    assert len(render(report, noise)) < 1_200_000
    assert len(pictures.image_grid(torch.rand(64, 3, 224, 224)).light) < 900_000


def test_one_panel_for_each_phase_and_learner():
    panels = pictures.curve_panels(full_report()["curves"])
    assert [p.title for p in panels] == [
        "warm-up: sampler",
        "fine-tuning: sampler",
        "fine-tuning: student",
    ]
    assert "loss (log)" in texts(panels[0].light)
    assert {"bn statistics", "total"} <= set(texts(panels[0].light))
    assert "loss" in texts(panels[1].light)  # negative values: a linear axis
    assert "2.5" in texts(pictures.curve_panels({"p/student": [2.1, 2.9]})[0].light)
    assert "bn statistics from 2 to 0.5" in panels[0].alt


def test_panels_of_odd_curves():
    nothing = [float("nan"), None]
    curves = {"a/student": [], "b/student": nothing, "c/student": [1.0], "d/student.x": [0.0, 0.0]}
    assert [p.title for p in pictures.curve_panels(curves)] == ["c: student", "d: student"]
    assert pictures.curve_panels({}) == []


def test_long_curves_are_thinned_to_means_with_their_range():
    values = [1.0, 3.0] * 5000
    short = pictures.curve_panels({"p/student": values[:200]})[0]
    long = pictures.curve_panels({"p/student": values})[0]
    assert len(long.light) < 3 * len(short.light)
    assert b"opacity: 0.22" in decode(long.light)
    assert b"opacity: 0.22" not in decode(short.light)


def test_axis_labels_survive_the_shortening_of_coordinates():
    chart = pictures.importance_chart(full_report()["importance"])
    assert "0.001" in texts(chart.light)
    assert not re.search(rb' d="[^"]*\.\d{3}', decode(chart.light))


def test_importance_chart_names_layers_and_draws_whiskers():
    importance = full_report()["importance"]
    chart = pictures.importance_chart(importance)
    assert set(importance["layers"]) <= set(texts(chart.light))
    assert "largest conv1 (0.07), smallest layer1.0.conv (0.0007)" in chart.alt
    assert b"LineCollection" in decode(chart.light)
    assert chart.light != chart.dark


def test_importance_chart_of_many_layers_and_of_negative_estimates():
    names = [f"features.{i}.a_block_with_quite_a_long_name.conv" for i in range(300)]
    trace = [(-1) ** i * (i + 1) / 300 for i in range(300)]
    chart = pictures.importance_chart({"layers": names, "trace": trace})
    labels = [text for text in texts(chart.light) if text.endswith(".conv")]
    assert 20 < len(labels) <= pictures.MOST_NAMES
    assert all(label.startswith("…") for label in labels)
    assert pictures.importance_chart({"layers": ["a"], "trace": []}) is None


def test_values_in_words():
    assert number(-1234.5, 1) == f"{MINUS}1,234.5"
    assert number(None) == number(float("nan")) == "not measured"
    assert number("8 <") == "8 <"
    assert amount(657_000_000) == "657 M"
    assert amount(0) == "0"
    assert size(1_078_000) == "1.08 MB"
    assert size(640) == "640 B"
    assert db(200.0) == "≥ 200"
    assert percent(99.999) == "> 99.9 %"
    assert percent(100.0) == "100.0 %"
    assert words([0.5, 0.999]) == "0.5, 0.999"
    assert words([]) == words(None) == "none"
    assert words(True) == "yes"
    assert cell(0.001, 1.0, 1) == "<0.1"
    assert cell(None, 1.0, 1) == "\N{EN DASH}"
    assert breakable("a.<b>_c") == "a.<wbr>&lt;b&gt;_<wbr>c"
