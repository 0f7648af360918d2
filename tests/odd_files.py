"""What may lie where a file should, and is none: each hangs or fills memory if it is read."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path


def make_socket(path: Path) -> None:
    """A socket, whose name must be short: made from inside its folder."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


# How to make it, and what is said of it.
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "it is a directory, not a file"),
    "a pipe": (os.mkfifo, "it is a pipe, not a file"),
    "a socket": (make_socket, "it is a socket"),
    "zeros without end": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "the null device": (lambda path: path.symlink_to("/dev/null"), "it is a device, not a file"),
    "a full device": (lambda path: path.symlink_to("/dev/full"), "it is a device, not a file"),
    "a link in a circle": (lambda path: path.symlink_to(path), "links lead in a circle"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "No such file|no such|no file"),
}
