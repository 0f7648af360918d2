"""Loading the network to quantize, from a file, a zoo or the user's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, fx, nn

from fxquant.errors import FxQuantError, ModelLoadError
from fxquant.models.files import EXPECTED, is_file, read_model_file
from fxquant.models.opened import Digest, opened
from fxquant.models.state_dicts import find_network, load_into
from fxquant.models.zoos import ARCH_FORMS, build, is_named, short_name
from fxquant.wording import first_few, reason_of

MOST_SIDE = 4096  # of images, as a network says itself


@dataclass(frozen=True)
class LoadedModel:
    """A network to quantize, and where it came from.

    `module` is in eval mode, in float32, on the CPU. `sha256` is that of the model's file, None
    where the network came by name. `input_shape` is (channels, height, width) where the network
    itself says so, else None.
    """

    module: nn.Module
    name: str
    source: str
    sha256: str | None
    input_shape: tuple[int, ...] | None


def load_model(
    source: str | Path,
    *,
    arch: str | None = None,
    trust_classes: Sequence[str] = (),
    pretrained: bool = True,
) -> LoadedModel:
    """Load the network that `source` names.

    `source` is a file that holds a whole module, a file that holds a state dict (with `arch`),
    `torchvision:NAME`, `pytorchcv:NAME` or `timm:NAME` (with their pretrained weights), or
    `package.module:callable`. `arch` is one of the last four forms; zoo networks are built
    without weights for it. `trust_classes` are the exact dotted names of classes that a pickled
    file may use beside those of torch.nn, torchvision, pytorchcv and timm. Without `pretrained` a
    zoo's network is built with random weights, for those who ask for its structure alone.
    Raises UntrustedClassError where a file names any other class, ModelLoadError where nothing
    can be loaded.
    """
    source = str(source)
    path = Path(source)
    if is_named(source) and not is_file(path):
        if arch is not None:
            raise _needless_arch(f"'{source}' names a network", arch)
        module, digest = build(source, pretrained=pretrained), None
        name = short_name(source)
    else:
        content, digest = _read(path, trust_classes)
        module = _module_of(find_network(content, source), source, arch)
        name = path.stem
    module = _finished(module, source)
    return LoadedModel(module, name, source, digest, _input_shape(module))


def _read(path: Path, trust_classes: Sequence[str]) -> tuple[object, str]:
    """What a file holds, and its SHA-256: both of the one file that is opened, once."""
    with opened(path, EXPECTED) as file, Digest(file) as digest:
        content = read_model_file(file, path, trust_classes)
        try:
            return content, digest.wait()
        except OSError as error:
            raise ModelLoadError(f"'{path}' can't be read: {reason_of(error)}") from error


def _module_of(
    content: nn.Module | Mapping[str, Tensor], source: str, arch: str | None
) -> nn.Module:
    if isinstance(content, nn.Module):
        if arch is not None:
            raise _needless_arch(f"'{source}' holds a whole {type(content).__qualname__}", arch)
        return content
    if arch is None:
        raise ModelLoadError(
            f"'{source}' holds a state dict ({len(content)} tensors: {first_few(list(content))}), "
            "which says nothing of the network's architecture",
            f"name it with --arch {ARCH_FORMS}",
        )
    module = build(arch, pretrained=False)
    load_into(module, content, source, arch)
    return module


def _needless_arch(what: str, arch: str) -> ModelLoadError:
    return ModelLoadError(
        f"{what}, so there is nothing for the architecture '{arch}' to do",
        "--arch goes with a file that holds a state dict; leave it out",
    )


def _finished(module: nn.Module, source: str) -> nn.Module:
    """The module as the rest of the tool expects it; raises where its weights are unusable."""
    try:
        if isinstance(module, nn.DataParallel):
            module = module.module
        _check_parts(module, source)
        module.cpu().float().eval()
        _check_finite(module, source)
    except FxQuantError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"the {type(module).__qualname__} of '{source}' can't be used: {reason_of(error)}"
        ) from error
    return module


def _check_parts(module: nn.Module, source: str) -> None:
    """torch.fx puts a network's parts beside attributes of its own, which have names too."""
    taken = set(dir(fx.GraphModule)) - set(dir(nn.Module))
    for name in (*module._modules, *module._parameters, *module._buffers):
        if name in taken:
            raise ModelLoadError(
                f"the {type(module).__qualname__} of '{source}' has a part called '{name}', which "
                "is what torch.fx calls something of its own",
                "rename it, or put the network into a torch.nn.Sequential",
            )


def _check_finite(module: nn.Module, source: str) -> None:
    for name, parameter in module.named_parameters():
        # A sum is finite only if all in it is, and takes a tenth of the time.
        if not parameter.sum().isfinite() and not parameter.isfinite().all():
            raise _not_finite(name, parameter, source)
    for name, buffer in module.named_buffers():
        # a mask may hold infinities on purpose; statistics may not, and NaN never is
        broken = ~buffer.isfinite() if "running_" in name else buffer.isnan()
        if broken.any():
            raise _not_finite(name, buffer, source)


def _not_finite(name: str, tensor: Tensor, source: str) -> ModelLoadError:
    count = int((~tensor.isfinite()).sum())
    return ModelLoadError(
        f"'{name}' of '{source}' holds values that are not finite: {count} of {tensor.numel()}",
        "the network's training diverged, or its weights don't fit float32",
    )


def _input_shape(module: nn.Module) -> tuple[int, ...] | None:
    """(channels, height, width) where the network says so, in pytorchcv's or in timm's way."""
    settings = getattr(module, "pretrained_cfg", None)
    if isinstance(settings, Mapping):
        return _checked_shape(settings.get("input_size", ()))
    size = getattr(module, "in_size", None)
    if not isinstance(size, (tuple, list)):
        return None
    channels = getattr(module, "in_channels", None) or next(
        (layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), None
    )
    return _checked_shape((channels, *size))


def _checked_shape(shape: object) -> tuple[int, ...] | None:
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        return None
    sane = all(type(side) is int and 0 < side <= MOST_SIDE for side in shape)
    return tuple(shape) if sane else None
