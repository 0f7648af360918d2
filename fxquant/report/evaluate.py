"""Accuracy on a person's own labelled images: for the report alone, after training."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fxquant.errors import DataError

_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


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
        if any(value <= 0 for value in self.std):
            raise DataError("a standard deviation of the evaluation data is not above 0")

    def check(self, input_shape: tuple[int, ...]) -> None:
        """Raise DataError unless the file's arrays have the right kinds and shapes.

        Reads the arrays' headers alone, so that a mistake is told before a long run.
        """
        shapes = _array_headers(self.path)
        images, labels = shapes.get("images"), shapes.get("labels")
        if images is None or labels is None:
            raise DataError(
                f"evaluation data {self.path} holds {', '.join(sorted(shapes)) or 'nothing'}; "
                "expected arrays `images` and `labels`"
            )
        self._check_images(*images, input_shape)
        if labels[1].kind not in "iu" or labels[0] != images[0][:1]:
            raise DataError(
                f"evaluation data {self.path}: labels are {labels[1]} of shape {labels[0]}; "
                f"expected whole numbers of shape {images[0][:1]}"
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

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Normalised images float32 (n, channels, height, width), and labels int64 (n,).

        Raises DataError where the arrays behind the headers are damaged.
        """
        try:
            with np.load(self.path, allow_pickle=False) as data:
                images, labels = data["images"], data["labels"].astype(np.int64)
        except _UNREADABLE as error:
            raise DataError(f"evaluation data {self.path} can't be read: {error}") from error
        mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std, labels


def _array_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each array of an .npz, without reading the arrays."""
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shape, _, dtype = read(file)
                headers[name.removesuffix(".npy")] = (shape, dtype)
    except FileNotFoundError as error:
        raise DataError(f"no such evaluation data: {path}") from error
    except _UNREADABLE as error:
        raise DataError(
            f"evaluation data {path} can't be read: {error}",
            "write it with numpy.savez(file, images=..., labels=...)",
        ) from error
    return headers


def accuracy(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch: int = 100,
) -> float:
    """Top-1 accuracy in percent of a function from images to logits (n, classes)."""
    right = 0
    for start in range(0, len(images), batch):
        logits = predict(images[start : start + batch])
        right += int((logits.argmax(1) == labels[start : start + batch]).sum())
    return 100 * right / len(images)
