"""Each way of writing a network: only rounding changes, all is quantized, all is exported."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from constructs import CONSTRUCTS, build, noise
from torch import Tensor, nn

import fxquant
from fxquant.calibration import adjust_layers, calibrate
from fxquant.datafree.checks import check_recipe
from fxquant.datafree.importance import measure_importance
from fxquant.datafree.recipes import find_recipe
from fxquant.errors import SettingError
from fxquant.exporters.kernels import integer_layers
from fxquant.exporters.onnx_qdq import export_onnx
from fxquant.exporters.parity import check_parity
from fxquant.graph.forms.passes import one_form
from fxquant.graph.insert_quantizers import (
    insert_quantizers,
    is_activation_quantizer,
    layer_name,
    quantized_layers,
)
from fxquant.graph.ops import module_of
from fxquant.graph.passes import run_passes
from fxquant.graph.prepare import Prepared, prepare
from fxquant.graph.reasons import float_reason
from fxquant.graph.regions import all_nodes
from fxquant.inputs import flatten
from fxquant.report.closeness import sqnr_db
from fxquant.report.layers import list_layers
from fxquant.spec import QConfig

EIGHT = QConfig(8, 8)
# The layer whose weight one is on.
ONE_WEIGHT = {("shared", "second"): "first"}


def prepared(name: str) -> Prepared:
    return prepare(build(name), EIGHT, CONSTRUCTS[name].shape)


@functools.cache
def calibrated(name: str) -> Prepared:
    """A network with its calibrated student; neither may be changed."""
    p = prepared(name)
    calibrate(p.student, noise(CONSTRUCTS[name].shape, 64, seed=1))
    p.student.requires_grad_(False)
    return p


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def exported(name: str) -> Path:
    """The file of the calibrated student, which may be marked and not changed otherwise."""
    path = Path(_folder().name) / f"{name}.onnx"
    return export_onnx(calibrated(name).student, path, input_shape=CONSTRUCTS[name].shape)


def outputs(model: nn.Module, name: str, count: int = 8) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return flatten(model(*noise(CONSTRUCTS[name].shape, count, seed=2)))


def difference(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """Largest difference, relative to the largest number."""
    pairs = list(zip(left, right, strict=True))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_passes_change_nothing_but_the_rounding(name):
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    expected, p = outputs(model, name), prepare(model, EIGHT, CONSTRUCTS[name].shape)
    assert difference(expected, outputs(p.teacher, name)) < 2e-6
    assert difference(expected, outputs(p.student, name)) < 2e-6
    assert difference(expected, outputs(model, name)) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_layers_are_quantized_and_what_stays_float_says_why(name):
    construct, p = CONSTRUCTS[name], prepared(name)
    layers = quantized_layers(p.student)
    assert len(layers) == construct.layers
    assert p.rewrites["fold_batchnorm"] == construct.folded
    found = {float_reason(node) for node in all_nodes(p.student)} - {None}
    assert {reason for reason in found if reason.startswith(construct.reasons)} == found
    assert all(any(r.startswith(start) for r in found) for start in construct.reasons)
    weights = [module_of(node.args[1]) for node in layers]
    assert {weight.spec.bits for weight in weights} == {8}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_a_second_run_of_the_passes_changes_nothing(name):
    p = prepared(name)
    before = p.student.code if hasattr(p.student, "code") else None
    assert insert_quantizers(p.student, EIGHT) == 0
    assert set(run_passes(p.teacher, one_form({})).values()) == {0}
    assert before == (p.student.code if hasattr(p.student, "code") else None)


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_eight_bits_stay_close(name):
    p = calibrated(name)
    for truth, found in zip(outputs(p.teacher, name), outputs(p.student, name), strict=True):
        noise_energy = float((truth - found).square().sum())
        assert sqnr_db(float(truth.square().sum()), noise_energy) > 20


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_the_file_computes_the_same_in_integer_kernels(name):
    construct, p = CONSTRUCTS[name], calibrated(name)
    parity = check_parity(p.student, exported(name), noise(construct.shape, 16, seed=3))
    assert parity.passed
    assert min(parity.unoptimized.sqnr_db, parity.optimized.sqnr_db) > 40
    assert (parity.convolutions, parity.linears) == (construct.convolutions, construct.linears)
    integer = parity.convolutions_integer + parity.linears_integer
    assert integer == construct.convolutions + construct.linears - construct.float_kernels


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_what_is_told_of_integer_kernels_is_what_the_file_runs_in(name):
    """At 8 bits; `test_kernels` does the same with fewer."""
    told = Counter()
    for row in (layer.row for layer in list_layers(calibrated(name))):
        # The file names layers by their weights: two of one weight alike, products of values not.
        layer = "" if row["kind"] == "matmul" else ONE_WEIGHT.get((name, row["name"]), row["name"])
        told[layer] += row["integer_kernel"]
    assert +told == integer_layers(exported(name))


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_layers_are_adjusted_and_weighed_or_left_alone(name):
    p, images = calibrated(name), noise(CONSTRUCTS[name].shape, 8, seed=4)
    student = copy.deepcopy(p.student)
    adjusted = adjust_layers(p.teacher, student, images)
    once = [n for n in quantized_layers(student) if _is_called_once(n, student)]
    assert adjusted == len(once)
    assert all(torch.isfinite(x).all() for x in outputs(student, name))
    if len(images) == 1:
        importance = measure_importance(p.teacher, images[0], probes=2)
        assert min(importance.trace) >= 0
        assert set(importance.layers) == {layer_name(n) for n in quantized_layers(student)}


def _is_called_once(node, student) -> bool:
    calls = [module_of(n.args[1]) for n in quantized_layers(student)]
    return sum(module is module_of(node.args[1]) for module in calls) == 1


class Sums(nn.Module):
    """Each sum reads the one before it twice: there are 2^80 ways through."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        for _ in range(80):
            x = 0.5 * (x.flip(2) + torch.relu(x))
        return self.head(x.mean((2, 3)))


