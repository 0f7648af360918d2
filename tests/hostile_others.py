"""Hostile files of other kinds: safetensors, ONNX, evaluation data, settings."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hostile_box import Case
from hostile_modules import plain_net
from hostile_pickles import MARK, SHAPE
from model_files import Reduced

from fxquant.datafree.recipes import find_recipe
from fxquant.settings import Settings, to_toml

ARCH = ["--arch", "pytorchcv:resnet20_cifar10"]


def plain(folder: Path) -> list[str]:
    """A good model, for what is wrong with another file."""
    torch.save(plain_net(), folder / "plain.pt")
    return ["plain.pt", *SHAPE]


def safetensors(header: object, data: bytes, says: str, length: int | None = None) -> Case:
    def make(folder: Path) -> list[str]:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = struct.pack("<Q", len(text) if length is None else length)
        (folder / "evil.safetensors").write_bytes(size + text + data)
        return ["evil.safetensors", *SHAPE, *ARCH]

    return Case(make, says)


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def npz(write: Callable[[zipfile.ZipFile], object], says: str, method: int = zipfile.ZIP_STORED):
    """Evaluation data that `write` fills, for a good model."""

    def make(folder: Path) -> list[str]:
        with zipfile.ZipFile(folder / "evil.npz", "w", method) as archive:
            write(archive)
        return [*plain(folder), "--eval-data", "evil.npz"]

    return Case(make, says)


def array(value: np.ndarray, header: str | None = None, pickle: bool = False) -> bytes:
    """The bytes of a .npy, its header replaced where one is given."""
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=pickle)
    content = buffer.getvalue()
    if header is None:
        return content
    size = struct.unpack("<H", content[8:10])[0]
    text = f"{header}\n".encode()
    return content[:8] + struct.pack("<H", len(text)) + text + content[10 + size :]


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
LABELS = np.zeros(4, np.int64)


def _pair(archive: zipfile.ZipFile, images: bytes, labels: bytes | None = None) -> None:
    archive.writestr("images.npy", images)
    archive.writestr("labels.npy", array(LABELS) if labels is None else labels)


def _header(shape: str, dtype: str = "|u1") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"


def _npz_bomb(archive: zipfile.ZipFile) -> None:
    """Four million images in four megabytes, all of them there."""
    count = 1 << 20
    with archive.open("images.npy", "w") as file:
        file.write(array(IMAGES[:0], _header(f"({count}, 8, 8, 3)")))
        for _ in range(count * 192 >> 20):
            file.write(b"\0" * (1 << 20))
    archive.writestr("labels.npy", array(np.zeros(count, np.uint8)))


def _npz_encrypted(folder: Path) -> list[str]:
    arguments = npz(lambda a: _pair(a, array(IMAGES)), "").make(folder)
    data = bytearray((folder / "evil.npz").read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(sign) + offset] |= 1
    (folder / "evil.npz").write_bytes(data)
    return arguments


def toml(text: str | bytes, says: str) -> Case:
    """Settings that are only this text."""

    def make(folder: Path) -> list[str]:
        content = text.encode() if isinstance(text, str) else text
        (folder / "evil.toml").write_bytes(content)
        return [*plain(folder), "--config", "evil.toml"]

    return Case(make, says)


def setting(line: str, says: str) -> Case:
    """Good settings with one line in place of that of the same key."""
    recipe = find_recipe("zeroq", "fast")
    text = to_toml(Settings((3, 8, 8), recipe=recipe).to_dict())
    key = line.partition(" = ")[0]
    lines = [line if old.startswith(f"{key} = ") else old for old in text.splitlines()]
    assert line in lines
    return toml("\n".join(lines), says)


CASES = {
    "safetensors that overlap": safetensors(
        {"a": _entry([1], 0, 4), "b": _entry([1], 2, 6)}, b"\0" * 8, "can't be read as safetensors"
    ),
    "safetensors with an overlong header": safetensors(b"{}", b"", "can't be read", 2**62),
    "safetensors with a header of 90 MB": safetensors(b"{}", b"", "can't be read", 90_000_000),
    "safetensors behind their end": safetensors(
        {"a": _entry([10**9], 0, 4 * 10**9)}, b"\0" * 8, "can't be read as safetensors"
    ),
    "safetensors of overflowing shape": safetensors(
        {"a": _entry([2**40, 2**40], 0, 0)}, b"", "can't be read as safetensors"
    ),
    "safetensors nested without end": safetensors(
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"", "can't be read as safetensors"
    ),
    "safetensors of an unknown kind": safetensors(
        {"a": _entry([1], 0, 4, "CODE")}, b"\0" * 4, "can't be read as safetensors"
    ),
    "safetensors whose names steer a terminal": safetensors(
        {"\x1b[2J\x1b]0;ran\x07": _entry([1], 0, 4)}, b"\0" * 4, r"1 key is unexpected: \\x1b\[2J"
    ),
    "evaluation data of objects": npz(
        lambda a: _pair(a, array(np.array([Reduced(os.system, f"touch {MARK}")] * 4), pickle=True)),
        "images are object",
    ),
    "labels of objects": npz(
        lambda a: _pair(a, array(IMAGES), array(np.array([{}] * 4), pickle=True)),
        "labels are object",
    ),
    "evaluation data that is code": npz(
        lambda a: _pair(a, array(IMAGES, f"__import__('os').system('touch {MARK}')")),
        "can't be read",
    ),
    "evaluation data with a deep header": npz(
        lambda a: _pair(a, array(IMAGES, "(" * 9000)), "can't be read"
    ),
    "evaluation data of any size": npz(
        lambda a: _pair(a, array(IMAGES, _header("(999999999999, 8, 8, 3)"))),
        "not as large as it claims",
    ),
    "evaluation data of negative size": npz(
        lambda a: _pair(a, array(IMAGES, _header("(-4, 8, 8, 3)"))), "not as large as it claims"
    ),
    "evaluation data as a bomb": npz(_npz_bomb, "not as large as it claims", zipfile.ZIP_DEFLATED),
    "evaluation data in another compression": npz(
        lambda a: _pair(a, array(IMAGES)), "in a way that numpy does not", zipfile.ZIP_LZMA
    ),
    "evaluation data that is encrypted": Case(_npz_encrypted, "can't be read"),
    "settings that are unknown": toml('colour = "red"', "unknown key 'colour'"),
    "settings nested without end": toml("a = " + "[" * 100_000, "can't be read"),
    "settings of many tables": toml("a." * 50_000 + "b = 1", "more than 200 dots"),
    "settings of 3 MB": toml("# " + "x" * 3_000_000, "larger than 1,048,576 bytes"),
    "settings that are no text": toml(b"\xff\xfe\0\0", "can't be read"),
    "settings with a zero byte": toml(b"seed = 1\0", "can't be read"),
    "10^300 steps": setting(f"warmup = {10**300}", "whole number of more than 64 bits"),
    "a whole number of a megabyte": setting("seed = 0x" + "f" * 500_000, "more than 64 bits"),
    "a whole number of 5,000 digits": setting("seed = 1" + "0" * 5000, "can't be read"),
    "10^12 steps": setting(f"warmup = {10**12}", "expected at most 1000000000"),
    "a batch that no memory holds": setting("batch = 900000000", "memory"),
    "a generator that no memory holds": toml(
        to_toml(Settings((3, 8, 8)).to_dict()).replace("latent = 256", "latent = 900000000"),
        "memory",
    ),
    "a learning rate that is no number": setting("lr = nan", "sampler.lr is nan"),
    "an infinite weight": setting("weight = inf", "is inf; expected at most"),
    "a negative batch": setting("batch = -1", "batch is -1"),
    "a negative seed": setting("seed = -5", "seed is -5"),
    "a date for a seed": setting("seed = 2020-01-01", "seed is"),
    "a name that steers a terminal": setting(r'name = "\u001b[2J"', "printable characters"),
    "an image of 10^18 numbers": toml("input_shape = [1000000, 1000000, 1000000]", "at most"),
    "a rule of 10,000 stars": setting(
        'layers = ["' + "*a" * 5000 + '=99999999999999999999"]', "can't be read"
    ),
}
