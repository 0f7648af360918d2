"""report.html: what it says, what it escapes, and that it needs nothing but itself."""

import base64
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from fxquant.datafree.recipes import find_recipe
from fxquant.report import pictures
from fxquant.report.formats import amount, breakable, cell, db, number, percent, size, words
from fxquant.report.html import render
from fxquant.spec import QConfig

VOID = {"meta", "img", "br", "wbr", "link", "input", "source", "hr"}
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
IMAGES = torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass
class Page(HTMLParser):
    """A parsed page: its tags, its text by section, and its tables as rows of text."""

    source: str
    tags: list[tuple[str, dict]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=lambda: {"": ""})
    rows: list[list[str]] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.section = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.section = dict(attrs)["id"]
            self.sections[self.section] = ""
        if tag in ("dt", "dd", "p", "li", "td", "th"):
            self.sections[self.section] += " "
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.sections[self.section] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.sections.values()).split())

    def section_text(self, name: str) -> str:
        return " ".join(self.sections[name].split())

    def row(self, name: str) -> list[str]:
        """The row that starts with this cell; what a cell says in small print is left out."""
        return next(
            [" ".join(cell.split()) for cell in row]
            for row in self.rows
            if row and row[0].split("\n")[0].strip() == name
        )

    def sources(self) -> list[str]:
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]


def _layer(name: str, **changes) -> dict:
    return {
        "name": name,
        "kind": "conv",
        "weight_shape": [16, 3, 3, 3],
        "parameters": 448,
        "macs": 442_368,
        "weight_bits": 4,
        "act_bits": 4,
        "bitops": 7_077_888,
        "sqnr_db": 21.34,
        "importance": 0.07,
        "float_reason": None,
        **changes,
    }


def full_report() -> dict:
    """A report in which nothing is missing."""
    reason = "a layer rule keeps it float"
    float_bits = {"weight_bits": None, "act_bits": None, "float_reason": reason}
    layers = [
        _layer("conv1"),
        _layer("layer1.0.conv", sqnr_db=9.2, importance=0.0007, parameters=36_928),
        _layer("linear", kind="linear", weight_shape=[10, 64], **float_bits),
    ]
    same = {"max_difference": 1.2e-6, "sqnr_db": 200.0, "agreement": 1.0, "decisions_changed": 0.0}
    report = {
        "fxquant": "0.1.0",
        "model": {
            "name": "resnet20",
            "source": "my nets/resnet20.pt",
            "sha256": "9f2c" * 16,
            "input_shape": [3, 8, 8],
            "parameters": 37_824,
            "macs": 1_327_104,
        },
        "settings": {
            "config": QConfig().to_dict(),
            "recipe": find_recipe("ddaq", "default").to_dict(),
            "preset": "default",
            "seed": 17,
            "device": "cpu",
        },
        "machine": {"cpu": "A fast one", "cores": 2, "torch": "2.14.1", "onnxruntime": "1.31.1"},
        "summary": {
            "layers_quantized": 2,
            "layers_float": 1,
            "activations_quantized": 5,
            "macs_quantized": 0.99996,
            "batchnorms_folded": 19,
        },
        "size": {"float_bytes": 1_078_000, "weights_bytes": 134_750.0, "onnx_bytes": 171_000},
        "bitops": {"float": 41_500_000_000, "quantized": 657_000_000},
        "layers": layers,
        "float": [{"name": "linear", "what": "linear", "reason": reason}]
        + [
            {"name": f"block{i}.act", "what": "SiLU", "reason": "no integer form"} for i in range(9)
        ],
        "taps": {"batchnorm": 19, "features": ["layer1", "linear"]},
        "quality": {"images": 256, "agreement": 96.48, "output_sqnr_db": 17.93},
        "importance": {
            "method": "gauss-newton",
            "probes": 50,
            "normalize": "mean",
            "layers": [layer["name"] for layer in layers],
            "trace": [0.07, 0.0007, 0.01],
            "standard_error": [0.01, 0.0002, 0.001],
        },
        "curves": {
            "warm-up/sampler.bn_statistics": [2.0, 1.0, 0.5],
            "warm-up/sampler": [1.0, 0.5, 0.25],
            "fine-tuning/sampler": [-0.1, -0.2, -0.3],
            "fine-tuning/student": [1 / (1 + step) for step in range(1000)],
        },
        "parity": {
            "passed": True,
            "unoptimized": same,
            "optimized": {**same, "sqnr_db": 41.9, "agreement": 0.9961},
            "convolutions": 2,
            "convolutions_integer": 2,
            "linears": 1,
            "linears_integer": 0,
            "file_bytes": 171_000,
            "images": 64,
            "diverges_at": None,
        },
        "accuracy": {
            "teacher": 92.04,
            "student": 91.17,
            "onnx": 91.16,
            "images": 2000,
            "data": "cifar.npz",
        },
    }
    return json.loads(json.dumps(report))


