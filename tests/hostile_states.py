"""Networks whose states act, and files that ask for more than there is: one of each kind."""

from __future__ import annotations

import functools
import os
import socket
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from hostile_archives import LEGACY_MAGIC, written
from hostile_box import Case
from hostile_modules import Given, changed, instructions, set_attribute
from hostile_pickles import MARK, SHAPE, saved
from model_files import Reduced
from timm.layers import Format
from torch import nn
from torchvision.models.detection._utils import BoxCoder

CODE_NAME = f'training") or open("{MARK}", "w") or str("'
_V2, _TYPED = torch._utils._rebuild_tensor_v2, torch._tensor._rebuild_from_type_v2
_PARAMETER = torch._utils._rebuild_parameter


def state_of(**attributes: object) -> dict:
    """The state of a module without anything in it, but for these."""
    return {**vars(nn.Module()), **attributes}


def bare(kind: type = nn.Sequential, **attributes: object) -> Given:
    """An instance of a class whose state was made up."""
    return Given(kind, state_of(**attributes))


def held(value: object, says: str) -> Case:
    """A state dict with something beside its tensors."""
    return Case(saved({"w": torch.zeros(1), "x": value}), says)


def net_with(key: str, value: object, says: str) -> Case:
    """The plain network with an attribute of its first layer's own."""
    return changed(set_attribute(f"0.{key}", value), says)


def table(name: str, key: object, value: object, says: str) -> Case:
    """The plain network with one more child, parameter or buffer."""
    return changed(lambda net: vars(net[0])[name].update({key: value}), says)


def tensor(*args: object, says: str) -> Case:
    """A state dict with a tensor that a call makes of a storage of four numbers."""
    storage = torch.zeros(4)._typed_storage()
    return held(Reduced(_V2, storage, *args, False, OrderedDict()), says)


def _plain_tensor_under_a_second_name(net: nn.Module) -> None:
    gamma = torch.ones(4)
    vars(net[0]).update({"gamma": gamma, CODE_NAME: gamma})


def _expanded(net: nn.Module) -> None:
    vars(net[0])["table"] = torch.zeros(1).expand(1 << 28)


def _many_expanded(net: nn.Module) -> None:
    vars(net[0])["tables"] = [torch.zeros(1).expand(1 << 20) for _ in range(40)]


def _recurrent(**numbers: object) -> Case:
    def make(folder: Path) -> list[str]:
        layer = nn.LSTM(4, 4)
        vars(layer).update(numbers)
        torch.save(nn.Sequential(nn.Flatten(2), layer), folder / "evil.pt")
        return ["evil.pt", *SHAPE]

    return Case(make, "layers and 4 parameters|not the parameters of its|num_layers of")


def _doubled(times: int) -> object:
    values: object = [0]
    for _ in range(times):
        values = [values, values]
    return values


def _nested(depth: int) -> object:
    values: list = []
    for _ in range(depth):
        values = [values]
    return values


def _itself() -> dict:
    values: dict = {}
    values["again"] = values
    return values


def _quiet(make: Callable[[], object]) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def _fifo(folder: Path) -> list[str]:
    os.mkfifo(folder / "evil.pt")
    return ["evil.pt", *SHAPE]


def _sparse(name: str, start: bytes) -> Callable[[Path], list[str]]:
    """A terabyte of which only the beginning is there."""

    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(start)
        os.truncate(folder / name, 1 << 40)
        return [name, *SHAPE]

    return make


def _socket(folder: Path) -> list[str]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("evil.pt")
    return ["evil.pt", *SHAPE]


def _another_header(archive, entries: dict[str, bytes]) -> None:
    """An entry that its own header calls by another name than the directory does."""
    for name, content in entries.items():
        archive.writestr(name, content)
    entry = archive.getinfo("archive/data/0")
    archive.fp.seek(entry.header_offset + 30)
    archive.fp.write(b"archive/data/9")
    archive.fp.seek(archive.start_dir)


def _linear(*args: object) -> Reduced:
    return Reduced(_TYPED, *args)


_NAME = b"ctorch.nn.modules.linear\nLinear\n"
_MODULE = nn.Linear(1, 1)

