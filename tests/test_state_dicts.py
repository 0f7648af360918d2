"""State dicts: found in what a file holds, and put into an architecture."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torchvision
from model_files import SMALL, error_of, same_output, small_net
from safetensors.torch import save_file
from torch import nn

from fxquant.models import load_model


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
