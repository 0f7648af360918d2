"""The zip archives that networks come in: told from one another, and checked before torch reads.

torch finds its way through an archive differently than Python does, and believes the sizes that
a file claims. What both must agree on, and what fits into the file, is checked here.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fxquant.errors import ModelLoadError
from fxquant.models.opcodes import MOST_BYTES
from fxquant.models.wording import first_few, reason_of

_GIVE = "give the module that it was made from, or its state dict with --arch"
_DAMAGED = "compare its size with the original's and copy it again"
_RESAVE = "no torch.save wrote it like this: load it where you trust it, and save it again"

_END, _END_SIZE = b"PK\x05\x06", 22
_LOCATOR, _LOCATOR_SIZE = b"PK\x06\x07", 20
_END64, _END64_SIZE = b"PK\x06\x06", 56


@dataclass(frozen=True)
class TorchArchive:
    """The pickle of an archive that torch.save wrote, and the bytes of its storages by key."""

    pickle: bytes
    storages: dict[str, int]


def open_archive(file: BinaryIO, path: Path, expected: str) -> TorchArchive:
    """Check an archive of torch.save; raises ModelLoadError for any other, and for damage.

    `expected` says what kinds of files can be given instead.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _tell_apart(archive.namelist(), path, expected)
            prefix = _check_entries(archive, file, path)
            _check_sums(archive, path)
            content = archive.read(f"{prefix}data.pkl")
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    except ModelLoadError:
        raise
    except Exception as error:  # zipfile raises nearly anything on what is no zip
        raise ModelLoadError(
            f"'{path}' is truncated or damaged: {reason_of(error)}", _DAMAGED
        ) from error
    data = f"{prefix}data/"
    storages = {n.removeprefix(data): size for n, size in sizes.items() if n.startswith(data)}
    return TorchArchive(content, storages)


def _tell_apart(names: list[str], path: Path, expected: str) -> None:
    members = {name.partition("/")[2] or name for name in names}
    if members & {"archive_format", "serialized_exported_program.json"}:
        raise ModelLoadError(
            f"'{path}' is an exported program (.pt2), which is not supported yet", _GIVE
        )
    if "constants.pkl" in members:
        raise ModelLoadError(f"'{path}' is a TorchScript archive, which can't be traced", _GIVE)
    if "data.pkl" not in members:
        raise ModelLoadError(
            f"'{path}' is a zip archive that torch.save did not write; it holds "
            f"{first_few(names) or 'nothing'}",
            expected,
        )


def _check_entries(archive: zipfile.ZipFile, file: BinaryIO, path: Path) -> str:
    """Raise ModelLoadError unless the archive is laid out as torch does; the names' prefix."""
    entries = archive.infolist()
    prefix = entries[0].filename.partition("/")[0] + "/"
    odd = None
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        odd = "it is compressed or encrypted"
    elif not all(entry.filename.startswith(prefix) for entry in entries):
        odd = f"not all of it lies in '{prefix}'"
    elif len({entry.filename.casefold() for entry in entries}) < len(entries):
        odd = "two of its entries have the same name"
    elif sum(entry.file_size for entry in entries) > file.seek(0, 2):
        odd = "its entries claim to be larger than the file"
    elif archive.start_dir != _directory_offset(file):
        odd = "its directory is not where its end says"
    elif archive.getinfo(f"{prefix}data.pkl").file_size > MOST_BYTES:
        odd = f"its pickle is larger than {MOST_BYTES >> 20} MB"
    if odd:
        raise ModelLoadError(f"'{path}' is an odd archive: {odd}", _RESAVE)
    return prefix


def _directory_offset(file: BinaryIO) -> int | None:
    """Where the central directory begins, None where the file does not end with its end record."""
    end = file.seek(0, 2) - _END_SIZE
    record = _read_at(file, end, _END_SIZE)
    if not record.startswith(_END) or record[-2:] != b"\0\0":  # the length of a comment
        return None
    size, offset = struct.unpack_from("<II", record, 12)
    locator = _read_at(file, end - _LOCATOR_SIZE, _LOCATOR_SIZE)
    if locator.startswith(_LOCATOR):
        end -= _LOCATOR_SIZE + _END64_SIZE
        record = _read_at(file, end, _END64_SIZE)
        if not record.startswith(_END64) or struct.unpack_from("<Q", locator, 8)[0] != end:
            return None
        size, offset = struct.unpack_from("<QQ", record, 40)
    return offset if offset + size == end else None


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    if offset < 0:
        return b""
    file.seek(offset)
    return file.read(count)


def _check_sums(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ModelLoadError where an entry doesn't match its checksum: torch never looks."""
    damaged = archive.testzip()
    if damaged is not None:
        raise ModelLoadError(
            f"'{path}' is damaged: '{first_few([damaged])}' does not match its checksum",
            f"{_DAMAGED}; a file saved under torch.serialization.set_crc32_options(False) has no "
            "checksums: load it and save it again",
        )
