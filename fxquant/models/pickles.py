"""Reading what torch.save wrote, in each of its formats, without calling what a file names."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fxquant.errors import ModelLoadError, UntrustedClassError
from fxquant.models.archives import TorchArchive
from fxquant.models.interpreter import Pickle, read_records
from fxquant.models.layers import SAVE_STATE
from fxquant.models.legacy import LegacyFile
from fxquant.models.rebuild import rebuild
from fxquant.models.records import MalformedError, OddError
from fxquant.models.tars import TarFile
from fxquant.models.tensors import StorageSource
from fxquant.wording import reason_of


def read_pickle(path: Path, archive: TorchArchive, trust_classes: Sequence[str] = ()) -> object:
    """Read what an archive of torch.save holds.

    Raises UntrustedClassError where it names classes that are neither layers nor trusted,
    ModelLoadError where it can't be read or holds what no network holds.
    """

    def read() -> tuple[Pickle, StorageSource]:
        pickle = read_records(archive.pickle)
        if pickle.end < len(archive.pickle):
            raise MalformedError("something follows the end of its pickle")
        return pickle, archive

    return _read(path, read, trust_classes)


def read_legacy(path: Path, file: BinaryIO, trust_classes: Sequence[str] = ()) -> object:
    """Read the format that torch wrote before 1.6; raises like `read_pickle`."""

    def read() -> tuple[Pickle, StorageSource]:
        legacy = LegacyFile(file)
        return legacy.pickle, legacy

    return _read(path, read, trust_classes)


def read_tar(path: Path, file: BinaryIO, trust_classes: Sequence[str] = ()) -> object:
    """Read the format that torch wrote before 0.1.10; raises like `read_pickle`."""

    def read() -> tuple[Pickle, StorageSource]:
        tar = TarFile(file)
        return tar.pickle, tar

    return _read(path, read, trust_classes)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from looking for garbage: there is none, and much to look through."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(
    path: Path,
    read: Callable[[], tuple[Pickle, StorageSource]],
    trust_classes: Sequence[str],
) -> object:
    try:
        with _no_collections():
            pickle, source = read()
            return rebuild(pickle, source, path, trust_classes)
    except UntrustedClassError:
        raise
    except MalformedError as error:
        raise ModelLoadError(
            f"'{path}' can't be read: {error.message}",
            "the file may be truncated or damaged: compare its size with the original's; files "
            "saved with a pickle_protocol other than torch's default can't be read either",
        ) from error
    except OddError as error:
        raise ModelLoadError(
            f"'{path}' holds no plain network: {error.message}",
            f"look twice at where the file comes from; where the network is yours, {SAVE_STATE}",
        ) from error
    except (OSError, MemoryError) as error:
        raise ModelLoadError(f"'{path}' can't be read: {reason_of(error)}") from error
