"""Networks by name: of a zoo, and of the user's own code."""

from __future__ import annotations

import sys
import urllib.error

import pytest
import torch
import torchvision
from model_files import SMALL, error_of, same_output
from torch import nn

from fxquant.models import load_model


def test_arch_of_torchvision_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("fetched"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    ).eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    arch = "torchvision:lraspp_mobilenet_v3_large"
    loaded = load_model(tmp_path / "net.pt", arch=arch).module
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(net(x)["out"], loaded(x)["out"])


def test_torchvision_name_loads_its_weights_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net = torchvision.models.squeezenet1_1(weights=None).eval()
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    loaded = load_model("torchvision:squeezenet1_1")
    assert same_output(net, loaded.module, 3, 32, 32)
    assert (loaded.name, loaded.sha256) == ("squeezenet1_1", None)


def test_failed_download_says_what_happened(tmp_path, monkeypatch, capsys):
    import requests

    def fail(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(requests, "get", fail)
    for source in ("torchvision:squeezenet1_1", SMALL):
        error = error_of(source)
        assert "no route to host" in error.message
        assert f"--arch {source}" in error.hint
    assert capsys.readouterr().out == ""  # results alone go to stdout


def test_network_without_weights_in_the_zoo_says_so():
    assert "is not available" in error_of("pytorchcv:sknet50").message


@pytest.mark.parametrize("as_arch", [False, True])
@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("torchvision:resnet81", "resnet18"),
        ("pytorchcv:resnet20_cifar", "resnet20_cifar10"),
        ("torchvison:resnet18", "torchvision"),
    ],
)
def test_unknown_names_suggest_close_ones(tmp_path, name, close, as_arch):
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "net.pt")
    error = error_of(tmp_path / "net.pt", arch=name) if as_arch else error_of(name)
    assert close in error.hint


@pytest.mark.parametrize("arch", ["resnet18", "net.py:", "a b:c", "", "torchvision:"])
def test_text_that_names_no_architecture_is_refused(tmp_path, arch):
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "net.pt")
    assert (
        f"'{arch.removeprefix('torchvision:')}'" in error_of(tmp_path / "net.pt", arch=arch).message
    )


BUILDERS = """
    import sys
    from torch import nn
    def build():
        return nn.Sequential(nn.Linear(3, 2))
    class Nets:
        @staticmethod
        def small():
            from helper_of_builders import make
            return make()
    instance = build()
    def needs_width(width):
        return nn.Linear(width, 2)
    def fails():
        raise RuntimeError("out of luck")
    def leaves():
        sys.exit(3)
    def other():
        return {"not": "a module"}
"""


def test_callable_is_a_source_and_an_arch(user_module, tmp_path):
    user_module("builders", BUILDERS)
    user_module("helper_of_builders", "from torch import nn\ndef make(): return nn.Linear(3, 2)\n")
    before = list(sys.path)
    loaded = load_model("builders:build")
    assert isinstance(loaded.module, nn.Sequential)
    assert not loaded.module.training
    assert (loaded.name, loaded.source, loaded.sha256) == ("build", "builders:build", None)
    state = loaded.module.state_dict()
    torch.save(state, "net.pt")
    module = load_model("net.pt", arch="builders:build").module
    assert module is not loaded.module
    assert torch.equal(module[0].weight, state["0.weight"])
    # modules that the callable itself imports are found, too
    assert isinstance(load_model("builders:Nets.small").module, nn.Linear)
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("builders:bild", "did you mean build"),
        ("builders:Nets.smal", "did you mean small"),
        ("builders:instance", "is a Sequential; expected a class or a function"),
        ("builders:needs_width", "missing 1 required positional argument: 'width'"),
        ("builders:fails", "RuntimeError: out of luck"),
        ("builders:leaves", "SystemExit: 3"),
        ("builders:other", "returned a dict; expected a torch.nn.Module"),
        ("no_such_module:build", "No module named 'no_such_module'"),
        ("builders.sub:build", "'builders' is not a package"),
    ],
)
@pytest.mark.parametrize("as_arch", [False, True])
def test_callables_that_fail_say_how(user_module, tmp_path, name, text, as_arch):
    user_module("builders", BUILDERS)
    torch.save(nn.Linear(1, 1).state_dict(), "net.pt")
    error = error_of("net.pt", arch=name) if as_arch else error_of(name)
    assert text in str(error)
    assert isinstance(error.__cause__, Exception | SystemExit | None)


def test_module_that_exits_when_imported_is_told(user_module):
    user_module("script", "raise SystemExit('usage: script DATA')\n")
    assert "usage: script DATA" in error_of("script:build").message


def test_arch_is_refused_where_there_is_nothing_for_it_to_do(net_file):
    assert "whole CIFARResNet" in error_of(net_file[1], arch=SMALL).message
    assert "names a network" in error_of(SMALL, arch=SMALL).message