def plain_report() -> dict:
    """A report without what takes long to draw."""
    return full_report() | {"curves": {}, "importance": None}


def poor_report() -> dict:
    """A report with null for all that may be null."""
    report = full_report()
    report["model"] |= {"source": None, "sha256": None}
    report["settings"]["preset"] = None
    report["size"]["onnx_bytes"] = None
    report["quality"]["agreement"] = None
    report |= {"importance": None, "parity": None, "accuracy": None, "curves": {}, "float": []}
    report["layers"] = [_layer("conv1", sqnr_db=None, importance=None)]
    report["summary"] |= {"layers_float": 0, "layers_quantized": 1}
    return report


@pytest.fixture(scope="module")
def source() -> str:
    return render(full_report(), IMAGES)


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def test_first_screen_tells_the_verdict(page):
    top = page.section_text("")
    assert "resnet20, quantized" in top
    assert "4-bit weights and activations, found without data by recipe ddaq, preset default" in top
    assert "91.17 % accurate, 0.87 points below the original." in top
    assert "✓ Parity passed" in top
    assert "92.04 % → 91.17 % ONNX file: 91.16 %; 2,000 images of cifar.npz" in top
    assert "96.5 % on 256 generated images held back from training" in top
    assert "17.9 dB" in top
    assert "1.08 MB → 171 kB" in top
    assert f"6.3 {TIMES} smaller; the ONNX file on disk, of it 135 kB weights" in top
    assert "41.5 G → 657 M" in top
    assert "2 of 3" in top
    assert "> 99.9 % of the multiply-accumulates; left in float: 1" in top


def test_what_needs_attention_is_on_the_first_screen(page):
    top = page.section_text("")
    assert "1 layer below 10 dB SQNR, lowest layer1.0.conv at 9.2 dB" in top
    assert "1 of 1 linear layers not in integer kernels" in top
    assert "In floating point: 10 parts of the network" in top
    assert "convolutions not in integer kernels" not in top


def test_failed_parity_is_said_first():
    report = plain_report()
    report["parity"] |= {"passed": False, "diverges_at": "layer1_0_conv", "convolutions_integer": 1}
    page = Page(render(report, IMAGES))
    assert "✗ Parity failed" in page.section_text("")
    assert "The ONNX file does not compute what the trained student does" in page.section_text("")
    assert "1 of 2 convolutions not in integer kernels" in page.section_text("")
    assert "layer1_0_conv" in page.section_text("parity")


def test_float_parts_are_gathered_by_reason(page):
    assert page.row("linear") == ["linear", "1", "a layer rule keeps it float", "linear"]
    row = page.row("SiLU")
    assert row[1:3] == ["9", "no integer form"]
    assert "3 more" in row[3]
    assert all(f"block{i}.act" in row[3] for i in range(9))


def test_what_tracing_could_not_look_into_is_told():
    report = plain_report()
    part = {"name": "roi_heads", "type": "RoI<Heads>", "file": "net.py", "line": 7}
    report["left_out"] = [
        part | {"reason": "a loop over boxes", "hidden": ["roi_heads.a", "roi_heads.b"]},
        part | {"name": "", "file": "", "line": 0, "reason": "it branches", "hidden": []},
    ]
    report["notes"] = ["taken as passing: `assert x & y`"]
    report["fixed_size"] = ["backbone", ""]
    page = Page(render(report, IMAGES))
    assert page.row("roi_heads") == [
        *("roi_heads", "RoI<Heads>", "a loop over boxes", "net.py:7", "2"),
    ]
    assert page.row("the model itself")[2:] == ["it branches", "unknown", "0"]
    text = page.section_text("float")
    assert "Right at this input size alone: backbone, the whole model." in text
    assert "taken as passing: `assert x & y`" in text
    assert "Right at this input size alone" in page.section_text("")


