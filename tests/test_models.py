"""Where a model comes from: files, zoos, the user's code, and what is refused of them."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import pickle
import sys
import textwrap
import urllib.error
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from pytorchcv import model_provider
from safetensors.torch import save_file
from torch import nn
from torchvision.models.feature_extraction import DualGraphModule

from fxquant.errors import ModelLoadError, UntrustedClassError
from fxquant.models import load_model
from fxquant.models.imports import import_object

SMALL = "pytorchcv:resnet20_cifar10"


def small_net() -> nn.Module:
    """A ResNet-20 whose batch norms have statistics of their own."""
    net = model_provider.get_model("resnet20_cifar10")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


@pytest.fixture
def net_file(tmp_path):
    net = small_net()
    torch.save(net, tmp_path / "net.pt")
    return net, tmp_path / "net.pt"


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Writes a module of the user's into the working directory; its import leaves a mark."""
    monkeypatch.chdir(tmp_path)
    written = []

    def write(name: str, body: str) -> None:
        mark = f"import pathlib\npathlib.Path({str(tmp_path / f'{name}.imported')!r}).touch()\n"
        (tmp_path / f"{name}.py").write_text(mark + textwrap.dedent(body))
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def same_output(left: nn.Module, right: nn.Module, *shape: int) -> bool:
    x = torch.randn(2, *shape)
    with torch.no_grad():
        return torch.equal(left(x), right(x))


def error_of(source, **settings) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(source), **settings)
    assert "weights_only" not in str(caught.value)  # torch's advice to read unsafely
    return caught.value


# whole modules


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_pickled_torchvision_networks_load(tmp_path, name):
    net = torchvision.models.get_model(name, weights=None).eval()
    torch.save(net, tmp_path / f"{name}.pt")
    loaded = load_model(tmp_path / f"{name}.pt")
    assert same_output(net, loaded.module, 3, 32, 32)
    assert (loaded.name, loaded.input_shape) == (name, None)


def test_pickled_pytorchcv_network_tells_its_input(net_file):
    net, path = net_file
    loaded = load_model(str(path))
    assert same_output(net, loaded.module, 3, 32, 32)
    assert loaded.input_shape == (3, 32, 32)
    assert (loaded.name, loaded.source) == ("net", str(path))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_pickled_detector_loads_with_its_helpers(tmp_path):
    backbone = torchvision.models.squeezenet1_1(weights=None).features[:3]
    backbone.out_channels = 64
    roi_pool = torchvision.ops.MultiScaleRoIAlign(["0"], output_size=2, sampling_ratio=1)
    anchors = torchvision.models.detection.rpn.AnchorGenerator(((16,),), ((1.0,),))
    net = torchvision.models.detection.FasterRCNN(
        backbone, 2, rpn_anchor_generator=anchors, box_roi_pool=roi_pool, min_size=32, max_size=32
    )
    torch.save(net, tmp_path / "detector.pt")
    loaded = load_model(tmp_path / "detector.pt").module
    image = [torch.rand(3, 32, 32)]
    assert torch.equal(net.eval()(image)[0]["boxes"], loaded(image)[0]["boxes"])


