"""What honest files hold comes back as torch would bring it back, in every format of torch's."""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from model_files import error_of, same_output
from old_files import aged, write_big_endian, write_python_2, write_tar
from same_objects import difference
from torch import nn
from torchvision.models import VisionTransformer

from fxquant.models import load_model
from fxquant.models import opened as opened_module
from fxquant.models.files import read_model_file


def read(path: Path, **settings) -> object:
    with path.open("rb") as file:
        return read_model_file(file, path, **settings)


def saved(content: object, path: Path, *, legacy: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def shared() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    net = nn.Sequential(first, nn.ReLU(), second, first)
    net.register_buffer("table", torch.arange(12.0).reshape(3, 4)[1:, ::2])
    net.register_buffer("rows", net.table.t())
    net.register_buffer("passing", torch.ones(1), persistent=False)
    net[0].bias.requires_grad_(False)
    net.note = first.weight
    return net


def convolutions() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.GELU()]
    layers += [nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(*layers, nn.Softmax(1)).eval()


def old_convolutions() -> nn.Module:
    net = convolutions()
    net[0].padding_mode = "zeros"  # the only one there was
    net[3].recompute_scale_factor = True  # what not to have it meant
    net[7].dim = None
    return net


NETS = {
    "convolutions": (convolutions, (3, 4, 4)),
    "an LSTM": (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True), (5, 3)),
    "a GRU": (lambda: nn.GRU(3, 4, bias=False), (5, 3)),
    "a projected LSTM": (lambda: nn.LSTM(3, 4, proj_size=2), (5, 3)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (5, 4)),
    "an embedding": (lambda: nn.EmbeddingBag(5, 3), None),
    "tables": (lambda: nn.ParameterDict({"a": nn.Parameter(torch.ones(2))}), None),
    "shared parts": (shared, (4,)),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_networks_come_back_as_torch_loads_them(tmp_path, name, legacy):
    make, shape = NETS[name]
    path = saved(make().eval(), tmp_path / "net.pt", legacy=legacy)
    theirs, ours = torch.load(path, weights_only=False), read(path)
    assert difference(theirs, ours) is None
    if shape:
        x = torch.randn(2, *shape)
        with torch.no_grad():
            left, right = theirs(x), ours(x)
        if isinstance(left, tuple):
            left, right = left[0], right[0]
        assert torch.equal(left, right)
    copy.deepcopy(ours)


def test_what_is_shared_stays_shared(tmp_path):
    net = read(saved(shared(), tmp_path / "net.pt"))
    assert net[0] is net[3]
    assert net[0].weight is net[2].weight is net.note
    assert net.rows.untyped_storage().data_ptr() == net.table.untyped_storage().data_ptr()
    assert net._non_persistent_buffers_set == {"passing"}
    assert not net[0].bias.requires_grad
    assert net[0].weight.requires_grad


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_wrappers(tmp_path, dtype, legacy):
    net = nn.DataParallel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype)).eval()
    path = saved(net, tmp_path / "net.pt", legacy=legacy)
    assert difference(torch.load(path, weights_only=False), read(path)) is None
    module = load_model(path).module
    assert type(module) is nn.Sequential
    assert same_output(net.module.float(), module, 3)


