"""The format that torch wrote before 1.6: pickles one after the other, then the storages' bytes."""

from __future__ import annotations

from typing import BinaryIO

from fxquant.models.interpreter import MOST_BYTES, Pickle, read_records
from fxquant.models.records import DictRecord, ListRecord, MalformedError, Storage
from fxquant.models.tensors import storage_bytes

# Pickle protocol 2 and the magic number that opens such a file.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_VERSION = 1001
_COUNT_SIZE = 8


class LegacyFile:
    """A file of this format, open: its `pickle`, and the bytes of its storages."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._total = file.seek(0, 2)
        file.seek(0)
        head = file.read(3 * MOST_BYTES)
        version = read_records(head, len(MAGIC))
        machine = read_records(head, version.end)
        if version.value != _VERSION or not isinstance(machine.value, DictRecord):
            raise MalformedError("it says that it is of another version of torch's format")
        self.pickle = read_records(head, machine.end)
        keys = read_records(head, self.pickle.end)
        self._places = self._find_storages(keys)

    def _find_storages(self, keys: Pickle) -> dict[str, tuple[int, int]]:
        """Where each storage begins, and how many items it says that it has."""
        listed = keys.value.items if isinstance(keys.value, ListRecord) else ()
        sizes = {key: storage_bytes(storage) for key, storage in self.pickle.storages.items()}
        places, start = {}, keys.end
        for key in listed:
            if not isinstance(key, str) or key not in sizes or key in places:
                raise MalformedError("its list of storages is not that of its tensors")
            self._file.seek(start)
            count = int.from_bytes(self._file.read(_COUNT_SIZE), "little", signed=True)
            places[key] = start + _COUNT_SIZE, count
            start += _COUNT_SIZE + sizes[key]
        if start > self._total:
            raise MalformedError("it ends too early: its tensors claim to be larger than the file")
        return places

    def size(self, storage: Storage) -> int | None:
        """The bytes that the file has for a storage, None where it has none."""
        if storage.key not in self._places:
            return None
        item = storage_bytes(storage) // max(storage.whole, 1)
        return self._places[storage.key][1] * item

    def read_into(self, storage: Storage, target: memoryview) -> None:
        """Fill `target` with a whole storage."""
        self._file.seek(self._places[storage.key][0])
        if self._file.readinto(target) != len(target):
            raise MalformedError("it ends too early")
