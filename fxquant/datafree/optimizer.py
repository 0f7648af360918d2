"""The student's optimiser: Adam, with learning rates in steps of each layer's own grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.datafree.recipe import Schedule
from fxquant.quantizer import Quantizer

# The grid that layers in floating point are given, to have a step to learn by.
_FLOAT_LEVELS = 127


def student_optimizer(student: nn.Module) -> torch.optim.Adam:
    """Adam with a group for each quantized layer, one for the scales, one for all the rest.

    `set_learning_rates` says how fast each learns, once the student is calibrated.
    """
    student.requires_grad_(True)
    layers = {n: m for n, m in student.named_modules() if _weight_quantizer(m) is not None}
    groups = [
        {"params": list(layer.parameters(recurse=False)), "kind": "layer", "layer": name}
        for name, layer in layers.items()
    ]
    scales = [m.log_scale for m in student.modules() if isinstance(m, Quantizer)]
    taken = {id(p) for group in groups for p in group["params"]} | {id(s) for s in scales}
    rest = [p for p in student.parameters() if id(p) not in taken]
    groups += [{"params": scales, "kind": "scales", "layer": ""}]
    groups += [{"params": [p], "kind": "float", "layer": ""} for p in rest]
    return torch.optim.Adam(groups)


def set_learning_rates(optimizer: torch.optim.Adam, student: nn.Module, schedule: Schedule) -> None:
    """Give each group its `base_lr`: the schedule's rate times one step of the layer's grid.

    Adam moves a parameter by about its learning rate at each step, whatever its gradient, so a
    rate that suits a 4-bit layer would carry an 8-bit one over many of its grid values. Scales,
    trained as logarithms, learn at `scale_lr`.
    """
    for group in optimizer.param_groups:
        if group["kind"] == "scales":
            group["base_lr"] = schedule.scale_lr
        elif group["kind"] == "layer":
            quantizer = _weight_quantizer(student.get_submodule(group["layer"]))
            group["base_lr"] = schedule.student_lr * float(quantizer.scale.detach().mean())
        else:
            group["base_lr"] = schedule.student_lr * _float_step(group["params"][0])


def _weight_quantizer(module: nn.Module) -> Quantizer | None:
    quantizer = getattr(module, "weight_quantizer", None)
    return quantizer if isinstance(quantizer, Quantizer) else None


def _float_step(parameter: Tensor) -> float:
    return float(parameter.detach().abs().max()) / _FLOAT_LEVELS
