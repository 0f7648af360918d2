"""What the tests of model loading share: a network, malicious pickles, and the error of a load."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from pytorchcv import model_provider
from torch import nn
from torchvision.models.feature_extraction import DualGraphModule

from fxquant.errors import ModelLoadError
from fxquant.models import load_model

SMALL = "pytorchcv:resnet20_cifar10"


def small_net() -> nn.Module:
    """A ResNet-20 whose batch norms have statistics of their own."""
    net = model_provider.get_model("resnet20_cifar10")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


def same_output(left: nn.Module, right: nn.Module, *shape: int) -> bool:
    """Whether two networks compute the same on two random inputs."""
    x = torch.randn(2, *shape)
    with torch.no_grad():
        return torch.equal(left(x), right(x))


def error_of(source, **settings) -> ModelLoadError:
    """The error that loading ends with."""
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(source), **settings)
    assert "weights_only" not in str(caught.value)  # torch's advice to read unsafely
    return caught.value


class Reduced:
    """Pickles as a call of anything."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(mark: str) -> dict[str, tuple[Reduced, str]]:
    """Malicious objects that would leave the file `mark`, and the name that gives each away."""
    touch = f"__import__('pathlib').Path({mark!r}).touch()"
    return {
        "os.system": (Reduced(__import__("os").system, f"touch {mark}"), "posix.system"),
        "eval": (Reduced(eval, touch), "builtins.eval"),
        "getattr": (Reduced(getattr, nn.Linear(1, 1), "forward"), "builtins.getattr"),
        "partial": (Reduced(functools.partial, open, mark, "w"), "io.open"),
        "dataset": (
            Reduced(torchvision.datasets.FakeData, 1),
            "torchvision.datasets.fakedata.FakeData",
        ),
        "function": (
            Reduced(torchvision.models.get_model, "alexnet"),
            "torchvision.models._api.get_model",
        ),
        "not a layer": (
            Reduced(torchvision.transforms.Compose, []),
            "torchvision.transforms.transforms.Compose",
        ),
        "program": (
            Reduced(DualGraphModule, 1, 2, 3),
            "torchvision.models.feature_extraction.DualGraphModule",
        ),
        "torch.hub": (Reduced(torch.hub.load, mark, "x"), "torch.hub.load"),
    }


def write_pickle(folder: Path, instructions: bytes) -> None:
    """An archive like torch.save's, evil.pt, around hand-written instructions."""
    with zipfile.ZipFile(folder / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", b"\x80\x02" + instructions)
        archive.writestr("evil/version", "3\n")
        archive.writestr("evil/byteorder", "little")
