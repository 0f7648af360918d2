"""The zip archives that networks come in: told from one another, and checked before torch reads.

Programs find their way through an archive in different ways, and a file can show each of them
something else. What all must agree on, and what fits into the file, is checked here.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fxquant.errors import ModelLoadError
from fxquant.models.interpreter import MOST_BYTES
from fxquant.models.records import MalformedError, Storage
from fxquant.models.tensors import storage_dtype
from fxquant.wording import first_few, reason_of

_GIVE = "give the module that it was made from, or its state dict with --arch"
_DAMAGED = "compare its size with the original's and copy it again"
_RESAVE = "no torch.save wrote it like this: load it where you trust it, and save it again"

_HEADER, _HEADER_SIZE, _UTF8 = b"PK\x03\x04", 30, 0x800
_CHUNK = 1 << 18
_END, _END_SIZE = b"PK\x05\x06", 22
_LOCATOR, _LOCATOR_SIZE = b"PK\x06\x07", 20
_END64, _END64_SIZE = b"PK\x06\x06", 56


class TorchArchive:
    """An archive that torch.save wrote, open: its `pickle`, and the bytes of its storages."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, prefix: str):
        self._file, self._data = file, f"{prefix}data/"
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self.pickle = bytes(self._read(f"{prefix}data.pkl"))
        order = f"{prefix}byteorder"
        self._swapped = order in self._entries and self._read(order) == b"big"

    def size(self, storage: Storage) -> int | None:
        """The bytes that the archive has for a storage, None where it has none."""
        entry = self._entries.get(self._data + storage.key)
        return None if entry is None else entry.file_size

    def read_into(self, storage: Storage, target: memoryview) -> None:
        """Fill `target` with a whole storage; raises MalformedError where its checksum differs."""
        self._fill(self._data + storage.key, target)
        if self._swapped:
            _swap(target, storage)

    def _read(self, name: str) -> bytearray:
        content = bytearray(self._entries[name].file_size)
        self._fill(name, memoryview(content))
        return content

    def _fill(self, name: str, target: memoryview) -> None:
        """The bytes of an entry, read where the entry's own header says that they begin."""
        entry = self._entries[name]
        self._file.seek(_start_of(self._file, entry))
        checksum = 0
        for place in range(0, len(target), _CHUNK):  # of a size that the cache holds
            chunk = target[place : place + _CHUNK]
            if self._file.readinto(chunk) != len(chunk):
                raise MalformedError("it ends too early")
            checksum = zlib.crc32(chunk, checksum)
        if checksum != entry.CRC:
            raise MalformedError(
                f"'{first_few([name])}' in it does not match its checksum; a file saved under "
                "torch.serialization.set_crc32_options(False) has no checksums: load it and save "
                "it again"
            )


def _start_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin; raises MalformedError where its header is another's."""
    header = _read_at(file, entry.header_offset, _HEADER_SIZE)
    if len(header) < _HEADER_SIZE or not header.startswith(_HEADER):
        raise MalformedError("an entry has no header where the directory says")
    flags, method = struct.unpack_from("<HH", header, 6)
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    coding = "utf-8" if flags & _UTF8 else "cp437"
    named = file.read(name_size) == entry.orig_filename.encode(coding, "replace")
    if method != zipfile.ZIP_STORED or flags & 1 or not named:
        raise MalformedError("an entry's header and the directory say different things")
    return entry.header_offset + _HEADER_SIZE + name_size + extra_size


def open_archive(file: BinaryIO, path: Path, expected: str) -> TorchArchive:
    """Check an archive of torch.save; raises ModelLoadError for any other, and for damage.

    `expected` says what kinds of files can be given instead. The archive reads from `file` as
    long as it is used.
    """
    try:
        archive = zipfile.ZipFile(file)
        _tell_apart(archive.namelist(), path, expected)
        prefix = _check_entries(archive, file, path)
        return TorchArchive(file, archive, prefix)
    except MalformedError as error:
        raise ModelLoadError(f"'{path}' is damaged: {error.message}", _DAMAGED) from error
    except ModelLoadError:
        raise
    except Exception as error:  # zipfile raises nearly anything on what is no zip
        raise ModelLoadError(
            f"'{path}' is truncated or damaged: {reason_of(error)}", _DAMAGED
        ) from error


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


def _swap(target: memoryview, storage: Storage) -> None:
    """Turn numbers of a big-endian machine around, in place."""
    dtype = storage_dtype(storage.kind)
    width = dtype.itemsize // (2 if dtype.is_complex else 1)
    np.frombuffer(target, f"u{width}").byteswap(inplace=True)