def test_layer_table_has_units_totals_and_warnings(page):
    head = next(row for row in page.rows if row[0] == "Layer")
    assert head[1:4] == ["SQNR (dB)", "Weights (bits)", "Input (bits)"]
    assert head[6:9] == ["Parameters", "MACs (k)", "BitOps (k)"]
    assert page.row("conv1")[1:9] == [
        *(
            "21.3",
            "4",
            "4",
            "conv",
            f" {TIMES} ".join(("16", "3", "3", "3")),
            "448",
            "442.4",
            "7,077.9",
        ),
    ]
    assert page.row("layer1.0.conv")[1] == "⚠ 9.2"
    assert page.row("layer1.0.conv")[6] == "36,928"
    assert page.row("All layers")[2:5] == ["37,824", "1,327.1", "21,233.7"]
    assert [a["class"] for tag, a in page.tags if tag == "tr" and "class" in a] == ["low"]
    assert "float: a layer rule keeps it float" in page.section_text("layers")


def test_bars_are_as_long_as_sqnr_says(page):
    widths = [a["style"] for tag, a in page.tags if tag == "span" and "style" in a]
    assert widths == ["width:53%", "width:23%", "width:53%"]


def test_parity_settings_and_command(page):
    assert page.row("off")[1:] == ["1.2e-06", "≥ 200", "100.00", "0.00"]
    assert page.row("on")[1:] == ["1.2e-06", "41.9", "99.61", "0.00"]
    assert "convolutions in integer kernels 2 of 2" in page.section_text("parity")
    terms = [row for row in page.rows if row[0] in ("images", "student")]
    assert [(row[1], row[2]) for row in terms] == [
        ("bn_statistics", "0.50"),
        ("features", f"{MINUS}0.50"),
        ("features", "1.00"),
        ("output", "1.00"),
    ]
    assert terms[1][3].startswith("Maximise the distance between original and student")
    assert "seed 17" in page.section_text("settings")
    command = "fxquant quantize 'my nets/resnet20.pt' --config recipe.toml"
    assert command in page.section_text("repeat")


def test_page_needs_nothing_from_elsewhere(source, page):
    addresses = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "srcset")]
    assert all(value.startswith(("data:image/", "#")) for value in addresses)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {value[1:] for value in addresses if value.startswith("#")} <= anchors


def test_page_is_accessible(page):
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all("scope" in a for tag, a in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    assert page.open == []


def test_same_report_gives_the_same_page(source):
    assert render(full_report(), IMAGES.clone()) == source


def test_callers_matplotlib_style_changes_nothing(source):
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "text.usetex": True}):
        assert render(full_report(), IMAGES) == source


def test_rendering_leaves_report_and_images_alone():
    report, images = full_report(), IMAGES.clone()
    render(report, images)
    assert report == full_report()
    assert torch.equal(images, IMAGES)


def test_nulls_are_said_to_be_not_measured():
    page = Page(render(poor_report(), IMAGES))
    top = page.section_text("")
    assert "Output SQNR 17.9 dB on generated images." in top
    assert "not measured no labelled images were given" in top
    assert "not measured needs an output of class scores" in top
    assert "weights alone, the ONNX file was not measured" in top
    assert "was not checked against the trained student" in top
    assert "Look at this before deploying" not in top
    assert page.section_text("float").count("Nothing: every convolution and linear layer") == 1
    assert "Not measured" in page.section_text("importance")
    assert "No loss curves were recorded" in page.section_text("training")
    assert "Not measured" in page.section_text("parity")
    assert page.row("conv1")[1] == "not measured"
    assert "Importance" not in next(row for row in page.rows if row[0] == "Layer")
    assert "fxquant quantize MODEL --config recipe.toml" in page.section_text("repeat")
    assert "None" not in page.text


def test_every_key_may_be_missing():
    page = Page(render({}, torch.zeros(0, 3, 8, 8)))
    assert "How close it stays to the original was not measured" in page.text
    assert "Nothing: every" not in page.text
    assert "No images to show" in page.text
    for key in full_report():
        report = plain_report()
        del report[key]
        assert Page(render(report, IMAGES[:1])).open == []
    for part in ("model", "settings", "summary", "size", "bitops", "quality", "parity", "accuracy"):
        for key in full_report()[part]:
            report = plain_report()
            del report[part][key]
            assert Page(render(report, IMAGES[:1])).open == []


