"""From a RetinaNet's raw predictions to its detections, in ONNX operators.

Anchors, decoding, the best candidates of each level, suppression within each class, and the best of
what is left: torchvision's `RetinaNet.postprocess_detections`, for any number of images at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torchvision.models.detection import RetinaNet

from fxquant.errors import ExportError
from fxquant.exporters.external import edited_copy, load_model_without_data
from fxquant.exporters.runtime import make_session
from fxquant.files import write_atomic
from fxquant.graph.detectors import DetectorNetwork

LOGITS, DELTAS = "cls_logits", "bbox_regression"
OUTPUTS = ("boxes", "scores", "labels", "count")
MARK = "fxquant.detections"


@dataclass(frozen=True)
class Level:
    """One feature map: the anchors around each of its places, and how far these are apart."""

    anchors: np.ndarray
    height: int
    width: int
    step_y: int
    step_x: int

    @property
    def count(self) -> int:
        return self.height * self.width * len(self.anchors)


def add_detections(student: nn.Module, path: str | Path, input_shape: tuple[int, ...]) -> None:
    """Let the file of a RetinaNet give detections in place of raw predictions.

    For n images that fill the input its outputs are `boxes` (n, d, 4) as x1, y1, x2, y2 in pixels,
    `scores` (n, d), `labels` (n, d) and `count` (n), where d is the detector's limit: the first
    `count` rows are detections, best first; in the others scores and boxes are 0, labels -1.
    Raises ExportError where the student is no RetinaNet.
    """
    path, detector = Path(path), retinanet_of(student)
    network = load_model_without_data(path)
    levels = _levels(detector, input_shape)
    tail = _tail(levels, _constants(detector, levels, input_shape), network)
    merged = onnx.compose.merge_models(network, tail, [(LOGITS, LOGITS), (DELTAS, DELTAS)])
    merged.producer_name, merged.producer_version = network.producer_name, network.producer_version
    merged.graph.name = network.graph.name
    props = {entry.key: entry.value for entry in network.metadata_props}
    onnx.helper.set_model_props(merged, {**props, MARK: "nms"})
    content = merged.SerializeToString(deterministic=True)
    write_atomic(path, lambda file: file.write_bytes(content))
    onnx.checker.check_model(path, full_check=True)
    make_session(path)


def retinanet_of(student: nn.Module) -> RetinaNet:
    """The RetinaNet whose networks a student is; raises ExportError for anything else."""
    detector = student.detector() if isinstance(student, DetectorNetwork) else None
    if not isinstance(detector, RetinaNet):
        raise ExportError(
            f"detections can be added to a RetinaNet's file, not to that of a "
            f"{type(detector or student).__name__}",
            "leave --with-nms out: the file then gives the raw predictions",
        )
    return detector


@contextmanager
def raw_predictions(path: Path) -> Iterator[Path]:
    """A file that gives what the network predicts: `path` itself, but for files with detections."""
    model = load_model_without_data(path)
    if not any(entry.key == MARK for entry in model.metadata_props):
        yield path
        return
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (LOGITS, DELTAS))
    with edited_copy(model, path) as copy:
        yield copy


@torch.no_grad()
def _levels(detector: RetinaNet, input_shape: tuple[int, ...]) -> list[Level]:
    features = list(detector.backbone(torch.zeros(1, *input_shape)).values())
    _, height, width = input_shape
    generator = detector.anchor_generator
    cells = [
        generator.generate_anchors(sizes, ratios).numpy()
        for sizes, ratios in zip(generator.sizes, generator.aspect_ratios, strict=True)
    ]
    sizes = [feature.shape[-2:] for feature in features]
    return [
        Level(cell, h, w, height // h, width // w)
        for cell, (h, w) in zip(cells, sizes, strict=True)
    ]


_LEVEL = """
    shifts_x_{i} = Expand(xs_{i}, grid_{i})
    shifts_y_{i} = Expand(ys_{i}, grid_{i})
    places_{i} = Concat <axis = 3> (shifts_x_{i}, shifts_y_{i}, shifts_x_{i}, shifts_y_{i})
    spread_{i} = Add(places_{i}, cells_{i})
    anchors_{i} = Reshape(spread_{i}, fours)
    flat_{i} = Flatten(logits_{i})
    all_scores_{i} = Sigmoid(flat_{i})
    scores_{i}, found_{i} = TopK(all_scores_{i}, candidates_{i})
    which_{i} = Div(found_{i}, classes)
    labels_{i} = Mod(found_{i}, classes)
    bases_{i} = Gather(anchors_{i}, which_{i})
    column_{i} = Unsqueeze(which_{i}, last)
    codes_{i} = GatherND <batch_dims = 1> (deltas_{i}, column_{i})
