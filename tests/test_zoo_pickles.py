"""Networks of the zoos, pickled whole, come back as torch itself loads them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from same_objects import difference
from torch import nn
from zoo import networks

from fxquant.errors import ModelLoadError
from fxquant.models.files import read_model_file

# Between them, all kinds of attributes that the networks of the zoos have.
SAMPLE = (
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:regnet_y_400mf",
    "torchvision:resnet18",
    "torchvision:ssdlite320_mobilenet_v3_large",
    "torchvision:lraspp_mobilenet_v3_large",
    "pytorchcv:preresnet20_cifar10",
    "pytorchcv:hardnet39ds",
    "timm:test_resnet",
    "timm:test_vit",
    "timm:mixnet_s",
    "timm:edgenext_xx_small",
)
# They hold bound methods, or an array of NumPy's.
REFUSED = {
    "pytorchcv:isqrtcovresnet18": "builtins.getattr",
    "pytorchcv:ntsnet_cub": "numpy",
    "pytorchcv:revnet38": "builtins.getattr",
    "pytorchcv:shakedropresnet20_cifar10": "builtins.getattr",
    "pytorchcv:shakeshakeresnet20_2x16d_cifar10": "builtins.getattr",
    "timm:fasternet_t0": "builtins.getattr",
}


def compare(name: str, path: Path) -> str:
    """What became of one network: 'loaded', 'refused', 'not pickled', or an error's words."""
    net = (networks._special(name) or networks._ordinary(name))[0]
    net = net.net if isinstance(net, networks.OneInput) else net
    try:
        torch.save(net, path)
    except (pickle.PicklingError, AttributeError):  # torch can't: it holds lambdas
        return "not pickled"
    del net
    try:
        with path.open("rb") as file:
            ours = read_model_file(file, path)
    except ModelLoadError as error:
        return "refused" if REFUSED.get(name, "\n") in error.message else str(error)
    assert isinstance(ours, nn.Module)
    assert difference(torch.load(path, weights_only=False), ours, name) is None
    return "loaded"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_network_comes_back_as_torch_loads_it(tmp_path, name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    assert compare(name, tmp_path / "net.pt") == "loaded"


@pytest.mark.soak
def test_every_network_of_the_zoos_comes_back(tmp_path, figures):
    found = {name: compare(name, tmp_path / "net.pt") for name in networks.names()}
    counts = {what: list(found.values()).count(what) for what in sorted(set(found.values()))}
    figures("networks of three zoos, pickled whole", counts)
    assert {name for name, what in found.items() if what == "refused"} == set(REFUSED)
    assert counts.keys() == {"loaded", "refused", "not pickled"}
    assert counts["loaded"] >= 300
