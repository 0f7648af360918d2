"""Which classes a pickled file may name: torch.nn's, those of the model zoos, and the user's.

Files are read by torch's restricted unpickler, which creates and calls nothing outside an
allow-list. That list is made here, for each file, out of the names that the file holds, once it
is known what the file would do with them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import torch
from torch import fx, nn
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from fxquant.errors import ModelLoadError, UntrustedClassError
from fxquant.models.archives import TorchArchive
from fxquant.models.imports import import_object, is_dotted, user_modules
from fxquant.models.opcodes import Pickle, read_instructions
from fxquant.models.wording import first_few

# Where layers and networks live. Narrower than the packages: timm.task, for one, has a module
# whose constructor downloads, and importing parts of timm.data ends the process.
LAYER_PACKAGES = (
    "torch.nn.",
    "torchvision.models.",
    "torchvision.ops.",
    "torchvision.transforms.",
    "pytorchcv.models.",
    "timm.layers.",
    "timm.models.",
)
# A network's own classes are in none of these; the last are modules that Python 2 had.
_NOT_THE_USERS = sys.stdlib_module_names | {
    *("torch", "torchvision", "pytorchcv", "timm", "numpy"),
    *("__builtin__", "commands", "copy_reg", "cPickle", "httplib", "popen2", "urllib2"),
}

# What networks of these packages hold beside modules. Each was read: plain values and arithmetic.
_HARMLESS = frozenset(
    {
        "torch.nn.functional.relu",
        "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
        "torchvision.models.detection._utils.BoxCoder",
        "torchvision.models.detection._utils.BoxLinearCoder",
        "torchvision.models.detection._utils.Matcher",
        "torchvision.models.detection._utils.SSDMatcher",
        "torchvision.ops.boxes.box_iou",
        "pytorchcv.models.nasnet.NasDualPathScheme",
        "pytorchcv.models.nasnet.nasnet_dual_path_scheme_ordinal",
        "timm.layers.format.Format",
    }
)

# What a file may call beside these: it makes tensors, and plain values that torch allows anyway.
_MAKES_TENSORS = frozenset(
    {
        "_codecs.encode",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.device",
        "torch.serialization._get_layout",
    }
)

# These hold programs: a GraphModule compiles the source code that its pickle carries.
_PROGRAMS = (fx.GraphModule, torch.jit.ScriptModule)

_TORCH_ADVICE = re.compile(
    r"Weights only load failed\.|In PyTorch 2\.6, we changed .*|Please (use|file) .*"
)
_SAVE_STATE = "save model.state_dict() instead and name the architecture with --arch"


def read_pickle(path: Path, archive: TorchArchive, trust_classes: Sequence[str] = ()) -> object:
    """Read what `torch.save` wrote, without running code that the user did not trust.

    Raises UntrustedClassError where the file names other classes, ModelLoadError where it can't
    be read or does what no network's file does.
    """
    trusted = frozenset(trust_classes)
    try:
        steps = read_instructions(archive.pickle)
        with _allowed_alone([]):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:
        raise _unreadable(path, error) from error
    allowed = _allow_list(path, names, trusted)
    _check_steps(path, steps, allowed, trusted)
    if any(archive.storages.get(key) != size for key, size in steps.storages.items()):
        raise _unreadable(path, "a tensor's storage is missing or has another size than it claims")
    try:
        with path.open("rb") as file, _allowed_alone(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error


def read_legacy_pickle(path: Path) -> object:
    """Read tensors from the format that torch wrote before 1.6; modules are refused."""
    try:
        with path.open("rb") as file:
            _magic, _version, _machine, steps, keys = (read_instructions(file) for _ in range(5))
            size = file.seek(0, 2)
    except ModelLoadError as error:
        raise _unreadable(path, error) from error
    named = steps.called | steps.created | steps.filled
    refused = sorted(named - _MAKES_TENSORS)
    if refused:
        raise UntrustedClassError(
            f"'{path}' has the format that torch wrote before 1.6, from which only tensors are "
            f"read; it names {first_few(refused)}",
            _SAVE_STATE,
        )
    if sum(steps.storages.values()) > size or set(steps.storages) != _texts(keys.value):
        raise _unreadable(path, "its tensors claim to be larger than the file, or are not in it")
    try:
        with path.open("rb") as file, _allowed_alone([]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error


@contextmanager
def _allowed_alone(allowed: list[tuple[object, str]]) -> Iterator[None]:
    """Let torch's unpickler have `allowed` and nothing else.

    `torch.serialization.safe_globals` would leave in what torch's own parts add for the whole
    process when they are imported (classes of torch.distributed, for one).
    """
    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals(allowed)
    try:
        yield
    finally:
        added = set(get_safe_globals()) - set(allowed)
        clear_safe_globals()
        add_safe_globals([*before, *added])


def _allow_list(path: Path, names: list[str], trusted: Collection[str]) -> list[tuple[object, str]]:
    """Each name of the file with what it stands for; raises where one may not be loaded."""
    refused = [
        name for name in names if name not in trusted and not name.startswith(LAYER_PACKAGES)
    ]
    if refused:
        raise _untrusted(path, refused)
    allowed = {name: _import_named(path, name, user=name in trusted) for name in names}
    # a name inside a layer package still has to be a layer, and one that is at home there
    refused = [
        name for name, value in allowed.items() if name not in trusted and not _is_safe(name, value)
    ]
    if refused:
        raise _untrusted(path, refused)
    return [(value, name) for name, value in allowed.items()]


def _check_steps(
    path: Path,
    steps: Pickle,
    allowed: list[tuple[object, str]],
    trusted: Collection[str],
) -> None:
    """Raise ModelLoadError where reading the file would call or fill what no network's file does.

    Layers are made without a call and then given their state; what is called makes tensors, or
    is harmless, or the user trusts it.
    """
    classes = {n for kind, n in allowed if isinstance(kind, type) and not issubclass(kind, Enum)}
    callable_names = _MAKES_TENSORS | _HARMLESS | trusted
    odd = {
        "call": steps.called - callable_names,
        "make": steps.created - classes,
        "fill": steps.filled - classes - {"collections.OrderedDict"},
    }
    for what, names in odd.items():
        if names:
            raise ModelLoadError(
                f"'{path}' would {what} {first_few(sorted(names))} while it is read, which no "
                "network does that torch.save wrote",
                f"look twice at where the file comes from; where the network is yours, "
                f"{_SAVE_STATE}",
            )


def _texts(values: object) -> set[str]:
    return {v for v in values if isinstance(v, str)} if isinstance(values, list) else set()


def _is_safe(name: str, value: object) -> bool:
    if name in _HARMLESS:
        return True
    return (
        isinstance(value, type)
        and issubclass(value, nn.Module)
        and not issubclass(value, _PROGRAMS)
        and f"{value.__module__}.".startswith(LAYER_PACKAGES)
    )


def _import_named(path: Path, name: str, *, user: bool) -> object:
    """Import a class that the file names; those of the user may lie in the working directory."""
    try:
        if not user:
            return import_object(name)
        with user_modules():
            value = import_object(name)
    except ModelLoadError as error:
        package = name.partition(".")[0]
        hint = error.hint if user else f"install {package} in the version that saved the file"
        raise ModelLoadError(f"'{path}' holds a '{name}': {error.message}", hint) from error
    if not isinstance(value, type):  # eval is a function, and a file chooses what it is called with
        raise UntrustedClassError(
            f"'{path}' names '{name}', which is no class; only classes can be trusted", _SAVE_STATE
        )
    return value


def _untrusted(path: Path, names: list[str]) -> UntrustedClassError:
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
            f"{_SAVE_STATE} my.module:Net"
        )
    tops = {name.split(".")[0] for name in names}
    # a name that is none could be a line for the shell, to be copied out of our own message
    if tops & _NOT_THE_USERS or not all(map(is_dotted, names)):
        return (
            "a network's layers are not among these, so look twice at where the file comes from; "
            f"where the network is yours, {_SAVE_STATE}"
        )
    flags = " ".join(f"--trust-class {name}" for name in names)
    return f"where you trust the code of these classes: {flags}; or {_SAVE_STATE}"


def _unreadable(path: Path, error: Exception | str) -> ModelLoadError:
    reason = error if isinstance(error, str) else _torch_reason(error)
    return ModelLoadError(
        f"'{path}' can't be read: {reason}",
        "the file may be truncated or damaged: compare its size with the original's; files saved "
        "with a pickle_protocol other than torch's default can't be read either",
    )


def _torch_reason(error: Exception) -> str:
    """torch's reason without its advice, which is to read the file unsafely."""
    if isinstance(error, ModelLoadError):
        return error.message
    text = str(error).rpartition("WeightsUnpickler error: ")[2]
    lines = _TORCH_ADVICE.sub("", text).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
