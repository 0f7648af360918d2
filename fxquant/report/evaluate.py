"""Accuracy on a person's own labelled images: for the report alone, after training."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fxquant.errors import DataError
from fxquant.files import open_regular

BATCH = 100
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that numpy writes
# Beyond both, an array is taken for one that was made to be large: pictures compress to a half.
_MOST_RATIO, _SMALL_BYTES = 100, 1 << 26
_MOST_HEADER = 10_000  # numpy's own limit, before which it reads the header


@dataclass(frozen=True)
class _Array:
    """One array of an .npz: where its numbers begin, and what they are."""

    entry: str
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class EvaluationData:
    """Where labelled images are and how they are normalised: (pixels / 255 - mean) / std.

    `path` is an .npz with `images` uint8 (n, height, width, channels) and `labels` (n,) whole
    numbers. `mean` and `std` have one value, or one per channel.
    """

    path: Path
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in self.std):
            raise DataError("a standard deviation of the evaluation data is not above 0")
        if not all(map(math.isfinite, self.mean)):
            raise DataError("a mean of the evaluation data is not finite")

    def check(self, input_shape: tuple[int, ...]) -> None:
        """Raise DataError unless the file's arrays have the right kinds and shapes.

        Reads the arrays' headers alone, so that a mistake is told before a long run.
        """
        with _opened(self.path) as archive:
            self._check_arrays(_read_headers(archive, self.path), input_shape)

    def _check_arrays(self, arrays: dict[str, _Array], input_shape: tuple[int, ...]) -> None:
        images, labels = arrays.get("images"), arrays.get("labels")
        if images is None or labels is None:
            raise DataError(
                f"evaluation data {self.path} holds {', '.join(sorted(arrays)) or 'nothing'}; "
                "expected arrays `images` and `labels`"
            )
        self._check_images(images.shape, images.dtype, input_shape)
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise DataError(
                f"evaluation data {self.path}: labels are {labels.dtype} of shape {labels.shape}; "
                f"expected whole numbers of shape {images.shape[:1]}"
            )
        channels = input_shape[0]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise DataError(
                    f"the evaluation {name} has {len(values)} values; expected 1 or {channels}"
                )

    def _check_images(self, shape: tuple, dtype: np.dtype, input_shape: tuple[int, ...]) -> None:
        channels, *size = input_shape
        if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (*size, channels) or not shape[0]:
            raise DataError(
                f"evaluation data {self.path}: images are {dtype} of shape {shape}; expected "
                f"uint8 of shape (n, {', '.join(map(str, size))}, {channels})"
            )

    def batches(self, size: int = BATCH) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Normalised images float32 (n, channels, height, width) and labels int64 (n,), in order.

        At most `size` at a time are in memory. Raises DataError where the numbers behind the
        headers are damaged.
        """
        mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        with _opened(self.path) as archive:
            arrays = _read_headers(archive, self.path)
            names = ("images", "labels")
            parts = (_read_rows(archive, self.path, arrays[name], size) for name in names)
            for images, labels in zip(*parts, strict=True):
                pixels = images.transpose(0, 3, 1, 2).astype(np.float32)
                yield (pixels / 255 - mean) / std, labels.astype(np.int64)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at a path, open for the block, so that all is read from one and the same file."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            archive = stack.enter_context(zipfile.ZipFile(file))
        except FileNotFoundError as error:
            raise DataError(f"no such evaluation data: {path}") from error
        except Exception as error:  # zipfile raises nearly anything on what is no .npz
            raise _unreadable(path, error) from error
        yield archive


def _read_headers(archive: zipfile.ZipFile, path: Path) -> dict[str, _Array]:
    """The arrays of an .npz by name, without reading their numbers."""
    try:
        entries = archive.infolist()
        arrays = [_read_header(archive, entry) for entry in entries]
    except Exception as error:  # numpy does, too
        raise _unreadable(path, error) from error
    for array, entry in zip(arrays, entries, strict=True):
        bomb = entry.file_size > max(_SMALL_BYTES, _MOST_RATIO * entry.compress_size)
        if bomb or (array.dtype.kind != "O" and array.end != entry.file_size):
            raise _unreadable(path, ValueError(f"'{array.entry}' is not as large as it claims"))
    return {array.entry.removesuffix(".npy"): array for array in arrays}


def _read_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Array:
    if entry.compress_type not in _METHODS:
        raise ValueError(f"'{entry.filename}' is compressed in a way that numpy does not")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        form, read = {
            (1, 0): ("<H", np.lib.format.read_array_header_1_0),
            (2, 0): ("<I", np.lib.format.read_array_header_2_0),
        }[version]
        size = file.read(struct.calcsize(form))
        (length,) = struct.unpack(form, size)
        if length > _MOST_HEADER:
            raise ValueError(f"'{entry.filename}' has a header of {length} bytes")
        shape, by_columns, dtype = read(io.BytesIO(size + file.read(length)))
        start = file.tell()
    if by_columns and len(shape) > 1:
        raise ValueError(f"'{entry.filename}' is in Fortran order; use numpy.ascontiguousarray")
    return _Array(entry.filename, start, shape, dtype)


def _read_rows(
    archive: zipfile.ZipFile, path: Path, array: _Array, count: int
) -> Iterator[np.ndarray]:
    """The array in parts of `count` rows."""
    row = math.prod(array.shape[1:])
    try:
        with archive.open(array.entry) as file:
            file.read(array.start)
            for first in range(0, array.shape[0], count):
                rows = min(count, array.shape[0] - first)
                content = file.read(rows * row * array.dtype.itemsize)
                yield np.frombuffer(content, array.dtype, rows * row).reshape(
                    rows, *array.shape[1:]
                )
    except GeneratorExit:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error)[:200]
    return DataError(
        f"evaluation data {path} can't be read: {reason}",
        "write it with numpy.savez(file, images=..., labels=...)",
    )


def accuracies(
    models: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    data: EvaluationData,
    *,
    batch: int = BATCH,
) -> tuple[dict[str, float], int]:
    """Top-1 accuracy in percent of each function from images to logits, and the number of images.

    The functions take float32 images (n, channels, height, width) and give (n, classes).
    """
    right, total = dict.fromkeys(models, 0), 0
    for images, labels in data.batches(batch):
        total += len(labels)
        for name, predict in models.items():
            right[name] += int((predict(images).argmax(1) == labels).sum())
    return {name: 100 * count / total for name, count in right.items()}, total
