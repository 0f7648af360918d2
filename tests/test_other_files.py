"""Files that are no network, or not all of one: told by what they look like."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from model_files import SMALL, error_of, small_net
from safetensors.torch import save_file
from torch import nn

from fxquant.errors import UntrustedClassError
from fxquant.models import load_model


def test_missing_file_suggests_a_close_one(net_file):
    path = net_file[1]
    error = error_of(path.with_name("nett.pt"))
    assert "no file" in error.message
    assert "net.pt" in error.hint
    assert "torchvision:NAME" in error_of(path.parent / "no" / "such" / "folder.pt").hint


def test_directory_is_refused(tmp_path):
    assert "is a directory" in error_of(tmp_path).message


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        (b"", "is empty"),
        (b"hello there, this is text", "text that starts with 'hello there"),
        (("é" * 400).encode()[:511], "text that starts with"),
        (json.dumps({"a": 1}).encode(), "text that starts with"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\xff\xfe\x00\x01" * 9, "bytes ff fe 00 01"),
        (b"PK\x03", "binary data"),
        (pickle.dumps({"a": torch.zeros(1)}), "a pickle that torch.save did not write"),
        (b"\x08\x0a\x12\x07pytorch\x1a", "is an ONNX file, which is already exported"),
    ],
)
def test_other_files_are_told_by_their_looks(tmp_path, content, looks_like):
    (tmp_path / "model.pt").write_bytes(content)
    assert looks_like in error_of(tmp_path / "model.pt").message


def test_onnx_and_zip_files_are_told(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"whatever")
    assert "already exported" in error_of(tmp_path / "model.onnx").message
    np.savez(tmp_path / "arrays.npz", weight=np.zeros(3))
    error = error_of(tmp_path / "arrays.npz")
    assert "zip archive" in error.message
    assert "weight.npy" in error.message


@pytest.mark.filterwarnings("ignore")
def test_torchscript_and_exported_programs_are_told(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3)), tmp_path / "script.pt")
    error = error_of(tmp_path / "script.pt")
    assert "TorchScript" in error.message
    assert "--arch" in error.hint
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3),)), tmp_path / "net.pt2")
    assert "not supported yet" in error_of(tmp_path / "net.pt2").message


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_torch_files_are_told(tmp_path, legacy):
    path = tmp_path / "net.pt"
    torch.save(small_net().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for size in (100, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        error = error_of(path, arch=SMALL)
        assert not isinstance(error, UntrustedClassError)
        assert "truncated" in str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 8 + b"{}", "header too large"),
        (b"x", "header too small"),
        ((5).to_bytes(8, "little") + b"{abc}", "invalid JSON"),
    ],
)
def test_bad_safetensors_are_told(tmp_path, content, reason):
    (tmp_path / "net.safetensors").write_bytes(content)
    assert reason in error_of(tmp_path / "net.safetensors").message


def test_truncated_safetensors_are_told_whatever_they_are_called(tmp_path):
    save_file(small_net().state_dict(), tmp_path / "net.safetensors")
    content = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.pt").write_bytes(content)
    assert load_model(tmp_path / "net.pt", arch=SMALL).name == "net"
    (tmp_path / "net.pt").write_bytes(content[:-3])
    assert "safetensors" in error_of(tmp_path / "net.pt", arch=SMALL).message


@pytest.mark.parametrize(
    ("content", "described"),
    [
        (torch.zeros(3), "a torch.Tensor"),
        ([torch.zeros(3)], "a list"),
        ({}, "a dict without keys"),
        ({"weights": {"a": torch.zeros(1)}, "lr": 1}, "a dict with the keys 'weights', 'lr'"),
        ({1: torch.zeros(1)}, "a dict with the keys 1"),
    ],
)
@pytest.mark.parametrize("arch", [None, SMALL])
def test_file_without_a_network_is_described(tmp_path, content, described, arch):
    torch.save(content, tmp_path / "thing.pt")
    message = error_of(tmp_path / "thing.pt", arch=arch).message
    assert described in message
    assert "model_state_dict" in message


def test_other_pickle_protocol_is_told(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "net.pt", pickle_protocol=4)
    assert "pickle_protocol" in error_of(tmp_path / "net.pt").hint


def test_module_without_data_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2, device="meta"), tmp_path / "net.pt")
    assert "without data, on the meta device" in error_of(tmp_path / "net.pt").message
