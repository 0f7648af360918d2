"""Networks of allow-listed classes alone, whose attributes act, or ask for more than there is."""

from __future__ import annotations

import copyreg
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from hostile_box import Case
from hostile_pickles import CODE, MARK, SHAPE, saved
from model_files import Reduced, write_pickle
from torch import nn


def plain_net() -> nn.Module:
    """A network that there is nothing wrong with, on images of (3, 8, 8)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def changed(change: Callable[[nn.Module], object], says: str) -> Case:
    """That network, pickled after a change; its tests are about what loading says to that."""

    def make(folder: Path) -> list[str]:
        net = plain_net()
        change(net)
        torch.save(net, folder / "evil.pt")
        return ["evil.pt", *SHAPE]

    return Case(make, says)


def instructions(code: bytes, says: str) -> Case:
    """Hand-written pickle instructions in an archive like torch.save's."""

    def make(folder: Path) -> list[str]:
        write_pickle(folder, code)
        return ["evil.pt", *SHAPE]

    return Case(make, says)


def _printing_code() -> nn.Module:
    """A layer that prints itself as Python code."""
    layer = nn.Linear(1, 1)
    layer.in_features = f"1) if 0 else (open('{MARK}', 'w'), 1)[1] or dict(in_features=1"
    return layer


def _print_code_as_stride(net: nn.Module) -> None:
    net[0].__dict__["forward"] = nn.Conv2d(3, 4, 3, padding=1)
    net[0].stride = (_printing_code(),)


def _rename(net: nn.Module) -> None:
    name = f'forward"); open("{MARK}", "w"); getattr(self, "forward'
    net.__dict__["_modules"] = OrderedDict(
        (name if key == "0" else key, child) for key, child in net._modules.items()
    )


def _contain_itself(net: nn.Module) -> None:
    net._modules["0"] = nn.Sequential(net)


def _repeat_without_end(net: nn.Module) -> None:
    """2^60 modules, two objects a level."""
    left, right = nn.Sequential(), nn.Sequential()
    for _ in range(60):
        left, right = nn.Sequential(left, right), nn.Sequential(left, right)
    net.append(left)


def _nest(net: nn.Module) -> None:
    inner = nn.Sequential()
    for _ in range(150):
        inner = nn.Sequential(inner)
    net.append(inner)


def _expand(net: nn.Module) -> None:
    net[5].weight = nn.Parameter(torch.zeros(1, 1).expand(10, 10**9))


def _hook_tensor(net: nn.Module) -> None:
    hooks = OrderedDict({1: nn.Identity()})
    rebuilt = Reduced(torch._utils._rebuild_parameter, net[5].weight.detach(), True, hooks)
    net[5]._parameters["weight"] = rebuilt


class Given:
    """Pickles as a layer that is made without a call and then given any state."""

    def __init__(self, kind: type, state: object):
        self.kind, self.state = kind, state

    @property
    def __class__(self):
        return self.kind

    def __reduce_ex__(self, protocol: int):
        return copyreg.__newobj__, (self.kind,), self.state


def _call_of_its_own(folder: Path) -> list[str]:
    """Which `__getstate__` would leave out."""
    state = {**vars(plain_net()), "_compiled_call_impl": nn.Identity()}
    torch.save(Given(nn.Sequential, state), folder / "evil.pt")
    return ["evil.pt", *SHAPE]


def set_attribute(path: str, value: object) -> Callable[[nn.Module], None]:
    """A change that sets an attribute behind the module's back."""
    owner, _, name = path.rpartition(".")
    return lambda net: net.get_submodule(owner).__dict__.__setitem__(name, value)


def _tuples(depth: int) -> bytes:
    """A tuple of two tuples of two tuples..., each level one object."""
    return b")" + b"q\x00h\x00\x86" * depth


def _storage(kind: bytes, key: bytes, count: bytes) -> bytes:
    word = b"X\x07\x00\x00\x00storage"
    key = b"X" + len(key).to_bytes(4, "little") + key
    return b"(" + word + b"ctorch\n" + kind + b"\n" + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"


def _tensor(storage: bytes, count: bytes) -> bytes:
    """A state dict of one tensor on a storage."""
    args = b"(" + storage + b"K\x00" + count + b"\x85" + b"K\x01\x85" + b"\x89}t"
    return b"}X\x01\x00\x00\x00w" + b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"Rs."


def _claims_more_than_there_is(folder: Path) -> list[str]:
    """A storage of 4 bytes that says it has 400 million: torch reads on behind it."""
    count = b"J" + (10**8).to_bytes(4, "little")
    write_pickle(folder, _tensor(_storage(b"FloatStorage", b"0", count), count))
    with zipfile.ZipFile(folder / "evil.pt", "a") as archive:
        archive.writestr("evil/data/0", b"\0" * 4)
    return ["evil.pt", *SHAPE, "--arch", "pytorchcv:resnet20_cifar10"]


def _deep_module_pickle() -> bytes:
    """Empty layers given as the state of one another, without a table of children."""
    return b"ctorch.nn.modules.container\nSequential\n)\x81" + b"}b."