def test_module_comes_back_in_eval_mode_and_float32(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).half().train()
    torch.save(net, tmp_path / "half.pth")
    module = load_model(tmp_path / "half.pth").module
    assert not any(part.training for part in module.modules())
    tensors = [*module.parameters(), module[1].running_var]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_data_parallel_is_unwrapped(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.save(nn.DataParallel(net), tmp_path / "parallel.pt")
    module = load_model(tmp_path / "parallel.pt").module
    assert type(module) is nn.Sequential
    assert same_output(net, module, 3)


def test_module_inside_a_checkpoint_loads(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.save({"epoch": 3, "model": net}, tmp_path / "checkpoint.pt")
    assert same_output(net, load_model(tmp_path / "checkpoint.pt").module, 3)


# trust


class Reduced:
    """Pickles as a call of anything."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(mark: str) -> dict[str, tuple[Reduced, str]]:
    touch = f"__import__('pathlib').Path({mark!r}).touch()"
    return {
        "os.system": (Reduced(__import__("os").system, f"touch {mark}"), "posix.system"),
        "eval": (Reduced(eval, touch), "builtins.eval"),
        "getattr": (Reduced(getattr, nn.Linear(1, 1), "forward"), "builtins.getattr"),
        "partial": (Reduced(functools.partial, open, mark, "w"), "functools.partial"),
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


@pytest.mark.parametrize("attack", attacks(""))
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"w": evil}}])
@pytest.mark.parametrize("arch", [None, SMALL])
def test_malicious_pickle_is_refused(tmp_path, monkeypatch, attack, wrap, arch):
    mark = tmp_path / "ran"
    evil, name = attacks(str(mark))[attack]
    monkeypatch.setattr(  # a constructor that would leave a mark
        torchvision.datasets.FakeData, "__init__", lambda self, size: mark.touch()
    )
    torch.save(wrap(evil), tmp_path / "evil.pt")
    error = error_of(tmp_path / "evil.pt", arch=arch)
    assert isinstance(error, UntrustedClassError)
    assert name in error.message
    assert "--trust-class" not in error.hint
    assert not mark.exists()


def test_the_attacks_would_work_on_a_plain_unpickler(tmp_path):
    for attack in ("os.system", "eval"):
        mark = tmp_path / attack
        pickle.loads(pickle.dumps(attacks(str(mark))[attack][0]))
        assert mark.exists()


@pytest.mark.parametrize("trust", [(), ("posix.system",)])
def test_malicious_legacy_pickle_is_refused(tmp_path, trust):
    evil = attacks(str(tmp_path / "ran"))["os.system"][0]
    torch.save(evil, tmp_path / "evil.pt", _use_new_zipfile_serialization=False)
    error = error_of(tmp_path / "evil.pt", trust_classes=trust)
    assert isinstance(error, UntrustedClassError)
    assert "posix.system" in error.message
    assert not (tmp_path / "ran").exists()


def write_pickle(folder, instructions: bytes) -> None:
    with zipfile.ZipFile(folder / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", b"\x80\x02" + instructions)
        archive.writestr("evil/version", "3\n")
        archive.writestr("evil/byteorder", "little")


@pytest.mark.parametrize("legacy", [False, True])
def test_what_the_process_allows_torch_is_not_allowed_here(tmp_path, legacy):
    content = {"w": torch.zeros(1), "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=not legacy)
    with torch.serialization.safe_globals([argparse.Namespace]):
        torch.load(tmp_path / "net.pt", weights_only=True)
        assert "argparse.Namespace" in error_of(tmp_path / "net.pt").message
        assert argparse.Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("module", "name"),
    [("feature_extraction", "fx.GraphModule"), ("quantization.mobilenetv2", "QuantStub")],
)
def test_class_imported_into_a_layer_package_is_not_trusted(tmp_path, module, name):
    """The names start like torchvision's; what they stand for is torch.fx's and torch.ao's."""
    write_pickle(tmp_path, f"ctorchvision.models.{module}\n{name}\n)R.".encode())
    error = error_of(tmp_path / "evil.pt")
    assert isinstance(error, UntrustedClassError)
    assert f"torchvision.models.{module}.{name}" in error.message


def test_name_that_is_no_name_is_quoted_and_no_flag_is_offered(tmp_path):
    write_pickle(tmp_path, b"cmy nets;\x1b[2J\nNet\n)R.")
    error = error_of(tmp_path / "evil.pt")
    assert r"my nets;\x1b[2J.Net" in error.message
    assert "--trust-class" not in error.hint


NETS = """
    from torch import nn
    class Block(nn.Linear):
        pass
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(3, 2)
        def forward(self, x):
            return self.block(x).relu()
    class Outer:
        class Inner(nn.Linear):
            pass
"""


def save_user_net(user_module, tmp_path, name: str) -> nn.Module:
    user_module(name, NETS)
    net = import_from(tmp_path, name, "Net")().eval()
    torch.save(net, tmp_path / "net.pt")
    sys.modules.pop(name)
    (tmp_path / f"{name}.imported").unlink()
    return net


def import_from(folder, name: str, attribute: str):
    sys.path.insert(0, str(folder))
    try:
        return import_object(f"{name}.{attribute}")
    finally:
        sys.path.remove(str(folder))


def test_users_class_is_not_even_imported_without_trust(user_module, tmp_path):
    save_user_net(user_module, tmp_path, "nets_untrusted")
    error = error_of("net.pt")
    assert isinstance(error, UntrustedClassError)
    assert "nets_untrusted.Block, nets_untrusted.Net" in error.message
    assert "--trust-class nets_untrusted.Block --trust-class nets_untrusted.Net" in error.hint
    assert "nets_untrusted" not in sys.modules
    assert not (tmp_path / "nets_untrusted.imported").exists()


def test_trusting_a_class_trusts_that_class_alone(user_module, tmp_path):
    save_user_net(user_module, tmp_path, "nets_half")
    for trust in (
        ["nets_half.Net"],
        ["nets_half"],
        ["nets_half.Ne"],
        "nets_half.Net nets_half.Block",
    ):
        error = error_of("net.pt", trust_classes=trust)
        assert isinstance(error, UntrustedClassError)
        assert "nets_half.Block" in error.message
    assert not (tmp_path / "nets_half.imported").exists()


def test_trusted_class_loads_from_the_working_directory(user_module, tmp_path):
    net = save_user_net(user_module, tmp_path, "nets_trusted")
    before = list(sys.path), set(torch.serialization.get_safe_globals())
    trust = ["nets_trusted.Net", "nets_trusted.Block", "no.such.Thing"]
    assert same_output(net, load_model("net.pt", trust_classes=trust).module, 3)
    assert (sys.path, set(torch.serialization.get_safe_globals())) == before


def test_nested_class_needs_more_than_trust(user_module, tmp_path):
    user_module("nets_nested", NETS)
    net = import_from(tmp_path, "nets_nested", "Outer.Inner")(3, 2)
    torch.save(net, "net.pt")
    # pickle protocol 2, which torch.save takes, writes it as a call: getattr(Outer, "Inner")
    assert "builtins.getattr" in error_of("net.pt", trust_classes=["nets_nested.Outer"]).message


@pytest.mark.parametrize("attack", ["eval", "getattr", "function", "os.system"])
def test_functions_are_not_loaded_even_where_they_are_named(tmp_path, attack):
    evil, name = attacks(str(tmp_path / "ran"))[attack]
    torch.save(evil, tmp_path / "evil.pt")
    error = error_of(tmp_path / "evil.pt", trust_classes=[name])
    assert isinstance(error, UntrustedClassError)
    assert f"'{name}', which is no class" in error.message
    assert not (tmp_path / "ran").exists()


def test_trusted_class_that_is_gone_is_named(user_module, tmp_path):
    save_user_net(user_module, tmp_path, "nets_gone")
    user_module("nets_gone", "class Block: pass\nclass Netz: pass\n")
    error = error_of("net.pt", trust_classes=["nets_gone.Net", "nets_gone.Block"])
    assert "'nets_gone.Net'" in error.message
    assert "Netz" in error.hint


def test_trusted_module_that_fails_to_import_says_why(user_module, tmp_path):
    save_user_net(user_module, tmp_path, "nets_broken")
    user_module("nets_broken", "import no_such_package\n")
    error = error_of("net.pt", trust_classes=["nets_broken.Net", "nets_broken.Block"])
    assert "No module named 'no_such_package'" in error.message


def test_class_of_main_says_what_to_do(tmp_path, monkeypatch):
    net = type("Net", (nn.Linear,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Net", net, raising=False)
    torch.save(net(1, 1), tmp_path / "net.pt")
    error = error_of(tmp_path / "net.pt")
    assert isinstance(error, UntrustedClassError)
    assert "__main__.Net" in error.message
    assert "move it to a module" in error.hint
    assert "--arch" in error.hint


def test_checkpoint_with_other_objects_points_to_the_state_dict(tmp_path):
    state = nn.Linear(1, 1).state_dict()
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "checkpoint.pt")
    error = error_of(tmp_path / "checkpoint.pt", arch=SMALL)
    assert "argparse.Namespace" in error.message
    assert "state_dict()" in error.hint


# state dicts


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "model_state"])
def test_checkpoints_are_unwrapped(tmp_path, key):
    net = small_net()
    torch.save({"epoch": 1, key: net.state_dict(), "optimizer": {}}, tmp_path / "checkpoint.pth")
    loaded = load_model(tmp_path / "checkpoint.pth", arch=SMALL)
    assert same_output(net, loaded.module, 3, 32, 32)
    assert (loaded.name, loaded.input_shape) == ("checkpoint", (3, 32, 32))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_state_dict_files_load(tmp_path, kind, prefix):
    net = small_net()
    path = tmp_path / f"net.{kind}"
    state = OrderedDict((prefix + key, value) for key, value in net.state_dict().items())
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    assert same_output(net, load_model(path, arch=SMALL).module, 3, 32, 32)


def test_data_parallel_state_dict_keeps_the_layers_versions(tmp_path):
    """MNASNet refuses a state dict without its version, which safetensors drop."""
    net = torchvision.models.mnasnet0_5(weights=None).eval()
    torch.save(nn.DataParallel(net).state_dict(), tmp_path / "net.pt")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    for name in ("net.pt", "net.safetensors"):
        loaded = load_model(tmp_path / name, arch="torchvision:mnasnet0_5")
        assert same_output(net, loaded.module, 3, 32, 32)


def test_prefix_that_belongs_to_the_network_stays(user_module, tmp_path):
    user_module(
        "nets_prefix",
        """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = nn.Linear(3, 2)
            def forward(self, x):
                return self.module(x)
        """,
    )
    state = {f"module.{key}": value for key, value in nn.Linear(3, 2).state_dict().items()}
    torch.save(state, "net.pt")
    module = load_model("net.pt", arch="nets_prefix:Net").module
    assert torch.equal(module.module.weight, state["module.weight"])


def test_old_state_dict_without_batch_counters_loads(tmp_path):
    net = small_net()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    module = load_model(tmp_path / "old.safetensors", arch=SMALL).module
    assert same_output(net, module, 3, 32, 32)


def test_state_dict_without_arch_says_what_arch_takes(tmp_path):
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    error = error_of(tmp_path / "net.pt")
    assert "state dict" in error.message
    assert "features.init_block.conv.weight" in error.message
    forms = ("torchvision:NAME", "pytorchcv:NAME", "timm:NAME", "package.module:callable")
    for form in ("--arch", *forms):
        assert form in error.hint


def test_state_dict_of_another_network_names_the_keys(tmp_path):
    state = small_net().state_dict()
    state["head.weight"] = state.pop("output.weight")
    for index in range(5):
        state[f"extra{index}"] = torch.zeros(1)
    state["features.init_block.conv.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, tmp_path / "net.pt")
    message = error_of(tmp_path / "net.pt", arch=SMALL).message
    assert "1 key is missing: output.weight" in message
    assert "6 keys are unexpected: head.weight, extra0, extra1 and 3 more" in message
    assert "1 key is of another shape: features.init_block.conv.weight" in message
    assert "(file [16, 1, 3, 3], network [16, 3, 3, 3])" in message
    assert SMALL in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["output.weight", "features.init_block.bn.running_var"])
def test_values_that_are_not_finite_are_named(tmp_path, key, value):
    state = small_net().state_dict()
    state[key].view(-1)[1] = value
    save_file(state, tmp_path / "net.safetensors")
    error = error_of(tmp_path / "net.safetensors", arch=SMALL)
    assert f"'{key}'" in error.message
    assert "not finite: 1 of" in error.message


def test_infinity_is_allowed_in_a_mask_and_nan_is_not(tmp_path):
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(net, tmp_path / "net.pt")
    assert load_model(tmp_path / "net.pt").module.mask[1] == -torch.inf
    net.mask[0] = torch.nan
    torch.save(net, tmp_path / "net.pt")
    assert "'mask'" in error_of(tmp_path / "net.pt").message


def test_weights_that_overflow_float32_are_refused(tmp_path):
    net = nn.Linear(1, 1).double()
    nn.init.constant_(net.weight, 1e300)
    torch.save(net, tmp_path / "net.pt")
    assert "'weight'" in error_of(tmp_path / "net.pt").message


# other files


def test_missing_file_suggests_a_close_one(net_file):
    path = net_file[1]
    error = error_of(path.with_name("nett.pt"))
    assert "no file" in error.message
    assert "net.pt" in error.hint
    assert "torchvision:NAME" in error_of(path.parent / "no" / "such" / "folder.pt").hint


def test_directory_is_refused(tmp_path):
    assert "is a directory" in error_of(tmp_path).message


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        (b"", "is empty"),
        (b"hello there, this is text", "text that starts with 'hello there"),
        (("é" * 400).encode()[:511], "text that starts with"),
        (json.dumps({"a": 1}).encode(), "text that starts with"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\xff\xfe\x00\x01" * 9, "bytes ff fe 00 01"),
        (b"PK\x03", "binary data"),
        (pickle.dumps({"a": torch.zeros(1)}), "a pickle that torch.save did not write"),
        (b"\x08\x0a\x12\x07pytorch\x1a", "is an ONNX file, which is already exported"),
    ],
)
def test_other_files_are_told_by_their_looks(tmp_path, content, looks_like):
    (tmp_path / "model.pt").write_bytes(content)
    assert looks_like in error_of(tmp_path / "model.pt").message