def test_a_graph_is_gone_over_once_however_many_ways_lead_through_it():
    student = prepare(Sums(), EIGHT, (3, 16, 16)).student
    # Of a sum of what can't be negative the ReLU does nothing: the value before it is quantized.
    read = [n.args[0].name for n in student.graph.nodes if is_activation_quantizer(n)]
    assert len(read) == 83
    assert not any(name.startswith("relu_") for name in read)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("two_inputs", ["image", "facts"], ["input", "maps_0", "maps_1_0"]),
        ("outputs", ["input"], ["output_0", "output_1_deep", "output_1_relu"]),
    ],
)
def test_inputs_and_outputs_are_named_as_the_model_names_them(name, inputs, outputs):
    graph = onnx.load(exported(name)).graph
    assert [value.name for value in graph.input] == inputs
    assert [value.name for value in graph.output] == outputs


def test_recipes_refuse_several_inputs_and_say_what_works():
    shape = CONSTRUCTS["two_inputs"].shape
    with pytest.raises(SettingError, match=r"takes 2 inputs \(3,16,16 and 5\).*one") as caught:
        fxquant.quantize(build("two_inputs"), bits=8, input_shape=shape)
    assert "fxquant.calibrate(prepared.student, (first, second))" in caught.value.hint
    with pytest.raises(SettingError, match="takes 2 inputs"):
        check_recipe(find_recipe("zeroq", "fast"), prepared("two_inputs").teacher, shape)


def test_inputs_of_different_lengths_are_refused():
    image, facts = noise(CONSTRUCTS["two_inputs"].shape, 4)
    with pytest.raises(SettingError, match=r"the inputs hold \[4, 3\] images"):
        calibrate(prepared("two_inputs").student, (image, facts[:3]))


class Words(nn.Module):
    """Takes numbers of words, which are no image."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1))


def test_integer_inputs_are_refused():
    with pytest.raises(SettingError, match="does not take an input of shape 7"):
        prepare(Words(), EIGHT, (7,))


class Looked(nn.Module):
    """Looks up a table by numbers that it makes itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(3, 8, 3), nn.Embedding(8, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(self.conv(x).mean((2, 3)).argmax(1)))


def test_a_table_stays_float_and_what_it_gives_is_quantized():
    student = prepare(Looked(), EIGHT, (3, 16, 16)).student
    (node,) = [n for n in student.graph.nodes if isinstance(module_of(n), nn.Embedding)]
    assert float_reason(node) == "a table that is looked up, not multiplied"
    (quantizer,) = node.users
    assert is_activation_quantizer(quantizer)
    (places,) = [n for n in student.graph.nodes if n.target == "argmax"]
    assert not any(is_activation_quantizer(user) for user in places.users)
