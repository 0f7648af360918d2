"""report.html: what it says, what it escapes, and that it needs nothing but itself."""

import pytest
import torch
from report_pages import IMAGES, MINUS, TIMES, Page, full_report, plain_report, poor_report, svgs

from fxquant.report.html import render


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
    for svg in svgs(page):
        assert not svg.findall(".//{*}script")
