"""Pickles that call what they shouldn't: commands, code, imports, other pickles."""

from __future__ import annotations

import builtins
import ctypes
import functools
import importlib
import operator
import os
import pickle
import runpy
import subprocess
import webbrowser
from pathlib import Path

import numpy as np
import torch
import torchvision
from hostile_box import Case
from model_files import Reduced, write_pickle
from torch import nn
from torchvision.models.feature_extraction import DualGraphModule

SHAPE = ["--input-shape", "3,8,8", "--output", "out"]
MARK = "ran"  # the file that an attack which works would leave
CODE = f"__import__('os').environ.update(ran='1'); open({MARK!r}, 'w')"


def saved(content: object, *extra: str, name: str = "evil.pt", legacy: bool = False):
    """A maker that saves `content` as torch.save does."""

    def make(folder: Path) -> list[str]:
        torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)
        return [name, *SHAPE, *extra]

    return make


def calls(function, *args) -> Case:
    """A state dict one of whose values is a call."""
    module = getattr(function, "__module__", None) or "builtins"
    return Case(saved({"w": Reduced(function, *args)}), f"{module}.{function.__qualname__}")


def _evil_bytes() -> bytes:
    return pickle.dumps(Reduced(os.system, f"touch {MARK}"))


def _unsafe_load(folder: Path) -> list[str]:
    torch.save(Reduced(os.system, f"touch {MARK}"), folder / "inner.pt")
    evil = Reduced(functools.partial, torch.load, "inner.pt")
    torch.save({"w": evil}, folder / "evil.pt")
    return ["evil.pt", *SHAPE]


def _canary_module(folder: Path) -> list[str]:
    """A pickle that names a module which lies beside it."""
    (folder / "evil_canary.py").write_text(f"open({MARK!r}, 'w')\nclass Net: pass\n")
    write_pickle(folder, b"cevil_canary\nNet\n)\x81.")
    return ["evil.pt", *SHAPE]


def _function(folder: Path) -> list[str]:
    write_pickle(folder, b"ctypes\nFunctionType\n(ctypes\nCodeType\n)R}tR.")
    return ["evil.pt", *SHAPE]


def _two_classes(folder: Path) -> list[str]:
    """One class that the user trusts, and with it another that imports."""
    body = "from torch import nn\nclass Net(nn.Linear): pass\nclass Other(nn.Linear): pass\n"
    (folder / "mine.py").write_text(body)
    (folder / "other.py").write_text(f"open({MARK!r}, 'w')\n{body}")
    write_pickle(folder, b"cmine\nNet\n)\x81cother\nOther\n)\x81\x86.")
    return ["evil.pt", *SHAPE, "--trust-class", "mine.Net"]


CASES = {
    "os.system": Case(saved(Reduced(os.system, f"touch {MARK}")), "posix.system"),
    "os.system in a checkpoint": Case(
        saved({"epoch": 1, "state_dict": {"w": Reduced(os.system, f"touch {MARK}")}}),
        "posix.system",
    ),
    "os.system with an architecture": Case(
        saved({"w": Reduced(os.system, "true")}, "--arch", "pytorchcv:resnet20_cifar10"),
        "posix.system",
    ),
    "os.system that is trusted by name": Case(
        saved(Reduced(os.system, "true"), "--trust-class", "posix.system"), "which is no class"
    ),
    "os.system in the format before 1.6": Case(
        saved(Reduced(os.system, f"touch {MARK}"), legacy=True), "posix.system"
    ),
    "eval": calls(eval, CODE),
    "exec": calls(exec, CODE),
    "compile": calls(compile, CODE, "x", "exec"),
    "__import__": calls(builtins.__import__, "antigravity"),
    "importlib": calls(importlib.import_module, "antigravity"),
    "open": Case(saved({"w": Reduced(open, MARK, "w")}), "io.open"),
    "getattr": calls(getattr, nn.Linear(1, 1), "forward"),
    "setattr": calls(setattr, nn.Linear(1, 1), "forward", nn.Identity()),
    "operator.attrgetter": Case(saved(operator.attrgetter("a.b")), "operator.attrgetter"),
    "operator.methodcaller": Case(
        saved(operator.methodcaller("system", f"touch {MARK}")), "operator.methodcaller"
    ),
    "functools.partial": Case(saved(functools.partial(os.system, f"touch {MARK}")), "posix.system"),
    "functools.reduce": Case(saved(Reduced(functools.reduce, getattr, [])), "builtins.reduce"),
    "subprocess": Case(
        saved(Reduced(subprocess.Popen, ["touch", MARK])),
        "commands.Popen\nhint: a network's layers are not among these",
    ),
    "webbrowser": calls(webbrowser.open, "http://localhost"),
    "runpy": calls(runpy.run_path, "evil.pt"),
    "ctypes": Case(saved(Reduced(ctypes.CDLL, "libc.so.6")), "ctypes.CDLL"),
    "a function made of code": Case(_function, "types.FunctionType"),
    "torch.hub": calls(torch.hub.load, "some/where", "net"),
    "torch.load that is unsafe": Case(_unsafe_load, "torch.serialization.load"),
    "torch.jit.load": calls(torch.jit.load, "evil.pt"),
    "a pickle inside a storage": calls(torch.storage._load_from_bytes, _evil_bytes()),
    "a pickle inside a pickle": Case(saved(Reduced(pickle.loads, _evil_bytes())), "pickle.loads"),
    "numpy.load": Case(saved(Reduced(np.load, "x.npy", None, True)), "numpy"),
    "numpy object array": Case(saved(np.array([Reduced(os.system, "true")])), "numpy"),
    "a zoo's function": calls(torchvision.models.get_model, "alexnet"),
    "a program": Case(
        saved(Reduced(DualGraphModule, 1, 2, 3)),
        "torchvision.models.feature_extraction.DualGraphModule",
    ),
    "a GraphModule's source": Case(
        saved(torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()))), "reduce_graph_module"
    ),
    "a module beside the file": Case(_canary_module, "evil_canary.Net"),
    "a class beside a trusted one": Case(_two_classes, "other.Other"),
}
