"""Which networks the benchmark goes over, and on what input each one works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fxquant.models.zoos import build

LEFT_OUT = {
    "torchvision:regnet_y_128gf": "645 million parameters",
    "torchvision:vit_h_14": "633 million parameters",
    "pytorchcv:visemenet20": "its outputs mix the samples of a batch",
    "pytorchcv:propainter": "its generator takes six inputs",
    "pytorchcv:propainter_ip": "it has no weights",
}
# Smallest sizes first: the first that a network takes is used.
SIDES = (96, 128, 192, 224, 256, 299, 320, 331)
DETECTOR_SIDES = (128, 320)
PROPOSALS, DETECTIONS = 50, 5  # more would be most of a two-stage detector's work

TIMM = (
    "resnet26t",
    "ecaresnet26t",
    "resnetv2_18",
    "resnetv2_50x1_bit",
    "res2net50_14w_8s",
    "resnest14d",
    "skresnet18",
    "legacy_seresnet18",
    "wide_resnet50_2",
    "densenet121",
    "dla34",
    "dpn48b",
    "ese_vovnet19b_slim",
    "hrnet_w18_small",
    "regnetx_002",
    "regnety_002",
    "regnetz_b16",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mixnet_s",
    "tinynet_e",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mnasnet_small",
    "lcnet_050",
    "fbnetv3_b",
    "hardcorenas_a",
    "ghostnet_050",
    "repghostnet_050",
    "rexnet_100",
    "gernet_s",
    "repvgg_a0",
    "mobileone_s0",
    "cspresnet50",
    "cs3darknet_focus_s",
    "darknet53",
    "selecsls42",
    "tresnet_m",
    "xception41",
    "hgnetv2_b0",
    "repvit_m0_9",
    "fasternet_t0",
    "starnet_s1",
    "nf_resnet50",
    "eca_nfnet_l0",
    "dm_nfnet_f0",
    "convnext_atto",
    "convnextv2_atto",
    "convmixer_768_32",
    "inception_next_atto",
    "edgenext_xx_small",
    "mambaout_femto",
    "vgg11_bn",
    "poolformer_s12",
    "visformer_tiny",
    "fastvit_t8",
    "botnet26t_256",
    "mobilevit_xxs",
    "efficientvit_b0",
    "efficientformer_l1",
    "levit_128s",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "mixer_s32_224",
)


@dataclass(frozen=True)
class Network:
    """A network in eval mode, and the smallest input (channels, ...) of those tried that it takes.

    `run` calls the network as its users do on a batch of inputs.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    run: Callable[[Tensor], object]


class OneInput(nn.Module):
    """A network whose further inputs are made from its first, or are parts of it."""

    def __init__(self, net: nn.Module, inputs: Callable[[Tensor], tuple[Tensor, ...]]):
        super().__init__()
        self.net = net
        self.inputs = inputs

    def forward(self, x: Tensor):
        return self.net(*self.inputs(x))


def names() -> Iterator[str]:
    """All networks of the benchmark, as `zoo:name`."""
    for listed in (_torchvision(), _pytorchcv(), (f"timm:{name}" for name in TIMM)):
        yield from (name for name in listed if name not in LEFT_OUT)


def _torchvision() -> Iterator[str]:
    from torchvision import models

    for module in (models, models.segmentation, models.detection):
        yield from (f"torchvision:{name}" for name in models.list_models(module))


def _pytorchcv() -> Iterator[str]:
    """The first network of each module of pytorchcv's, and of each other name within it."""
    from pytorchcv import model_provider

    families = {}
    for name, function in model_provider._models.items():
        family = function.__module__, re.match(r"[a-z]+", name)[0]
        families.setdefault(family, f"pytorchcv:{name}")
    yield from families.values()


def load(name: str) -> Network:
    """Build a network with random weights; raises ValueError where no input that is tried fits."""
    net, shapes = _special(name) or _ordinary(name)
    net = net.eval().requires_grad_(False)
    run = (lambda x: net(list(x))) if is_detector(net) else net
    for shape in shapes:
        if is_detector(net):
            _set_size(net, shape[1])
        try:
            with torch.no_grad():
                run(torch.randn(2, *shape))
            return Network(net, shape, run)
        except Exception as error:
            last = error
    raise ValueError(f"{name} takes none of {shapes}") from last


def is_detector(net: nn.Module) -> bool:
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    return isinstance(getattr(net, "transform", None), GeneralizedRCNNTransform)


def _set_size(net: nn.Module, side: int) -> None:
    """Let a detector take square images of one size as they are."""
    net.transform.min_size, net.transform.max_size = (side,), side
    net.transform.fixed_size = (side, side)
    net.transform.image_mean, net.transform.image_std = [0.0] * 3, [1.0] * 3
    if hasattr(net, "rpn"):
        net.rpn._post_nms_top_n = {"training": PROPOSALS, "testing": PROPOSALS}
        net.roi_heads.detections_per_img = DETECTIONS


def _ordinary(name: str) -> tuple[nn.Module, list[tuple[int, ...]]]:
    if name.startswith("torchvision:vit_"):
        from torchvision import models

        net = models.get_model(name.partition(":")[2], weights=None, image_size=SIDES[0])
    else:
        net = build(name, pretrained=False)
    if fnmatchcase(name, "torchvision:swin_v2_*"):
        return net, [(3, 256, 256)]  # smaller ones are padded with keys of length 0
    return net, _shapes(net)


def _shapes(net: nn.Module) -> list[tuple[int, ...]]:
    if is_detector(net):
        return [(3, side, side) for side in DETECTOR_SIDES]
    declared = getattr(net, "in_size", None) or getattr(net, "pretrained_cfg", {}).get("input_size")
    declared = tuple(declared)[-2:] if declared else (SIDES[-1],) * 2
    sides = [side for side in SIDES if side < min(declared)]
    return [*((3, side, side) for side in sides), (3, *declared)]


# Networks of pytorchcv that take no image, or more than one input.
_AUDIO = {"from_audio": False}
_SPECIAL = {
    "superpointnet": ((1, 96, 96), {}, None),
    "jasper5x3": ((64, 96), _AUDIO, lambda x: (x, x.new_full((x.shape[0],), 96).long())),
    "jasperdr10x5_en": ((64, 96), _AUDIO, lambda x: (x, x.new_full((x.shape[0],), 96).long())),
    "quartznet5x5_en_ls": ((64, 96), _AUDIO, lambda x: (x, x.new_full((x.shape[0],), 96).long())),
    "voca8flame": ((1, 16, 29), {}, lambda x: (x, x.new_full((x.shape[0],), 3).long())),
    "nvpattexp116bazel76": ((8, 16, 29), {}, lambda x: (x, x.new_full((x.shape[0],), 3).long())),
    "pfpcnet": ((1, 320, 240), {}, None),
    "raft_things": ((6, 128, 128), {}, lambda x: (x[:, :3], x[:, 3:])),
    "propainter_rfc": ((3, 3, 64, 64), {}, lambda x: (x[:, :, :2], x[:, :, 2:])),
}


def _special(name: str) -> tuple[nn.Module, list[tuple[int, ...]]] | None:
    from pytorchcv import model_provider

    zoo, _, short = name.partition(":")
    if zoo != "pytorchcv" or short not in _SPECIAL:
        return None
    shape, settings, inputs = _SPECIAL[short]
    net = model_provider.get_model(short, **settings)
    return (net if inputs is None else OneInput(net, inputs)), [shape]
