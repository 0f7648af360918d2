"""Plain weights in place of those that torch computes anew at each call, and plain copies."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Module = TypeVar("Module", bound=nn.Module)
_REMOVALS = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}


def copy_in_eval(model: Module) -> Module:
    """A copy of a model in eval mode, whatever its weights were computed from."""
    # Old-style weight norm leaves computed tensors in modules, which deepcopy refuses.
    values = [value for module in model.modules() for value in vars(module).values()]
    computed = [v for v in values if isinstance(v, Tensor) and not v.is_leaf]
    memo = {id(value): value.detach().clone() for value in computed}
    return copy.deepcopy(model, memo).eval()


def bake_parametrizations(model: nn.Module) -> int:
    """Give each parametrized, weight- or spectral-normed module its weight as it stands.

    Works in place and in eval mode; returns how many tensors became plain parameters.
    """
    baked = 0
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            baked += _bake(module)
        for hook in list(module._forward_pre_hooks.values()):
            if type(hook) in _REMOVALS:
                _REMOVALS[type(hook)](module, hook.name)
                baked += 1
    return baked


def _bake(module: nn.Module) -> int:
    # Not parametrize.remove_parametrizations: it would change the class, which the original of
    # this copy shares.
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
    return len(values)
