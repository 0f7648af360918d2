"""Detectors: their networks as functions from images to raw predictions, and back again.

A detector takes a list of images of any size and returns boxes; what happens in between beside
its networks (resizing, anchors, decoding, suppression) has nothing to quantize and nothing that a
teacher and a student could be compared by. `DetectorNetwork` leaves it out.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONE_STAGE = ("transform", "backbone", "anchor_generator", "head")
_TWO_STAGE = ("transform", "backbone", "rpn", "roi_heads")
_HEADS = ("box", "mask", "keypoint")


def is_detector(model: nn.Module) -> bool:
    """Whether a model is built like torchvision's detectors, of one stage or of two."""
    return any(all(hasattr(model, part) for part in parts) for parts in (_ONE_STAGE, _TWO_STAGE))


class DetectorNetwork(nn.Module):
    """The networks of a detector: from images to what its heads predict.

    Takes images (n, channels, height, width) that are resized and normalised already, as the
    detector's own transform leaves them, and returns a dict of tensors whose first axis is n: of a
    detector of one stage what its head returns; of one of two stages the objectness and the box
    deltas of each level, and what the heads predict for fixed parts of each feature map: the whole
    and its four quarters, where the detector itself would take regions that it proposes.

    Submodules, and so all names of parameters, are those of the detector.
    """

    # The tracer goes straight to the networks inside.
    fxquant_host = True

    def __init__(self, detector: nn.Module):
        super().__init__()
        for name, child in detector.named_children():
            self.add_module(name, child)
        shell = copy.copy(detector)
        shell._modules = {}
        self._shell = (shell,)  # in a tuple it is no submodule

    def detector(self) -> nn.Module:
        """The detector with these networks in it: a list of images of any size in, boxes out."""
        detector = copy.copy(self._shell[0])
        detector._modules = dict(self._modules)
        return detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        if isinstance(features, Tensor):
            features = {"0": features}
        if hasattr(self, "head"):
            return self.head(list(features.values()))
        predictions = _by_level(*self.rpn.head(list(features.values())))
        for head in _HEADS:
            predictions |= self._predict(head, features)
        return predictions

    def _predict(self, head: str, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What one head of the second stage says of the parts of the feature maps that it reads."""
        pool = getattr(self.roi_heads, f"{head}_roi_pool", None)
        if pool is None:
            return {}
        read = [features[name] for name in pool.featmap_names if name in features]
        parts = [part for feature in read for part in _parts(feature, *pool.output_size)]
        hidden = getattr(self.roi_heads, f"{head}_head")(torch.cat(parts))
        found = getattr(self.roi_heads, f"{head}_predictor")(hidden)
        names = ("class_logits", "box_regression") if head == "box" else (f"{head}_logits",)
        values = found if isinstance(found, tuple) else (found,)
        return {
            name: value.unflatten(0, (len(parts), -1)).transpose(0, 1)
            for name, value in zip(names, values, strict=True)
        }


def _by_level(objectness: list[Tensor], deltas: list[Tensor]) -> dict[str, Tensor]:
    levels = enumerate(zip(objectness, deltas, strict=True))
    return {
        f"{what}_{level}": value
        for level, pair in levels
        for what, value in zip(("objectness", "deltas"), pair, strict=True)
    }


def _parts(feature: Tensor, height: int, width: int) -> list[Tensor]:
    """The whole map and its quarters, each at the size that the head takes."""
    wide = F.interpolate(feature, (2 * height, 2 * width), mode="bilinear", align_corners=False)
    corners = [(y, x) for y in (0, height) for x in (0, width)]
    quarters = [wide[:, :, y : y + height, x : x + width] for y, x in corners]
    return [F.avg_pool2d(wide, 2), *quarters]
