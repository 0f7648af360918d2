"""The format that torch wrote before 0.1.10: a tar archive of storages, tensors and a pickle."""

from __future__ import annotations

import struct
import tarfile
from typing import BinaryIO

from fxquant.models.interpreter import MOST_BYTES, Pickle, read_records
from fxquant.models.records import Call, Global, ListRecord, MalformedError, Storage
from fxquant.models.tensors import MOST_DIMENSIONS, storage_bytes, storage_dtype

_MEMBERS = ("storages", "tensors", "pickle")
MOST_MEMBERS = 16
MOST_TENSORS = 1 << 16
_WINDOW = 1 << 12  # more than the pickle before a storage or a tensor ever takes
_TENSOR = Global("torch._utils", "_rebuild_tensor")


def is_tar(head: bytes) -> bool:
    """Whether a file that begins like this is a tar archive."""
    return head[257:262] == b"ustar"


class TarFile:
    """A file of this format, open: its `pickle`, and the bytes of its storages.

    Nothing is unpacked. Members are read where they lie in the file, and links are refused.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._members = self._find_members()
        self._places: dict[str, int] = {}
        self._made: dict[str, object] = {}
        self._read_storages()
        self._read_tensors()
        start, size = self._members["pickle"]
        if size > MOST_BYTES:
            raise MalformedError(f"its pickle is larger than {MOST_BYTES >> 20} MB")
        self.pickle = read_records(self._at(start, size), references=self._made)

    def size(self, storage: Storage) -> int | None:
        """The bytes that the file has for a storage, None where it has none."""
        return storage_bytes(storage) if storage.key in self._places else None

    def read_into(self, storage: Storage, target: memoryview) -> None:
        """Fill `target` with a whole storage."""
        self._file.seek(self._places[storage.key])
        if self._file.readinto(target) != len(target):
            raise MalformedError("it ends too early")

    def _find_members(self) -> dict[str, tuple[int, int]]:
        """Where each member begins, and its bytes."""
        found: dict[str, tuple[int, int]] = {}
        total = self._file.seek(0, 2)
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                for count, member in enumerate(archive):
                    name = member.name.removeprefix("./")
                    if count >= MOST_MEMBERS or name in found:
                        raise MalformedError("its members are not those that torch wrote")
                    if name in _MEMBERS and (not member.isreg() or member.issparse()):
                        raise MalformedError(f"'{name}' in it is no plain file")
                    found[name] = member.offset_data, member.size
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise MalformedError(f"it is a damaged tar archive: {type(error).__name__}") from error
        if not found.keys() >= set(_MEMBERS):
            raise MalformedError("it is a tar archive that torch did not write")
        if any(start + size > total for start, size in found.values()):
            raise MalformedError("its members claim to be larger than the file")
        return found

    def _at(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)

    def _pickle_at(self, start: int, end: int) -> tuple[Pickle, int]:
        pickle = read_records(self._at(start, max(min(_WINDOW, end - start), 0)))
        return pickle, start + pickle.end

    def _count_at(self, start: int, end: int) -> tuple[int, int]:
        pickle, start = self._pickle_at(start, end)
        if type(pickle.value) is not int or not 0 <= pickle.value <= MOST_TENSORS:
            raise MalformedError("it has no sane number of tensors")
        return pickle.value, start

    def _read_storages(self) -> None:
        """Each storage: its key and kind as a pickle, its number of items, its bytes."""
        start, size = self._members["storages"]
        end = start + size
        count, start = self._count_at(start, end)
        for _ in range(count):
            pickle, start = self._pickle_at(start, end)
            key, kind = _fields(pickle.value, 3)[0], _fields(pickle.value, 3)[2]
            (items,) = struct.unpack("<q", self._at(start, 8).ljust(8, b"\xff"))
            if not isinstance(kind, Global) or type(key) is not int or items < 0:
                raise MalformedError("it has a storage that makes no sense")
            start += 8
            self._places[str(key)] = start
            self._made[str(key)] = Storage(str(key), kind.dotted, items, 0, items)
            start += items * storage_dtype(kind.dotted).itemsize
            if start > end:
                raise MalformedError("its storages claim to be larger than the file")
        views, _ = self._pickle_at(start, end)
        for view in views.value.items if isinstance(views.value, ListRecord) else ():
            self._add_view(_fields(view, 4))

    def _add_view(self, view: tuple) -> None:
        key, root, start, count = view
        whole = self._made.get(str(root))
        if any(type(n) is not int or n < 0 for n in view) or not isinstance(whole, Storage):
            raise MalformedError("it has a part of a storage that makes no sense")
        if start + count > whole.whole:
            raise MalformedError("it has a part of a storage that isn't inside it")
        self._made[str(key)] = Storage(whole.key, whole.kind, count, start, whole.whole)

    def _read_tensors(self) -> None:
        """Each tensor: its key and storage as a pickle, then its shape, strides and offset."""
        start, size = self._members["tensors"]
        end = start + size
        count, start = self._count_at(start, end)
        for _ in range(count):
            pickle, start = self._pickle_at(start, end)
            key, storage, _kind = _fields(pickle.value, 3)
            (dimensions,) = struct.unpack("<i", self._at(start, 4).ljust(4, b"\xff"))
            if not 0 <= dimensions <= MOST_DIMENSIONS:
                raise MalformedError(f"it has a tensor of {dimensions} dimensions")
            form = struct.Struct(f"<{2 * dimensions + 1}q")
            data = self._at(start + 8, form.size)
            if len(data) < form.size:
                raise MalformedError("it ends inside a tensor")
            numbers = form.unpack(data)
            shape, stride = numbers[:dimensions], numbers[dimensions:-1]
            made = self._made.get(str(storage))
            self._made[str(key)] = Call(_TENSOR, (made, numbers[-1], shape, stride))
            start += 8 + form.size


def _fields(record: object, count: int) -> tuple:
    if not isinstance(record, tuple) or len(record) != count:
        raise MalformedError("it has a storage or tensor that makes no sense")
    return record
