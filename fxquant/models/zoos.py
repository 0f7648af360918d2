"""Networks by name: `ZOO:NAME` of torchvision, pytorchcv or timm, `package.module:callable`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout

from torch import nn

from fxquant.errors import ModelLoadError
from fxquant.models.imports import find_attribute, import_module, user_modules
from fxquant.wording import did_you_mean, reason_of

ARCH_FORMS = "torchvision:NAME, pytorchcv:NAME, timm:NAME or package.module:callable"


def is_named(text: str) -> bool:
    """Whether `text` names a network of a zoo or a callable, as opposed to a file."""
    prefix = text.partition(":")[0]
    return prefix in _ZOOS or re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", text) is not None


def names_code(text: str) -> bool:
    """Whether `text` names a callable of somebody's own code, which building would run."""
    return is_named(text) and text.partition(":")[0] not in _ZOOS


def short_name(text: str) -> str:
    """What `text` calls the network: a zoo's name for it, or the callable's own name."""
    prefix, _, name = text.partition(":")
    return name if prefix in _ZOOS else name.rpartition(".")[2]


def build(text: str, *, pretrained: bool) -> nn.Module:
    """Build the network that `text` names; with a zoo's weights where `pretrained`.

    Raises ModelLoadError where the name is unknown, the weights can't be had, or a callable fails.
    """
    prefix, _, name = text.partition(":")
    if not is_named(text):
        raise ModelLoadError(f"'{text}' names no architecture", f"write {ARCH_FORMS}")
    if prefix in _ZOOS:
        return _ZOOS[prefix](name.lower(), pretrained)
    return _call_user(prefix, name)


def _torchvision(name: str, pretrained: bool) -> nn.Module:
    from torchvision import models

    _check_known("torchvision", name, models.list_models())
    settings = {"weights": "DEFAULT" if pretrained else None}
    taken = inspect.signature(models.get_model_builder(name)).parameters
    if not pretrained and "weights_backbone" in taken:
        settings["weights_backbone"] = None  # detectors fetch their backbone's weights otherwise
    return _zoo_build(
        "torchvision", name, pretrained, lambda: models.get_model(name, progress=False, **settings)
    )


def _pytorchcv(name: str, pretrained: bool) -> nn.Module:
    from pytorchcv import model_provider

    _check_known("pytorchcv", name, model_provider._models)
    return _zoo_build(
        "pytorchcv",
        name,
        pretrained,
        lambda: model_provider.get_model(name, pretrained=pretrained),
    )


def _timm(name: str, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelLoadError(
            f"timm:{name} needs the package timm: {reason_of(error)}",
            "install it with: pip install 'fxquant[timm]'",
        ) from error
    _check_known("timm", name, [*timm.list_models(), *timm.list_pretrained()])
    return _zoo_build(
        "timm", name, pretrained, lambda: timm.create_model(name, pretrained=pretrained)
    )


_ZOOS: dict[str, Callable[[str, bool], nn.Module]] = {
    "torchvision": _torchvision,
    "pytorchcv": _pytorchcv,
    "timm": _timm,
}


def _check_known(zoo: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ModelLoadError(f"{zoo} has no network '{name}'", did_you_mean(name, known))


def _zoo_build(zoo: str, name: str, pretrained: bool, make: Callable[[], nn.Module]) -> nn.Module:
    """Run a zoo's builder; what it prints while it downloads goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            return make()
    except Exception as error:
        if not pretrained:
            raise ModelLoadError(f"{zoo}:{name} can't be built: {reason_of(error)}") from error
        raise ModelLoadError(
            f"the weights of {zoo}:{name} can't be had: {reason_of(error)}",
            "they are downloaded once and then kept; without a network, fetch them elsewhere and "
            f"give the file with --arch {zoo}:{name}",
        ) from error


def _call_user(module_name: str, path: str) -> nn.Module:
    """Call the user's `module:callable` without arguments, and check what comes back."""
    name = f"{module_name}:{path}"
    with user_modules():
        try:
            module = import_module(module_name)
        except ModelLoadError as error:
            zoo = did_you_mean(module_name, _ZOOS)
            raise ModelLoadError(error.message, zoo or error.hint) from error
        target = find_attribute(module, path)
        if not callable(target) or isinstance(target, nn.Module):
            raise ModelLoadError(
                f"{name} is a {type(target).__qualname__}; expected a class or a function that "
                "builds the network and takes no arguments",
            )
        try:
            built = target()
        except (Exception, SystemExit) as error:
            raise ModelLoadError(
                f"{name} failed when it was called without arguments: {reason_of(error)}",
                "write a function without arguments that returns the network, and name that",
            ) from error
    if not isinstance(built, nn.Module):
        raise ModelLoadError(
            f"{name} returned a {type(built).__qualname__}; expected a torch.nn.Module"
        )
    return built
