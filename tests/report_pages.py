"""Reports of all kinds, the page that is made of one, and what can be read from it."""

import base64
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from html.parser import HTMLParser

import torch

from fxquant.datafree.recipes import find_recipe
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


def decode(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def svgs(page: Page) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(decode(s)) for s in page.sources() if "svg" in s[:20]]


def texts(uri: str) -> list[str]:
    root = ElementTree.fromstring(decode(uri))
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