CASES = {
    # names
    "a tensor under a second name that is code": changed(
        _plain_tensor_under_a_second_name, "'0' has an attribute called 'training"
    ),
    "a number under a name that is code": net_with(CODE_NAME, 1, "has an attribute called"),
    "a tensor under two lines": net_with("a\nb", torch.ones(1), "has an attribute called"),
    "a keyword for an attribute": net_with("lambda", 1, "has an attribute called"),
    "a name of foreign letters": net_with("w\u0435ight", torch.ones(1), "has an attribute"),
    "a buffer whose name has quotes": table("_buffers", "a'b", torch.ones(1), "a part of '0' is"),
    "a parameter whose name has brackets": table(
        "_parameters", "a(b)", nn.Parameter(torch.ones(1)), "a part of '0' is called"
    ),
    "a child whose name has a backslash": table("_modules", "a\\", nn.ReLU(), "a part of '0' is"),
    "a child whose name is a number": table("_modules", 7, nn.ReLU(), "a part of '0' is called"),
    "a child whose name reads as another": table("_modules", "\ufb01rst", nn.ReLU(), "a part of"),
    "a child called forward": table("_modules", "forward", nn.ReLU(), "replaces forward"),
    "a buffer called modules": table("_buffers", "modules", torch.ones(1), "replaces modules"),
    "a child called __class__": table("_modules", "__class__", nn.ReLU(), "replaces __class__"),
    "a child called as a tensor": table(
        "_modules", "weight", nn.ReLU(), "two things called weight"
    ),
    "an attribute called as a tensor": net_with("weight", 1, "two things called weight"),
    "a child called graph": changed(
        lambda net: net.add_module("graph", nn.ReLU()), "has a part called 'graph'"
    ),
    # calls inside what makes tensors and containers
    "a constructor inside a rebuild function": held(
        _linear(_TYPED, nn.Linear, (nn.Linear, nn.Linear, (60_000, 30_000), {}), {}),
        "would call torch._tensor._rebuild_from_type_v2 to make a tensor",
    ),
    "a constructor as a rebuild function": held(
        _linear(nn.Linear, nn.Linear, (60_000, 30_000), {}), "would call torch.nn.modules.linear"
    ),
    "a tensor of a layer's class": held(
        _linear(_V2, nn.Linear, (torch.zeros(1)._typed_storage(), 0, (1,), (1,), False, {}), {}),
        "a tensor of the class torch.nn.modules.linear.Linear",
    ),
    "a parameter made of a module": held(
        Reduced(_PARAMETER, bare(detach=_MODULE), False, OrderedDict()), "a parameter made of an in"
    ),
    "a parameter made of a parameter": held(
        Reduced(_PARAMETER, nn.Parameter(torch.ones(1)), False, OrderedDict()), "parameter made of"
    ),
    "attributes of a parameter": held(
        Reduced(
            torch._utils._rebuild_parameter_with_state,
            *(torch.ones(1), False, OrderedDict(), {"isfinite": _MODULE}),
        ),
        "attributes that are not plain",
    ),
    "an OrderedDict of a module": held(Reduced(OrderedDict, _MODULE), "an OrderedDict of some"),
    "a set of a module": held(Reduced(set, bare()), "odd arguments"),
    "a set of modules": held(Reduced(set, [bare()]), "as a key"),
    "a Counter of a module": held(Reduced(Counter, bare()), "odd arguments"),
    "a complex number of a module": held(Reduced(complex, bare(), 0.0), "odd arguments"),
    "a size of a module": held(Reduced(torch.Size, bare()), "odd arguments"),
    "a range without end": held(range(1 << 60), "more than 64 bits|odd arguments"),
    "a device that is none": held(Reduced(torch.device, "a;b"), "odd arguments"),
    "a layout of sparse tensors": held(torch.sparse_csr, "a layout of sparse tensors"),
    "a value that an enumeration has not": held(Reduced(Format, "evil"), "would call timm.layers"),
    "a partial with a module": changed(
        set_attribute("0.norm_layer", functools.partial(nn.Linear, bias=_MODULE)), "isn't plain"
    ),
    "a partial that is called": net_with(
        "activation", functools.partial(nn.Linear, 3), "functools.partial as"
    ),
    "a class that is called": net_with("activation", nn.Linear, "the class or function torch.nn"),
    "a module as a key": held({_MODULE: 1}, "an instance of torch.nn.modules.linear.Linear as a"),
    "a long key": held({tuple(range(100)): 1}, "a tuple as a key"),
    # classes that make or run code
    "a network that traces itself": Case(
        saved(bare(__import__("timm.models._features_fx").models._features_fx.FeatureGraphNet)),
        "not trusted.*FeatureGraphNet",
    ),
    "a script": Case(
        saved(Given(torch.jit.ScriptModule, {})), "not trusted.*torch.jit._script.ScriptModule"
    ),
    "a package importer": held(
        Reduced(torch.package.PackageImporter, "evil.zip"), "torch.package.package_importer"
    ),
    # numbers
    "an LSTM of 2^31 layers": _recurrent(num_layers=(1 << 31) - 1),
    "an LSTM of 500 layers": _recurrent(num_layers=500),
    "an LSTM of two layers with one's weights": _recurrent(num_layers=2),
    "an LSTM of three quarters": _recurrent(num_layers=0.75),
    "2^40 groups": net_with("groups", 1 << 40, "groups of '0' is 1099511627776"),
    "a stride of 2^62": net_with("stride", (1 << 62, 1), "stride of '0' is 4,611,686"),
    "padding of a million": net_with("padding", (10**6, 1), "more than 4,096"),
    "a scale of 1e9": changed(
        lambda net: net.append(nn.Upsample(scale_factor=1e9)), "scale_factor of '6' is"
    ),
    "a million times": net_with("iters", 10**6, "iters of '0' is 1,000,000"),
    "a text of a million letters": net_with("note", "a" * 10**6, "a text of 1,000,000"),
    "four million values": net_with("links", _doubled(22), "more than 2,097,152 values"),
    "lists 100 deep": net_with("links", _nested(100), "more than 32 lists"),
    "a dict inside itself": held(_itself(), "contains itself"),
    # tensors
    "a gigabyte in four bytes": changed(_expanded, "would take 1,073,7"),
    "forty tables of the same number": changed(_many_expanded, "would take 167,7"),
    "a tensor behind its storage": tensor(0, (2, 2), (4, 1), says="reaches behind its storage"),
    "a tensor before its storage": tensor(-1, (2,), (1,), says="-1 for a size"),
    "strides that go back": tensor(3, (2,), (-1,), says="-1 for a size or a stride"),
    "a tensor of 40 dimensions": tensor(0, (1,) * 40, (1,) * 40, says="strides don't match"),
    "a shape that is true": tensor(0, (True,), (1,), says="True for a size"),
    "more sides than strides": tensor(0, (2, 2), (1,), says="strides don't match"),
    "a quantized tensor": held(
        _quiet(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
        "holds a quantized tensor which can't be read",
    ),
    "a sparse tensor": held(torch.eye(3).to_sparse(), "holds a sparse tensor which"),
    "a conjugate": held(torch.ones(2, dtype=torch.cfloat).conj(), "a conjugate or negative view"),
    "a lazy layer": Case(saved(_quiet(lambda: nn.LazyLinear(3))), "not trusted|a lazy parameter"),
    "a bare storage": held(torch.zeros(3).untyped_storage(), "a storage without a tensor"),
    # states and instructions
    "a child that is no module": table(
        "_modules", "box", BoxCoder((1.0, 1.0, 1.0, 1.0)), "which is no module"
    ),
    "children in a list": Case(saved(bare(_modules=[nn.ReLU()])), "has a list for _modules"),
    "a state that is a list": Case(saved(Given(nn.ReLU, [1, 2])), "with a list for a state"),
    "buffers that are a text": net_with("_non_persistent_buffers_set", "abc", "buffers_set of"),
    "training of a text": net_with("training", "yes", "training of '0' is a str"),
    "two states": instructions(_NAME + b")\x81}b}b.", "gives two states"),
    "a state for a list": instructions(b"]}b.", "would fill a list"),
    "items for a module": instructions(_NAME + b")\x81NNs.", "would set items of an instance"),
    "something left behind": instructions(b"cposix\nsystem\nN.", "leaves something behind"),
    "something after the end": instructions(b"}.cposix\nsystem\n.", "follows the end"),
    "a number of 1000 bits": instructions(b"\x8a\x80" + b"\1" * 128 + b".", "more than 64 bits"),
    "2,000 names": instructions(
        b"".join(b"ctorch.nn\nA%d\n" % i for i in range(2000)) + b"N.", "more than 1,000 classes"
    ),
    "a name without end": instructions(b"c" + b"a" * 5000 + b"\nb\n.", "name of more than 500"),
    "a million marks": instructions(b"(" * 2_000_000 + b".", "damaged|makes more"),
    "two million memories": instructions(
        b"N" + b"".join(b"r" + i.to_bytes(4, "little") for i in range(2_100_000)) + b".",
        "more than 2,097,152 instructions",
    ),
    "a million empty lists": instructions(b"(" + b"]" * 1_200_000 + b"t.", "more than 1,048,576"),
    # files
    "an entry of two names": written(_another_header, "say different things|damaged"),
    "a terabyte of nothing as an archive": Case(_sparse("evil.pt", b"PK\3\4"), "damaged"),
    "a terabyte of nothing before 1.6": Case(_sparse("evil.pt", LEGACY_MAGIC), "can't be read"),
    "a terabyte of nothing as safetensors": Case(
        _sparse("evil.safetensors", b"\2" + bytes(7) + b"{}"), "speaks of 10 bytes, and it has 1,09"
    ),
    "a FIFO": Case(_fifo, "it is a pipe, not a file"),
    "a socket": Case(_socket, "is a socket"),
    "a device": Case(lambda folder: ["/dev/zero", *SHAPE], "is a device"),
    "a process's memory": Case(lambda folder: ["/proc/self/mem", *SHAPE], "can't be read"),
    "a directory": Case(lambda folder: [".", *SHAPE], "is a directory"),
}