def test_onnx_and_zip_files_are_told(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"whatever")
    assert "already exported" in error_of(tmp_path / "model.onnx").message
    np.savez(tmp_path / "arrays.npz", weight=np.zeros(3))
    error = error_of(tmp_path / "arrays.npz")
    assert "zip archive" in error.message
    assert "weight.npy" in error.message


@pytest.mark.filterwarnings("ignore")
def test_torchscript_and_exported_programs_are_told(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3)), tmp_path / "script.pt")
    error = error_of(tmp_path / "script.pt")
    assert "TorchScript" in error.message
    assert "--arch" in error.hint
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3),)), tmp_path / "net.pt2")
    assert "not supported yet" in error_of(tmp_path / "net.pt2").message


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_torch_files_are_told(tmp_path, legacy):
    path = tmp_path / "net.pt"
    torch.save(small_net().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for size in (100, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        error = error_of(path, arch=SMALL)
        assert not isinstance(error, UntrustedClassError)
        assert "truncated" in str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 8 + b"{}", "header too large"),
        (b"x", "header too small"),
        ((5).to_bytes(8, "little") + b"{abc}", "invalid JSON"),
    ],
)
def test_bad_safetensors_are_told(tmp_path, content, reason):
    (tmp_path / "net.safetensors").write_bytes(content)
    assert reason in error_of(tmp_path / "net.safetensors").message


