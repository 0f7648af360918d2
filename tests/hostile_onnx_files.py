"""ONNX files, and the files of their weights, that are no files or in other people's places."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hostile_box import Case
from hostile_onnx import ADD, OUTSIDE, outside, written
from odd_files import make_socket

GONE = "no place of a file"


def odd(make_odd: Callable[[Path], object], says: str, *, data: bool = False) -> Case:
    """Something else than a file where a model, or the file of its weights, should be."""

    def make(folder: Path) -> list[str]:
        if data:
            written(folder, [ADD], [outside("w.bin")])
        make_odd(folder / ("w.bin" if data else "evil.onnx"))
        return ["evil.onnx"]

    return Case(make, says, "bench")


def _at(location: str, *, offset: str | None = None, length: str | None = "4", size: int = 4):
    """The tensor in a file beside the model, which has so many bytes."""

    def make(folder: Path) -> list[str]:
        tensor = outside(location)
        del tensor.external_data[1:]
        for key, value in (("offset", offset), ("length", length)):
            if value is not None:
                tensor.external_data.add(key=key, value=value)
        (folder / "w.bin").write_bytes(b"\0" * size)
        written(folder, [ADD], [tensor])
        return ["evil.onnx"]

    return make


def _behind_a_link(folder: Path) -> list[str]:
    """A model that is a link to one in another folder, beside which there are weights."""
    (folder / "sub").mkdir()
    written(folder / "sub", [ADD], [outside("w.bin")])
    (folder / "sub" / "w.bin").write_bytes(b"\0" * 4)
    (folder / "evil.onnx").symlink_to("sub/evil.onnx")
    return ["evil.onnx"]


CASES = {
    "ONNX that is a folder": odd(Path.mkdir, "it is a directory"),
    "ONNX that is a pipe": odd(os.mkfifo, "it is a pipe"),
    "ONNX that is a socket": odd(make_socket, "it is a socket"),
    "ONNX that is a device": odd(lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "ONNX that is nothing": odd(lambda path: path.symlink_to("/dev/null"), "it is a device"),
    "ONNX that links in a circle": odd(lambda path: path.symlink_to(path), "links lead in a circ"),
    "ONNX with weights in a folder": odd(Path.mkdir, OUTSIDE, data=True),
    "ONNX with weights in a pipe": odd(os.mkfifo, OUTSIDE, data=True),
    "ONNX with weights in a socket": odd(make_socket, OUTSIDE, data=True),
    "ONNX with weights behind a link to a device": odd(
        lambda path: path.symlink_to("/dev/zero"), OUTSIDE, data=True
    ),
    "ONNX behind a link, beside other weights": Case(_behind_a_link, OUTSIDE, "bench"),
    "ONNX with weights in itself": Case(_at("evil.onnx", length="4"), OUTSIDE, "bench"),
    "ONNX with weights at an address": Case(_at("*/_ORT_MEM_ADDR_/*"), OUTSIDE, "bench"),
    "ONNX with weights nowhere": Case(_at(""), OUTSIDE, "bench"),
    "ONNX with weights in this folder": Case(_at("."), OUTSIDE, "bench"),
    "ONNX with weights in a name with a zero": Case(_at("w.bin\0x"), OUTSIDE, "bench"),
    "ONNX with weights behind the end": Case(_at("w.bin", offset="1"), OUTSIDE, "bench"),
    "ONNX with weights far behind the end": Case(_at("w.bin", offset=str(2**62)), GONE, "bench"),
    "ONNX with weights before the start": Case(_at("w.bin", offset="-4"), GONE, "bench"),
    "ONNX with weights at no number": Case(_at("w.bin", offset="0x0"), GONE, "bench"),
    "ONNX with weights of a million digits": Case(_at("w.bin", length="9" * 10**6), GONE, "bench"),
    "ONNX with weights of another size": Case(
        _at("w.bin", length="8", size=8), "not as large as they claim", "bench"
    ),
    "ONNX with weights of a short file": Case(_at("w.bin", size=3), OUTSIDE, "bench"),
}