def test_numbers_that_are_not_finite_are_not_measured():
    report = full_report()
    report["quality"] |= {"output_sqnr_db": float("nan"), "agreement": float("inf")}
    report["layers"][0]["sqnr_db"] = float("nan")
    report["curves"]["warm-up/sampler"] = [float("nan"), 1.0, None]
    report["importance"]["trace"] = [float("nan"), 0.1, 0.2]
    page = Page(render(report, IMAGES[:2]))
    assert page.row("conv1")[1] == "not measured"
    assert "nan" not in page.text.lower()


HOSTILE = "<script>alert(1)</script>\"'&$x_1$\x00\u6f22"


def test_hostile_text_is_escaped():
    report = full_report()
    report["model"] |= {"name": HOSTILE, "source": HOSTILE, "sha256": HOSTILE}
    report["accuracy"]["data"] = HOSTILE
    report["layers"][0] |= {"name": HOSTILE, "kind": HOSTILE, "float_reason": HOSTILE}
    report["float"] = [{"name": HOSTILE, "what": HOSTILE, "reason": HOSTILE}]
    report["importance"]["layers"][0] = HOSTILE
    report["curves"] = {f"{HOSTILE}/student.{HOSTILE}": [1.0, 2.0]}
    report["settings"]["recipe"]["student_terms"][0]["loss"] = HOSTILE
    report["settings"]["config"]["layers"] = [HOSTILE]
    report["parity"]["diverges_at"] = HOSTILE
    report["machine"]["cpu"] = HOSTILE
    source = render(report, IMAGES[:2])
    page = Page(source)
    assert "<script" not in source
    assert "<script>alert(1)" in page.section_text("")
    assert page.open == []
    for svg in _svgs(page):
        assert not svg.findall(".//{*}script")


def _decode(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def _svgs(page: Page) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(_decode(s)) for s in page.sources() if "svg" in s[:20]]


def _texts(uri: str) -> list[str]:
    root = ElementTree.fromstring(_decode(uri))
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_grid_shows_each_image_from_its_minimum_to_its_maximum():
    images = torch.linspace(-3, 5, 16).reshape(1, 1, 4, 4).repeat(4, 1, 1, 1)
    images[1] *= 100
    sheet = imread(BytesIO(_decode(pictures.image_grid(images).light)))
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
    sheet = imread(BytesIO(_decode(page.sources()[0])))
    shown = min(shape[0], 64)
    opaque = (sheet[..., 3] > 0).sum()
    scale = min(1, 56 / max(shape[2:]))
    assert opaque == shown * max(1, round(shape[2] * scale)) * max(1, round(shape[3] * scale))
    assert f"{shape[1]} by {shape[2]} by {shape[3]} values each" in page.section_text("images")
    assert note in page.section_text("images")


def test_only_the_first_channel_of_odd_images_is_shown():
    images = torch.zeros(1, 2, 4, 4)
    images[0, 1] = torch.randn(4, 4)
    sheet = imread(BytesIO(_decode(pictures.image_grid(images).light)))
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
    assert "loss (log)" in _texts(panels[0].light)
    assert {"bn statistics", "total"} <= set(_texts(panels[0].light))
    assert "loss" in _texts(panels[1].light)  # negative values: a linear axis
    assert "2.5" in _texts(pictures.curve_panels({"p/student": [2.1, 2.9]})[0].light)
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
    assert b"opacity: 0.22" in _decode(long.light)
    assert b"opacity: 0.22" not in _decode(short.light)


def test_axis_labels_survive_the_shortening_of_coordinates():
    chart = pictures.importance_chart(full_report()["importance"])
    assert "0.001" in _texts(chart.light)
    assert not re.search(rb' d="[^"]*\.\d{3}', _decode(chart.light))


def test_importance_chart_names_layers_and_draws_whiskers():
    importance = full_report()["importance"]
    chart = pictures.importance_chart(importance)
    assert set(importance["layers"]) <= set(_texts(chart.light))
    assert "largest conv1 (0.07), smallest layer1.0.conv (0.0007)" in chart.alt
    assert b"LineCollection" in _decode(chart.light)
    assert chart.light != chart.dark


def test_importance_chart_of_many_layers_and_of_negative_estimates():
    names = [f"features.{i}.a_block_with_quite_a_long_name.conv" for i in range(300)]
    trace = [(-1) ** i * (i + 1) / 300 for i in range(300)]
    chart = pictures.importance_chart({"layers": names, "trace": trace})
    labels = [text for text in _texts(chart.light) if text.endswith(".conv")]
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