def test_truncated_safetensors_are_told_whatever_they_are_called(tmp_path):
    save_file(small_net().state_dict(), tmp_path / "net.safetensors")
    content = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.pt").write_bytes(content)
    assert load_model(tmp_path / "net.pt", arch=SMALL).name == "net"
    (tmp_path / "net.pt").write_bytes(content[:-3])
    assert "safetensors" in error_of(tmp_path / "net.pt", arch=SMALL).message


@pytest.mark.parametrize(
    ("content", "described"),
    [
        (torch.zeros(3), "a torch.Tensor"),
        ([torch.zeros(3)], "a list"),
        ({}, "a dict without keys"),
        ({"weights": {"a": torch.zeros(1)}, "lr": 1}, "a dict with the keys 'weights', 'lr'"),
        ({1: torch.zeros(1)}, "a dict with the keys 1"),
    ],
)
@pytest.mark.parametrize("arch", [None, SMALL])
def test_file_without_a_network_is_described(tmp_path, content, described, arch):
    torch.save(content, tmp_path / "thing.pt")
    message = error_of(tmp_path / "thing.pt", arch=arch).message
    assert described in message
    assert "model_state_dict" in message


def test_other_pickle_protocol_is_told(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "net.pt", pickle_protocol=4)
    assert "pickle_protocol" in error_of(tmp_path / "net.pt").hint


def test_legacy_file_with_a_module_is_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    error = error_of(tmp_path / "net.pt")
    assert isinstance(error, UntrustedClassError)
    assert "before 1.6" in error.message
    assert "state_dict()" in error.hint


def test_module_without_data_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2, device="meta"), tmp_path / "net.pt")
    assert "can't be used" in error_of(tmp_path / "net.pt").message


# names


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