_LINEAR = b"ctorch.nn.modules.linear\nLinear\n"
_TYPE_V2 = b"ctorch._tensor\n_rebuild_from_type_v2\n"

CASES = {
    "a child whose name is code": changed(_rename, "a part of the network itself is called"),
    "a stride that prints as code": changed(_print_code_as_stride, "'0' holds a module|replaces"),
    "a module in an attribute": changed(
        set_attribute("0.stride", [_printing_code()]), "holds a module as 'stride'"
    ),
    "a forward of its own": changed(
        set_attribute("0.forward", nn.Conv2d(3, 4, 3, padding=1)), "replaces forward of its class"
    ),
    "a call of its own": Case(_call_of_its_own, "replaces _compiled_call_impl"),
    "a class in its state": changed(
        set_attribute("2.__class__", nn.Linear), "replaces __class__ of its class"
    ),
    "methods that are layers": changed(
        set_attribute("5.named_parameters", nn.Linear), "replaces named_parameters"
    ),
    "an attribute that is a class": changed(
        lambda net: vars(net[1]).update({nn.Linear: True}), "has an attribute called"
    ),
    "a forward hook": changed(
        set_attribute("1._forward_hooks", OrderedDict({1: nn.Identity()})), "has _forward_hooks"
    ),
    "a forward pre-hook": changed(
        lambda net: net.register_forward_pre_hook(nn.Identity()), "has _forward_pre_hooks"
    ),
    "a state dict hook": changed(
        set_attribute("0._state_dict_hooks", OrderedDict({1: nn.ReLU()})), "has _state_dict_hooks"
    ),
    "a backward hook": changed(
        set_attribute("0._backward_hooks", OrderedDict({1: nn.ReLU()})), "has _backward_hooks"
    ),
    "a tensor's hook": changed(_hook_tensor, "a tensor with hooks"),
    "a hook that is a function": Case(
        saved({"hooks": Reduced(exec, CODE), "net": plain_net()}), "builtins.exec"
    ),
    "a lambda as a hook": instructions(
        b"c__main__\n<lambda>\nctorch.nn.modules.container\nSequential\n)\x81\x86.",
        r"__main__\.<lambda>",
    ),
    "a command in a layer's state": changed(
        set_attribute("0.extra", Reduced(os.system, f"touch {MARK}")), "posix.system"
    ),
    "a parameter that is text": changed(
        lambda net: net[0]._parameters.update(weight="text"), "'weight' of '0' is a str"
    ),
    "a child that is a class": changed(
        lambda net: net._modules.update({"0": nn.Linear}),
        "'0' of the network itself is torch.nn.modules.linear.Linear",
    ),
    "a network inside itself": changed(_contain_itself, "contains itself"),
    "2^60 modules": changed(_repeat_without_end, "more than 10,000 modules"),
    "modules 150 deep": changed(_nest, "inside each other"),
    "a tensor of 40 GB in 4 bytes": changed(_expand, "would take 40,000,0"),
    "a layer without its tables": instructions(_deep_module_pickle(), "has no _modules"),
    "a constructor that takes 14 GB": instructions(
        _LINEAR + b"J\x60\xea\x00\x00J\x60\xea\x00\x00\x86R.",
        "would call torch.nn.modules.linear.Linear",
    ),
    "a layer made with arguments": instructions(
        _LINEAR + b"K\x01\x85\x81.", "would call torch.nn.modules.linear.Linear"
    ),
    "a call of a layer": instructions(
        _TYPE_V2 + b"(" + _LINEAR + b")\x81" + _LINEAR + b"))tR.",
        "a tensor with attributes that makes no sense",
    ),
    "a state for an enumeration": instructions(
        b"ctorch.nn.functional\nrelu\n}b.", "would fill torch.nn.functional.relu"
    ),
    "a tensor made by its class": instructions(
        b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.", "not trusted.*torch.FloatTensor"
    ),
    "a nested tensor": instructions(
        b"ctorch._utils\n_rebuild_nested_tensor\n(NNNNtR.", "a nested tensor which can't be read"
    ),
    "bytes by the gigabyte": instructions(
        b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "not trusted.*builtins.bytearray"
    ),
    "a codec by name": instructions(
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86R.",
        "encodes text in another way",
    ),
    "a key of 2^50 tuples": instructions(b"}" + _tuples(50) + b"Ns.", "more than 2,097,152 values"),
    "three million sets": instructions(
        b"(" + b"\x8f" * 3_000_000 + b"t.", "unexpected instruction"
    ),
    "an endless text": instructions(b"X\xff\xff\xff\xff" + b"a" * 99, "a text of 4,294,967,295"),
    "a storage behind its end": Case(_claims_more_than_there_is, "has another size"),
    "a storage of another kind": instructions(
        _tensor(_storage(b"QUInt8Storage", b"0", b"K\x01"), b"K\x01"), "a quantized tensor"
    ),
    "instructions that make no sense": instructions(b"RRR.", "its pickle is damaged"),
    "an instruction of protocol 4": instructions(b"\x95" + b"\0" * 8 + b".", "unexpected instr"),
}
