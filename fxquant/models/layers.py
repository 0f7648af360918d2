"""Which classes and functions a model file may name: layers, and those that the user trusts."""

from __future__ import annotations

import importlib
import inspect
import keyword
import re
import sys
from abc import ABCMeta
from collections.abc import Collection
from enum import Enum
from functools import lru_cache
from pathlib import Path

from torch import nn

from fxquant.errors import ModelLoadError, UntrustedClassError
from fxquant.models.imports import import_object, is_dotted, user_modules
from fxquant.models.records import Global
from fxquant.wording import first_few, reason_of

# Where layers and networks live. Narrower than the packages: timm.task, for one, has a module
# whose constructor downloads, and importing parts of timm.data ends the process.
LAYER_PACKAGES = (
    "torch.nn.modules.",
    "torchvision.models.",
    "torchvision.ops.",
    "torchvision.transforms.",
    "pytorchcv.models.",
    "timm.layers.",
    "timm.models.",
)
# Modules in these that make or run programs, read files, or give tensors shapes of their own.
_NO_LAYERS = re.compile(
    r"torch\.nn\.modules\.lazy|torchvision\.models\.(feature_extraction|quantization)(\..*)?"
    r"|timm\.models\._(features_fx|helpers|hub)|pytorchcv\.models\.\w*_stream"
)
# What of these packages' own, private modules holds layers.
_PRIVATE_HOMES = frozenset(
    {
        "timm.models._efficientnet_blocks",
        "timm.models._features",
        "torchvision.models._utils",
        "torchvision.models.detection._utils",
        "torchvision.models.segmentation._utils",
        "torchvision.transforms._presets",
        "torchvision.transforms.v2._geometry",
        "torchvision.transforms.v2._misc",
        "torchvision.transforms.v2._transform",
        "torchvision.transforms.v2._type_conversion",
    }
)
_MORE_LAYERS = frozenset({"torch.nn.parallel.data_parallel.DataParallel"})

# What networks of these packages hold beside modules. Each was read: plain values and arithmetic.
PLAIN_CLASSES = frozenset(
    {
        "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
        "torchvision.models.detection._utils.BoxCoder",
        "torchvision.models.detection._utils.BoxLinearCoder",
        "torchvision.models.detection._utils.Matcher",
        "torchvision.models.detection._utils.SSDMatcher",
        "pytorchcv.models.nasnet.NasDualPathScheme",
    }
)
ENUMS = frozenset({"timm.layers.format.Format"})
FUNCTIONS = frozenset(
    {
        *("torch._C._nn.gelu", "torch._C._nn.softplus"),
        *(
            f"torch.nn.functional.{name}"
            for name in ("relu", "relu6", "silu", "mish", "hardswish", "hardsigmoid", "leaky_relu")
        ),
        *("torch.nn.functional.elu", "torch.nn.functional.selu", "torch.nn.functional.celu"),
        *(
            f"timm.layers.activations.{name}"
            for name in ("swish", "mish", "sigmoid", "tanh", "hard_swish", "hard_sigmoid")
        ),
        *("timm.layers.activations.gelu", "timm.layers.activations.gelu_tanh"),
        "torchvision.ops.boxes.box_iou",
        "pytorchcv.models.nasnet.nasnet_dual_path_scheme_ordinal",
    }
)

# A network's own classes are in none of these; the last are modules that Python 2 had.
_NOT_THE_USERS = sys.stdlib_module_names | {
    *("torch", "torchvision", "pytorchcv", "timm", "numpy"),
    *("__builtin__", "commands", "copy_reg", "cPickle", "httplib", "popen2", "urllib2"),
}
MOST_NAME = 200
_NEUTRAL_BASES = ("builtins.object", "typing.Generic", "abc.ABC", "typing.Protocol")
SAVE_STATE = "save model.state_dict() instead and name the architecture with --arch"


def may_be_a_layer(found: Global) -> bool:
    """Whether a name is one of a place where layers live, before anything is imported."""
    if found.dotted in _MORE_LAYERS | PLAIN_CLASSES | ENUMS:
        return True
    parts = found.module.split(".")
    private = any(part.startswith("_") for part in parts) and found.module not in _PRIVATE_HOMES
    return (
        found.dotted.startswith(LAYER_PACKAGES)
        and all(part.isidentifier() for part in (*parts, found.name))
        and not private
        and not _NO_LAYERS.fullmatch(found.module)
    )