VALUES = {
    "size": torch.Size([2, 3]),
    "device": [torch.device("cpu"), torch.device("cuda", 1)],
    "dtype": [torch.float16, torch.int64, torch.bool],
    "layout": torch.strided,
    "counter": Counter({"a": 3}),
    "containers": [{1, 2}, frozenset({"a"}), (1, (2,)), [None, True, {}], {(1, 2): 3}],
    "numbers": [1 + 2j, 1e300, float("inf"), -(2**63), 2**31, 0, -1],
    "optimizer": {"state": {140_234_567_890_123: {"step": 1}}},  # keys of torch before 1.5
    "steps": [slice(1, None, 2), range(1, 9, 2)],
    "bytes": bytes(range(256)),
    "text": ["", "\n\u00e9\U0001f600", "a" * 999],
    "ordered": OrderedDict(b=1, a=2),
    "tensors": [torch.ones(0, 3), torch.tensor(3.5), torch.ones(2, dtype=torch.complex64)],
    "new": [torch.ones(3).to(torch.float8_e4m3fn), torch.ones(3, dtype=torch.uint16)],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_plain_values_of_checkpoints_come_back(tmp_path, name, legacy):
    path = saved({name: VALUES[name]}, tmp_path / "values.pt", legacy=legacy)
    found = read(path)[name]
    if name == "new":
        pairs = zip(VALUES[name], found, strict=True)
        assert all(torch.equal(a.float(), b.float()) and a.dtype == b.dtype for a, b in pairs)
    else:
        assert difference(VALUES[name], found) is None


def test_a_default_dict_comes_back_as_a_plain_one(tmp_path):
    found = read(saved({"x": defaultdict(list, a=[1])}, tmp_path / "x.pt"))["x"]
    assert (type(found), found) == (dict, {"a": [1]})


def test_attributes_of_tensors_are_left_out(tmp_path):
    net = nn.Linear(2, 2)
    net.weight.note = "mine"
    net.register_buffer("table", nn.Buffer(torch.ones(1)))
    found = read(saved(net, tmp_path / "net.pt"))
    assert torch.equal(found.weight, net.weight)
    assert not vars(found.weight)
    assert not vars(found.table)


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (old_convolutions, (3, 4, 4)),
        (lambda: nn.LSTM(3, 4, num_layers=2), (5, 3)),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8), (5, 4)),
        (lambda: nn.MultiheadAttention(4, 2), None),
    ],
)
def test_what_old_layers_lack_is_filled_in(tmp_path, make, shape, legacy):
    net = make().eval()
    path = saved(aged(copy.deepcopy(net)), tmp_path / "old.pt", legacy=legacy)
    assert difference(net, read(path)) is None
    if shape:
        x = torch.randn(2, *shape)
        with torch.no_grad():
            expected, found = net(x), load_model(path).module(x)
        assert torch.equal(*(o[0] if isinstance(o, tuple) else o for o in (expected, found)))


def test_a_tar_archive_of_tensors_loads_as_torch_loads_it(tmp_path):
    state = {"weight": torch.randn(3, 4), "bias": torch.randn(4)}
    write_tar(tmp_path / "old.pt", state)
    theirs = torch.load(tmp_path / "old.pt", weights_only=False)
    ours = read(tmp_path / "old.pt")
    assert difference(theirs, ours) is None
    assert all(torch.equal(ours[key], state[key]) for key in state)


def test_files_of_big_endian_machines_load(tmp_path):
    state = {"weight": torch.randn(3, 4)}
    write_big_endian(tmp_path / "big.pt", state)
    assert torch.equal(read(tmp_path / "big.pt")["weight"], state["weight"])


def test_files_of_python_2_load(tmp_path):
    write_python_2(tmp_path / "old.pt", "weight", [1.0, 2.5])
    found = read(tmp_path / "old.pt")
    assert type(found) is OrderedDict
    assert torch.equal(found["weight"], torch.tensor([1.0, 2.5]))


def test_classes_that_layers_keep_come_back(tmp_path):
    net = VisionTransformer(32, 16, 1, 2, 8, 8, num_classes=3).eval()
    path = saved(net, tmp_path / "vit.pt")
    assert difference(torch.load(path, weights_only=False), read(path)) is None
    assert same_output(net, load_model(path).module, 3, 32, 32)


def test_the_opened_file_is_the_one_that_is_hashed_and_loaded(tmp_path, monkeypatch):
    """Another file takes the path as soon as it was opened."""
    good = nn.Sequential(nn.Linear(3, 2)).eval()
    content = saved(good, tmp_path / "net.pt").read_bytes()
    saved(nn.Sequential(nn.Linear(3, 5)), tmp_path / "other.pt")
    start = opened_module.Digest.__enter__

    def swap(digest):
        os.replace(tmp_path / "other.pt", tmp_path / "net.pt")
        return start(digest)

    monkeypatch.setattr(opened_module.Digest, "__enter__", swap)
    loaded = load_model(tmp_path / "net.pt")
    assert not (tmp_path / "other.pt").exists()
    assert same_output(good, loaded.module, 3)
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()


def test_the_digest_needs_no_thread(tmp_path, monkeypatch):
    path = saved(nn.Sequential(nn.Linear(3, 2)), tmp_path / "net.pt")
    monkeypatch.delattr(os, "pread")
    assert load_model(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_errors_name_the_place_and_stay_short(tmp_path):
    net = nn.Sequential(OrderedDict(block=nn.Sequential(nn.Linear(2, 2))))
    vars(net.block[0])["a" * 10**6 + "'"] = 1
    error = error_of(saved(net, tmp_path / "net.pt"))
    assert "'block.0' has an attribute called" in error.message
    assert len(str(error)) < 1000
    assert "look twice" in error.hint
