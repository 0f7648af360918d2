"""Files: those that are read are regular ones, and none that is written ever looks finished early.

A path from elsewhere may lead to a pipe that nobody writes to, or to a device that never ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fxquant.errors import OutputError

# What a killed process leaves behind is told by both.
PREFIX, SUFFIX = ".fxquant-", ".part"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Of Unix alone; without O_BINARY Windows would change the ends of lines.
_NEVER_WAIT = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")


def open_regular(path: str | Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes; never waits for anybody.

    What is read, checked and hashed through the result is one and the same file, whatever becomes
    of the path. Raises OSError for whatever is no regular file, and for a path that can't be one.
    Without `follow_links` a link counts as none.
    """
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in _NEVER_WAIT)
    try:
        _require_regular(os.stat(path).st_mode, path)  # to open a device alone may act
        handle = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    except ValueError as error:  # a zero byte
        raise OSError(errno.EINVAL, "no such name", str(path)) from error
    except OSError as error:
        raise _told(error, path) from error
    try:
        _require_regular(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes; raises OSError for any other."""
    with open_regular(path) as file:
        return read_within(file, most)


def read_within(file: BinaryIO, most: int) -> bytes:
    """The bytes of an open file; raises OSError where there are more than `most`."""
    size = os.fstat(file.fileno()).st_size
    content = file.read(min(size, most) + 1)  # Python takes memory for as many as it is asked for
    if len(content) > min(size, most):
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes")
    return content


def _told(error: OSError, path: str | Path) -> OSError:
    """The same error, in words where the system's are odd: links, and sockets, can't be opened."""
    if error.errno == errno.ELOOP:
        return OSError(error.errno, "it is a link, or links lead in a circle", str(path))
    if error.errno == errno.ENXIO:
        return OSError(error.errno, "it is a socket or a device, not a file", str(path))
    return error


def _require_regular(mode: int, path: str | Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file", str(path))


def _kind(mode: int) -> str:
    return next((what for is_kind, what in _KINDS if is_kind(mode)), "something else")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    The content is on disk before the name is, so that a loss of power can't part them. On any
    failure the temporary file is removed and `path` is as it was. Raises OutputError where the
    folder can't be written, and for a device or a pipe, whose place a file must not take.
    """
    _require_replaceable(path)
    with told_as(path):
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f"{PREFIX}{path.name}-", suffix=SUFFIX
        )
        os.close(handle)
    temporary = Path(name)
    try:
        with told_as(path):
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def staged(folder: Path, *, last: str) -> Iterator[Path]:
    """A place to write files; when the block ends they move to `folder`, the one named `last` last.

    Where it fails none does. That last one is there only while all are: an old one goes first.
    Raises OutputError where the folder can't be written.
    """
    with told_as(folder):
        place = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX, suffix=SUFFIX))
    try:
        yield place
        for path in place.iterdir():
            _require_replaceable(folder / path.name)
        with told_as(folder):
            (folder / last).unlink(missing_ok=True)
            for path in sorted(place.iterdir(), key=lambda path: (path.name == last, path.name)):
                os.replace(path, folder / path.name)
            _sync_folder(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _require_replaceable(path: Path) -> None:
    """Raise OutputError for what is there and no file; a link is replaced, not followed."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # nothing there, a link to nothing, or what writing will tell
    if not stat.S_ISREG(mode):
        raise OutputError(f"can't write {path}: it is {_kind(mode)}, not a file")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had not finished writing into `folder`."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder is one that `remove_leftovers` removes."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)


@contextmanager
def told_as(path: Path) -> Iterator[None]:
    """Let errors of the operating system in the block be told as OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"can't write {path}: {error.strerror or error}",
            "once it can be written, the same command goes on where this one stopped",
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Put names on disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
