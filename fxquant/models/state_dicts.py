"""Finding the state dict in what a file holds, and putting it into a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from fxquant.errors import ModelLoadError
from fxquant.wording import first_few, reason_of

# where training scripts put the network in a checkpoint, in the order of preference
_CHECKPOINT_KEYS = ("state_dict", "model", "net", "model_state_dict", "model_state")
# what DataParallel and torch.compile put before every key
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# keys that can be printed; a tuple of tuples may be longer than memory
_SHORT = (str, bytes, int, float, type(None))
_COUNTER = "num_batches_tracked"


def find_network(content: object, where: str) -> nn.Module | Mapping[str, Tensor]:
    """The module or state dict in what `where` holds, taken out of a checkpoint if need be."""
    if _is_network(content):
        return content
    if isinstance(content, Mapping):
        for key in _CHECKPOINT_KEYS:
            if _is_network(content.get(key)):
                return content[key]
    raise ModelLoadError(
        f"'{where}' holds {_describe(content)}; expected a torch.nn.Module or a state dict, "
        f"by itself or under one of the keys {', '.join(_CHECKPOINT_KEYS)}",
        "save the network alone: torch.save(model.state_dict(), path)",
    )


def load_into(model: nn.Module, state: Mapping[str, Tensor], where: str, arch: str) -> None:
    """Put `state` into `model` in place; raises ModelLoadError with the keys that don't fit."""
    own = model.state_dict()
    state = _with_metadata(_without_prefixes(state, own), own)
    for key in own.keys() - state.keys():
        if key.endswith(_COUNTER):  # older torch had none, and inference never reads it
            state[key] = own[key]
    try:
        model.load_state_dict(state)
    except Exception as error:
        what = "; ".join(_differences(state, own)) or reason_of(error)
        raise ModelLoadError(
            f"the state dict of '{where}' does not fit {arch}: {what}",
            "check --arch; for another number of classes or input channels write a function that "
            "builds the network, and name it with --arch package.module:function",
        ) from error


def _is_network(content: object) -> bool:
    if isinstance(content, nn.Module):
        return True
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return False
    tensors = [key for key, value in content.items() if isinstance(value, Tensor)]
    extra = [key for key in content if key.endswith("_extra_state") and key not in tensors]
    return bool(tensors) and len(tensors) + len(extra) == len(content)


def _describe(content: object) -> str:
    kind = f"a {type(content).__module__}.{type(content).__qualname__}".replace("builtins.", "")
    if isinstance(content, Mapping):
        keys = [repr(key) if isinstance(key, _SHORT) else type(key).__name__ for key in content]
        return (
            f"{kind} with the keys {first_few(keys, limit=8)}" if keys else f"{kind} without keys"
        )
    return kind


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> OrderedDict:
    """A copy of `state` without what wrappers put before all of its keys."""
    stripped = OrderedDict(state)
    if hasattr(state, "_metadata"):
        stripped._metadata = OrderedDict(state._metadata)
    for prefix in _WRAPPER_PREFIXES * 2:  # they may be around each other in either order
        at_home = all(key.startswith(prefix) for key in own)
        if not at_home and all(key.startswith(prefix) for key in stripped):
            consume_prefix_in_state_dict_if_present(stripped, prefix)
    return stripped


def _with_metadata(state: OrderedDict, own: OrderedDict) -> OrderedDict:
    """Safetensors drop the layers' versions, without which some layers refuse to load."""
    if not hasattr(state, "_metadata"):
        state._metadata = OrderedDict(own._metadata)
    return state


def _differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What differs between a file's keys and the network's, one phrase for each way to differ."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} (file {_shape(state[key])}, network {_shape(own[key])})"
        for key in own
        if key in state and _shape(state[key]) != _shape(own[key])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [
        f"{len(keys)} {'key is' if len(keys) == 1 else 'keys are'} {kind}: {first_few(keys)}"
        for kind, keys in kinds.items()
        if keys
    ]


def _shape(value: object) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None