class Classes:
    """The classes that one file may have instances of, looked up by name.

    `trusted` are the exact dotted names of the user's own; `path` is the file's.
    """

    def __init__(self, path: Path, trusted: Collection[str]):
        self.path, self.trusted = path, frozenset(trusted)
        self._found: dict[str, type] = {}

    def check_names(self, names: Collection[Global], known: Collection[str]) -> None:
        """Raise UntrustedClassError for names that are neither `known`, nor layers, nor trusted."""
        refused = sorted(
            name.dotted
            for name in names
            if name.dotted not in known
            and name.dotted not in self.trusted
            and not may_be_a_layer(name)
        )
        if refused:
            raise untrusted(self.path, refused)

    def find(self, named: Global) -> type:
        """The class with this name; raises where it is none, or no layer and not trusted."""
        name = named.dotted
        if name not in self._found:
            if name in self.trusted:
                self._found[name] = self._import_trusted(name)
            elif not may_be_a_layer(named):
                raise untrusted(self.path, [name])
            else:
                self._found[name] = self._import_layer(named)
        return self._found[name]

    def _import_layer(self, named: Global) -> type:
        value = find_in_package(self.path, named)
        if not _is_layer(named.dotted, value):
            raise untrusted(self.path, [named.dotted])
        return value

    def _import_trusted(self, name: str) -> type:
        try:
            with user_modules():
                value = import_object(name)
        except ModelLoadError as error:
            raise ModelLoadError(
                f"'{self.path}' holds a '{name}': {error.message}", error.hint
            ) from error
        if not isinstance(value, type):  # eval is a function, and a file chooses what it gets
            raise UntrustedClassError(
                f"'{self.path}' names '{name}', which is no class; only classes can be trusted",
                SAVE_STATE,
            )
        return value


def find_in_package(path: Path, named: Global) -> object:
    """What a package of layers has under a name; of its module's own names alone."""
    package = named.module.partition(".")[0]
    hint = f"install {package} in the version that saved the file"
    try:
        module = importlib.import_module(named.module)
    except (Exception, SystemExit) as error:
        raise ModelLoadError(
            f"'{path}' holds a '{first_few([named.dotted])}': {reason_of(error)}", hint
        ) from error
    if named.name not in vars(module):
        raise ModelLoadError(
            f"'{path}' holds a '{first_few([named.dotted])}': module '{named.module}' has no "
            f"'{named.name}'",
            hint,
        )
    return vars(module)[named.name]


@lru_cache(maxsize=1 << 16)
def replaces_code(kind: type, key: str) -> bool:
    """Whether an attribute of an instance would stand in for code of its class."""
    if key.startswith("__") or key == "_compiled_call_impl":
        return True
    there = inspect.getattr_static(kind, key, None)
    return callable(there) or hasattr(there, "__get__")


def is_name(key: object) -> bool:
    """Whether a key can be an attribute's name, as source code has them."""
    return isinstance(key, str) and len(key) <= MOST_NAME and _is_identifier(key)


@lru_cache(maxsize=1 << 16)
def _is_identifier(key: str) -> bool:
    return key.isascii() and key.isidentifier() and not keyword.iskeyword(key)


def untrusted(path: Path, names: list[str]) -> UntrustedClassError:
    """The error for names that may not be loaded, with what to do about them."""
    what = "a class that is" if len(names) == 1 else "classes that are"
    return UntrustedClassError(
        f"'{path}' names {what} not trusted, and loading could run their code: "
        f"{first_few([name if is_dotted(name) else ascii(name) for name in names], limit=8)}",
        _untrusted_hint(names),
    )


def _untrusted_hint(names: list[str]) -> str:
    """What to do about refused names; the flag is offered for what can be a user's own class."""
    if any(name.startswith("__main__.") for name in names):
        return (
            "a class of '__main__' was defined in the script that saved the file and can't be "
            "found from here: move it to a module that can be imported and save again, or "
            f"{SAVE_STATE} my.module:Net"
        )
    tops = {name.split(".")[0] for name in names}
    # a name that is none could be a line for the shell, to be copied out of our own message
    if tops & _NOT_THE_USERS or not all(map(is_dotted, names)):
        return (
            "a network's layers are not among these, so look twice at where the file comes from; "
            f"where the network is yours, {SAVE_STATE}"
        )
    flags = " ".join(f"--trust-class {name}" for name in names)
    return (
        f"where you trust the code of these classes, which importing and running them runs: "
        f"{flags}; or {SAVE_STATE}"
    )


def _is_layer(name: str, value: object) -> bool:
    """Whether a name's value is a layer, whose classes are all at home where layers live."""
    if not isinstance(value, type) or type(value) not in (type, ABCMeta, type(Enum)):
        return False
    if name in PLAIN_CLASSES | ENUMS:
        return True
    homes = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in value.__mro__}
    return issubclass(value, nn.Module) and all(
        home in _NEUTRAL_BASES or may_be_a_layer(Global(kind.__module__, kind.__qualname__))
        for home, kind in homes.items()
    )
