"""Which classes a pickled file may load: those of layers, and those of the user's word."""

from __future__ import annotations

import argparse
import pickle
import sys

import pytest
import torch
import torchvision
from model_files import SMALL, Reduced, attacks, error_of, same_output, write_pickle
from torch import nn

from fxquant.errors import UntrustedClassError
from fxquant.models import load_model
from fxquant.models.imports import import_object


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
    assert isinstance(error, UntrustedClassError) == (attack != "not a layer")
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


def test_trusted_class_may_hold_what_layers_may_not(user_module, tmp_path):
    body = """
    from torch import nn
    class Held:
        def __init__(self):
            self.size = 1 << 40
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = [nn.Linear(3, 2)]
            self.kind, self.iters, self.held = nn.ReLU, 20_000, Held()
        def forward(self, x):
            return self.kind()(self.blocks[0](x))
        def __setstate__(self, state):
            raise AssertionError("called")
    """
    user_module("nets_holding", body)
    net = import_from(tmp_path, "nets_holding", "Net")().eval()
    torch.save(net, "net.pt")
    trust = ["nets_holding.Net", "nets_holding.Held"]
    module = load_model("net.pt", trust_classes=trust).module
    assert same_output(net, module, 3)
    assert module.held.size == 1 << 40


def test_trusted_class_is_not_called(user_module, tmp_path):
    user_module("nets_called", "class Net:\n    def __init__(self, path): open(path, 'w')\n")
    kind = import_from(tmp_path, "nets_called", "Net")
    torch.save({"net": Reduced(kind, str(tmp_path / "ran"))}, "net.pt")
    error = error_of("net.pt", trust_classes=["nets_called.Net"])
    assert "would call nets_called.Net" in error.message
    assert not (tmp_path / "ran").exists()


def test_members_of_a_trusted_enumeration_load(user_module, tmp_path):
    user_module("nets_enum", "import enum\nclass Kind(enum.Enum):\n    A = 1\n    B = 'b'\n")
    kind = import_from(tmp_path, "nets_enum", "Kind")
    net = nn.Sequential(nn.Linear(1, 1))
    net.kinds = [kind.A, kind.B]
    torch.save(net, "net.pt")
    assert load_model("net.pt", trust_classes=["nets_enum.Kind"]).module.kinds == [kind.A, kind.B]
    assert "nets_enum.Kind" in error_of("net.pt").message
