"""Evaluation data: what is wrong with a file is said before the run; and accuracy."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from fxquant.errors import DataError
from fxquant.report.evaluate import EvaluationData, accuracies

SHAPE = (3, 8, 6)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(10)


def saved(path, **arrays) -> EvaluationData:
    np.savez(path / "eval.npz", **arrays)
    return EvaluationData(path / "eval.npz")


def read(data: EvaluationData, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, read in batches of at most `size`."""
    images, labels = zip(*data.batches(size), strict=True)
    assert all(len(part) <= size for part in images)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_good_data_is_normalised_channels_first(kind, tmp_path):
    np.savez_compressed(tmp_path / "eval.npz", images=IMAGES, labels=LABELS.astype(kind))
    data = EvaluationData(tmp_path / "eval.npz", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    data.check(SHAPE)
    images, labels = read(data, 4)
    assert images.shape == (10, *SHAPE)
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    assert abs(images[3, 2, 7, 5] - (IMAGES[3, 7, 5, 2] / 255 - 0.3) / 0.4) < 1e-6
    assert labels.tolist() == list(range(10))


def test_one_mean_and_std_serve_all_channels(tmp_path):
    saved(tmp_path, images=IMAGES, labels=LABELS)
    images, _ = read(EvaluationData(tmp_path / "eval.npz", (0.5,), (0.25,)), 100)
    assert abs(images[0, 1, 2, 3] - (IMAGES[0, 2, 3, 1] / 255 - 0.5) / 0.25) < 1e-6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "holds images; expected arrays `images` and `labels`"),
        ({"x": IMAGES, "y": LABELS}, "holds x, y; expected"),
        ({}, "holds nothing; expected"),
        ({"images": IMAGES / 255, "labels": LABELS}, "images are float64 of shape"),
        (
            {"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS},
            r"uint8 of shape \(10, 3, 8, 6\); expected uint8 of shape \(n, 8, 6, 3\)",
        ),
        ({"images": IMAGES[..., 0], "labels": LABELS}, r"of shape \(10, 8, 6\); expected"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"of shape \(0, 8, 6, 3\)"),
        ({"images": IMAGES, "labels": LABELS[:9]}, r"labels are int64 of shape \(9,\)"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, r"labels are int64 of shape \(10, 1\)"),
        ({"images": IMAGES, "labels": LABELS / 1}, "labels are float64"),
        ({"images": IMAGES, "labels": np.array(list("abcdefghij"))}, "labels are <U1"),
        ({"images": IMAGES, "labels": np.array([{}] * 10)}, "labels are object"),
        ({"images": np.array([None] * 10), "labels": LABELS}, "images are object"),
    ],
)
def test_wrong_arrays_are_told(arrays, message, tmp_path):
    data = saved(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        data.check(SHAPE)
    assert "eval.npz" in caught.value.message


def test_wrong_files_are_told(tmp_path):
    with pytest.raises(DataError, match="no such evaluation data"):
        EvaluationData(tmp_path / "absent.npz").check(SHAPE)
    path = tmp_path / "eval.npz"
    for content in (b"", b"not a zip", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="can't be read") as caught:
            EvaluationData(path).check(SHAPE)
        assert "numpy.savez" in caught.value.hint
    with pytest.raises(DataError, match="can't be read"):
        EvaluationData(tmp_path).check(SHAPE)
    np.save(tmp_path / "plain.npy", IMAGES)
    with pytest.raises(DataError, match="can't be read"):
        EvaluationData(tmp_path / "plain.npy").check(SHAPE)


def test_a_zip_of_something_else_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "eval.npz", "w") as archive:
        archive.writestr("images.npy", "text")
        archive.writestr("labels.npy", "")
    with pytest.raises(DataError, match="can't be read"):
        EvaluationData(tmp_path / "eval.npz").check(SHAPE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_behind_good_headers_is_told_when_loading(save, tmp_path):
    path = tmp_path / "eval.npz"
    save(path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[600] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="can't be read"):
        read(EvaluationData(path), 3)


def test_mean_and_std_fit_the_channels(tmp_path):
    saved(tmp_path, images=IMAGES, labels=LABELS)
    path = tmp_path / "eval.npz"
    with pytest.raises(DataError, match="the evaluation mean has 2 values; expected 1 or 3"):
        EvaluationData(path, (0.5, 0.5)).check(SHAPE)
    with pytest.raises(DataError, match="the evaluation std has 4 values"):
        EvaluationData(path, (0.5,), (1.0,) * 4).check(SHAPE)
    with pytest.raises(DataError, match="not above 0"):
        EvaluationData(path, (0.5,), (0.2, 0.0, 0.2))


@pytest.mark.parametrize("batch", [1, 3, 10, 100])
def test_accuracy_counts_every_image_once(batch, tmp_path):
    guesses = np.array([0, 1, 2, 2, 2, 2, 1], dtype=np.uint8)
    images = np.full((7, 8, 6, 3), guesses[:, None, None, None], dtype=np.uint8)
    data = saved(tmp_path, images=images, labels=np.array([0, 1, 2, 0, 1, 2, 0]))
    seen = []

    def predict(part: np.ndarray) -> np.ndarray:
        seen.append(len(part))
        return np.eye(3)[(part[:, 0, 0, 0] * 255).round().astype(int)]

    def zero(part: np.ndarray) -> np.ndarray:
        return np.eye(3)[np.zeros(len(part), int)]

    models = {"good": predict, "zero": zero}
    assert accuracies(models, data, batch=batch) == ({"good": 400 / 7, "zero": 300 / 7}, 7)
    assert sum(seen) == 7
    assert max(seen) <= batch


def test_fortran_order_and_sizes_that_lie_are_told(tmp_path):
    with pytest.raises(DataError, match=r"Fortran order; use numpy\.ascontiguousarray"):
        saved(tmp_path, images=np.asfortranarray(IMAGES), labels=LABELS).check(SHAPE)
    saved(tmp_path, images=IMAGES, labels=LABELS)
    with zipfile.ZipFile(tmp_path / "eval.npz") as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "eval.npz", "w") as archive:
        for name, content in arrays.items():
            archive.writestr(name, content.replace(b"(10, 8, 6, 3)", b"(99, 8, 6, 3)"))
    with pytest.raises(DataError, match="not as large as it claims"):
        EvaluationData(tmp_path / "eval.npz").check(SHAPE)


@pytest.mark.parametrize("values", [((np.nan,), (1.0,)), ((0.0,), (np.nan,)), ((0.0,), (np.inf,))])
def test_mean_and_std_are_finite(values, tmp_path):
    with pytest.raises(DataError, match=r"not finite|not above 0"):
        EvaluationData(tmp_path, *values)
