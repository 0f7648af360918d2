"""Small detectors of each kind that torchvision has, with random weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from nets import ConvBn
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork

SHAPE = (3, 64, 64)
_TWO_STAGES = {
    "min_size": 64,
    "max_size": 96,
    "rpn_post_nms_top_n_test": 20,
    "box_detections_per_img": 5,
}


class Pyramid(nn.Module):
    """Two levels of features, joined top-down by torchvision's own feature pyramid."""

    out_channels = 32  # FCOS normalises in groups of 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBn(3, 8, stride=2), ConvBn(8, 8, stride=2))
        self.down = ConvBn(8, 12, stride=2)
        self.fpn = FeaturePyramidNetwork([8, 12], self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.stem(x)
        return self.fpn(OrderedDict([("0", low), ("1", self.down(low))]))


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(((16, 24), (32, 48)), ((0.5, 1.0),) * 2)


def _retinanet() -> nn.Module:
    return RetinaNet(Pyramid(), 4, min_size=64, max_size=96, anchor_generator=_anchors())


def _fcos() -> nn.Module:
    one_each = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(Pyramid(), 4, min_size=64, max_size=96, anchor_generator=one_each)


def _ssd() -> nn.Module:
    backbone = Pyramid()
    backbone.out_channels = [32, 32]
    boxes = DefaultBoxGenerator([[2], [2]], scales=[0.1, 0.3, 0.6])
    return SSD(backbone, boxes, (64, 64), 4)


def _faster_rcnn() -> nn.Module:
    return FasterRCNN(Pyramid(), 4, **_TWO_STAGES, rpn_anchor_generator=_anchors())


def _mask_rcnn() -> nn.Module:
    return MaskRCNN(Pyramid(), 4, **_TWO_STAGES, rpn_anchor_generator=_anchors())


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "retinanet": _retinanet,
    "fcos": _fcos,
    "ssd": _ssd,
    "faster_rcnn": _faster_rcnn,
    "mask_rcnn": _mask_rcnn,
}


def make_detector(name: str) -> nn.Module:
    """One of the detectors in eval mode, the same at each call, with scores that spread."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = DETECTORS[name]()
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -0.1, 0.1)
    return detector.eval()


def photographs(count: int = 2) -> list[Tensor]:
    """Images of different sizes, as a detector takes them: values in 0 to 1."""
    rng = torch.Generator().manual_seed(1)
    return [torch.rand(3, 60 + 8 * i, 70 - 4 * i, generator=rng) for i in range(count)]