"""
_REST = """
    codes = Div(raw_codes, weights)
    x1, y1, x2, y2 = Split <axis = 2, num_outputs = 4> (bases)
    dx, dy, free_dw, free_dh = Split <axis = 2, num_outputs = 4> (codes)
    width = Sub(x2, x1)
    height = Sub(y2, y1)
    half_width = Mul(width, half)
    half_height = Mul(height, half)
    center_x = Add(x1, half_width)
    center_y = Add(y1, half_height)
    dw = Min(free_dw, largest)
    dh = Min(free_dh, largest)
    moved_x = Mul(dx, width)
    moved_y = Mul(dy, height)
    new_x = Add(moved_x, center_x)
    new_y = Add(moved_y, center_y)
    grown_w = Exp(dw)
    grown_h = Exp(dh)
    new_w = Mul(grown_w, width)
    new_h = Mul(grown_h, height)
    to_side = Mul(new_w, half)
    to_top = Mul(new_h, half)
    left = Sub(new_x, to_side)
    top = Sub(new_y, to_top)
    right = Add(new_x, to_side)
    bottom = Add(new_y, to_top)
    free_boxes = Concat <axis = 2> (left, top, right, bottom)
    inner_boxes = Max(free_boxes, zero)
    all_boxes = Min(inner_boxes, edges)
    label_rows = Unsqueeze(all_labels, one)
    score_rows = Unsqueeze(all_scores, one)
    is_class = Equal(label_rows, class_column)
    class_scores = Where(is_class, score_rows, nothing)
    selected = NonMaxSuppression(all_boxes, class_scores, most, overlap, threshold)
    kept = Gather <axis = 1> (selected, image_and_box)
    kept_scores = GatherND(all_scores, kept)
    shape = Shape(all_scores)
    blank = Expand(nothing, shape)
    left_over = ScatterND(blank, kept, kept_scores)
    best, order = TopK(left_over, detections)
    is_there = Greater(best, below)
    scores = Where(is_there, best, zero)
    best_labels = GatherElements <axis = 1> (all_labels, order)
    labels = Where(is_there, best_labels, no_label)
    order_column = Unsqueeze(order, last)
    best_boxes = GatherND <batch_dims = 1> (all_boxes, order_column)
    there_column = Unsqueeze(is_there, last)
    boxes = Where(there_column, best_boxes, zero)
    ones = Cast <to = 7> (is_there)
    count = ReduceSum <keepdims = 0> (ones, one)
"""


def _tail(
    levels: list[Level], constants: dict[str, np.ndarray], network: onnx.ModelProto
) -> onnx.ModelProto:
    """The part behind the network as a model of its own: raw predictions in, detections out."""
    classes = int(constants["classes"])
    opset, total = network.opset_import[0].version, sum(level.count for level in levels)
    parts = ", ".join("{0}_" + str(i) for i in range(len(levels)))
    joined = (("raw_codes", "codes"), ("bases", "bases"))
    body = [
        f"{parts.format('logits')} = Split <axis = 1> ({LOGITS}, counts)",
        f"{parts.format('deltas')} = Split <axis = 1> ({DELTAS}, counts)",
        *(_LEVEL.format(i=i) for i in range(len(levels))),
        *(f"{whole} = Concat <axis = 1> ({parts.format(part)})" for whole, part in joined),
        f"all_scores = Concat <axis = 1> ({parts.format('scores')})",
        f"all_labels = Concat <axis = 1> ({parts.format('labels')})",
        _REST,
    ]
    text = (
        f'<ir_version: {network.ir_version}, opset_import: ["" : {opset}]> detections '
        f"(float[batch, {total}, {classes}] {LOGITS}, float[batch, {total}, 4] {DELTAS}) => "
        "(float[batch, d, 4] boxes, float[batch, d] scores, int64[batch, d] labels, "
        f"int64[batch] count) {{ {' '.join(body)} }}"
    )
    model = onnx.parser.parse_model(text)
    for name, numbers in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(numbers, name))
    kept = {"rename_inputs": False, "rename_outputs": False}
    return onnx.compose.add_prefix(model, "detections.", **kept)


def _constants(
    detector: RetinaNet, levels: list[Level], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    classes = _classes(detector, levels)
    coder, (_, height, width) = detector.box_coder, shape
    candidates = [min(detector.topk_candidates, level.count * classes) for level in levels]
    numbers = {
        "counts": [level.count for level in levels],
        "fours": [-1, 4],
        "classes": classes,
        "last": [-1],
        "one": [1],
        "class_column": np.arange(classes).reshape(1, classes, 1),
        "image_and_box": [0, 2],
        "most": [detector.detections_per_img],
        "detections": [min(detector.detections_per_img, sum(candidates))],
        "no_label": -1,
        "weights": np.float32(coder.weights),
        "largest": np.float32(coder.bbox_xform_clip),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "edges": np.float32([width, height, width, height]),
        "nothing": np.float32(-1),
        "below": np.float32(-0.5),
        "overlap": np.float32([detector.nms_thresh]),
        "threshold": np.float32([detector.score_thresh]),
    }
    for i, level in enumerate(levels):
        xs, ys = np.arange(level.width) * level.step_x, np.arange(level.height) * level.step_y
        numbers |= {
            f"xs_{i}": np.float32(xs).reshape(1, -1, 1, 1),
            f"ys_{i}": np.float32(ys).reshape(-1, 1, 1, 1),
            f"grid_{i}": [level.height, level.width, 1, 1],
            f"cells_{i}": np.float32(level.anchors),
            f"candidates_{i}": [candidates[i]],
        }
    return {
        name: value if getattr(value, "dtype", None) == np.float32 else np.asarray(value, np.int64)
        for name, value in numbers.items()
    }


def _classes(detector: RetinaNet, levels: list[Level]) -> int:
    """Classes that the head scores, which a traced one no longer says."""
    convolutions = list(detector.head.classification_head.cls_logits.parameters())
    return convolutions[0].shape[0] // len(levels[0].anchors)
