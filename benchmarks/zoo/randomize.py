"""Random weights and batch norm statistics under which every network computes something lively.

As they are built, many networks are dead or explode: zeroed last gammas, layer scales of 1e-6,
statistics of 0 and 1 that are not those of the values. Here each layer's weight is scaled, the
first time it is called, to an output of unit variance, and each batch norm gets statistics near
those of the input that it sees then (after Mishkin & Matas, All you need is a good init, 2016).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
TINY = 0.1


@torch.no_grad()
def images(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random inputs of unit variance, (count, *shape): images are smooth and noisy, and differ."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *shape, generator=generator)
    if len(shape) != 3 or min(shape[1:]) < 32:
        return noise
    for cells in (4, 8):
        coarse = torch.randn(count, shape[0], cells, cells, generator=generator)
        noise = noise + 1.5 * F.interpolate(coarse, shape[1:], mode="bilinear")
    return noise / noise.std()


@torch.no_grad()
def randomize(net: nn.Module, run: Callable[[Tensor], object], x: Tensor) -> None:
    """Fill parameters and statistics of `net`, in place, for inputs like `x`.

    `run` calls the network on a batch.
    """
    for module in net.modules():
        _fill(module)
    settled: set[int] = set()
    handles = []
    for module in net.modules():
        if isinstance(module, _LAYERS):
            handles.append(module.register_forward_hook(_unit_output(settled)))
        elif _has_statistics(module):
            handles.append(module.register_forward_pre_hook(_measured_statistics(settled)))
    try:
        run(x)
    finally:
        for handle in handles:
            handle.remove()
    # timm keeps what it has computed from weights until it trains.
    net.train().eval()


def _fill(module: nn.Module) -> None:
    if isinstance(module, _LAYERS):
        fan_in = (
            module.weight[0].numel()
            if not getattr(module, "transposed", False)
            else (module.weight.numel() / module.out_channels * module.groups)
        )
        module.weight.normal_(0, max(fan_in, 1) ** -0.5)
        if module.bias is not None:
            module.bias.normal_(0, 0.1)
    elif _is_norm(module):
        # Betas well above 0 let most ReLUs pass most values: around 0, each layer would amplify
        # any noise by half, which trained networks don't.
        module.weight.uniform_(0.5, 1.0)
        module.bias.normal_(1.2, 0.4) if _has_statistics(module) else module.bias.normal_(0, 0.2)
    else:
        for parameter in module.parameters(recurse=False):
            _wake(parameter)


def _is_norm(module: nn.Module) -> bool:
    """Whether it has one gamma and one beta for each channel."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return (
        isinstance(weight, Tensor)
        and isinstance(bias, Tensor)
        and weight.dim() == 1
        and weight.shape == bias.shape
    )


def _wake(parameter: nn.Parameter) -> None:
    """Give a parameter that is zero or nearly values that matter.

    That is a layer scale, a bias, a token or the like; a small matrix is small on purpose.
    """
    if not parameter.numel() or float(parameter.abs().max()) >= TINY:
        return
    if parameter.dim() < 2:
        parameter.uniform_(0.2, 0.6)
    elif parameter.shape[0] == 1 or not parameter.any():
        parameter.normal_(0, 0.5)


def _unit_output(settled: set[int]):
    def hook(module: nn.Module, args: tuple, output) -> object:
        weight = module.weight
        if weight.data_ptr() in settled:
            return None
        settled.add(weight.data_ptr())
        spread = float((output if isinstance(output, Tensor) else output[0]).std())
        if not 1e-6 < spread < 1e6:
            return None
        weight.div_(spread)
        if module.bias is not None:
            module.bias.div_(spread)
        return module.forward(*args)

    return hook


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_var", None), Tensor)


def _measured_statistics(settled: set[int]):
    def hook(module: nn.Module, args: tuple) -> None:
        mean, var = module.running_mean, module.running_var
        if mean.data_ptr() in settled:
            return
        settled.add(mean.data_ptr())
        channels = args[0].transpose(0, 1).flatten(1)
        seen_mean, seen_var = channels.mean(1), channels.var(1, unbiased=False)
        # A channel that hardly varies, for its neighbours or its mean, must not be made loud.
        least = torch.maximum(0.05 * seen_var.mean(), 0.1 * seen_mean.square())
        seen_var = seen_var.maximum(least) + 1e-6
        var.copy_(seen_var * torch.empty_like(var).uniform_(0.7, 1.4))
        mean.copy_(seen_mean + 0.1 * seen_var.sqrt() * torch.randn_like(mean))

    return hook
