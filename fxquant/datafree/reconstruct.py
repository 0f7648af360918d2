"""Block-wise reconstruction: unit after unit learns to compute what the teacher does there.

The rounding of each weight (AdaRound), scales (LSQ) and biases are learned on the error of a
unit's outputs, as in BRECQ (Li et al., 2021), while part of the values that enter it, and of the
quantized values inside, are the float ones (QDrop: Wei et al., 2022).
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from fxquant.datafree.losses import relative_mse
from fxquant.datafree.recipe import Reconstruction
from fxquant.datafree.samplers import cosine
from fxquant.datafree.unit_values import UnitValues, collect_values
from fxquant.graph.insert_quantizers import is_activation_quantizer, layer_name, quantized_layers
from fxquant.graph.ops import module_of
from fxquant.graph.snap_biases import bias_of
from fxquant.graph.units import Unit, find_units
from fxquant.quantizer import Quantizer
from fxquant.soft_rounding import SoftRounding, undecided

logger = logging.getLogger(__name__)

# Floats that one unit's values may take: a gigabyte.
MOST_VALUES = 1 << 28


class Reconstructor:
    """Goes through the units of `student`, `settings.steps` steps each.

    `weights` is the state of the student before calibration: the weights that are rounded.
    Between two steps, `state_dict` and the student's own state hold all there is to go on from.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        settings: Reconstruction,
        weights: dict[str, Tensor],
        rng: torch.Generator,
    ):
        self.teacher, self.student = teacher, student
        self.settings, self.weights, self.rng = settings, weights, rng
        self.units = find_units(student) if settings.steps else []
        calls = Counter(id(module_of(node.args[1])) for node in quantized_layers(student))
        self.called_once = {quantizer for quantizer, count in calls.items() if count == 1}
        self.images: Tensor | None = None
        self.current: _UnitTraining | None = None

    @property
    def total(self) -> int:
        """Number of steps for all units."""
        return len(self.units) * self.settings.steps

    def begin(self, images: Tensor) -> None:
        """Reconstruct on these images, (n, channels, height, width)."""
        if not self.total:
            return
        if images.dim() == 4:  # values are mixed in the order of memory, the same in every run
            images = images.contiguous(memory_format=torch.channels_last)
        self.images = images

    def step(self, index: int) -> dict[str, Tensor]:
        """Step `index` of `total`: the unit's relative squared error."""
        unit, at = divmod(index, self.settings.steps)
        self.current = self.current or self._open(self.units[unit])
        error = self.current.step(at)
        if at + 1 == self.settings.steps:
            self.current.finish()
            self.current = None
        if index + 1 == self.total:
            self.images = None
        return {} if error is None else {"student": error}

    def _open(self, unit: Unit) -> _UnitTraining:
        values = collect_values(unit, self.teacher, self.student, self._images_for(unit))
        if not values:
            logger.info("unit %s: its values can't be paired; left as it is", unit.outputs)
        layers = {
            layer_name(node): node
            for node in unit.layers
            if id(module_of(node.args[1])) in self.called_once
        }
        return _UnitTraining(unit, values, layers, self.weights, self.settings, self.rng)

    def _images_for(self, unit: Unit) -> Tensor:
        nodes = [*unit.inputs, *unit.inputs, *unit.outputs]
        values = sum(node.meta["shape"].numel() / node.meta["shape"][0] for node in nodes)
        return self.images[: max(1, int(MOST_VALUES / values))]

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "current": self.current and self.current.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], index: int) -> None:
        """Stand before step `index`; the student must hold its own state already."""
        self.images, self.current = state["images"], None
        if state["current"] is not None:
            self.current = self._open(self.units[index // self.settings.steps])
            self.current.load_state_dict(state["current"])


class _UnitTraining:
    """The training of one unit: its soft roundings, its optimiser, its values."""

    def __init__(
        self,
        unit: Unit,
        values: list[UnitValues],
        layers: dict[str, Node],
        weights: dict[str, Tensor],
        settings: Reconstruction,
        rng: torch.Generator,
    ):
        self.unit, self.values, self.settings, self.rng = unit, values, settings, rng
        self.layers = layers
        self.soft = {name: self._soften(node, weights) for name, node in layers.items()}
        self.runner = _Runner(unit, {n.args[1]: self.soft[k] for k, n in layers.items()})
        self.runner.drop = settings.drop
        self.optimizer = torch.optim.Adam(self._groups())

    def _soften(self, node: Node, weights: dict[str, Tensor]) -> SoftRounding:
        weight = weights[f"{layer_name(node)}.weight"]
        return SoftRounding(weight, module_of(node.args[1]), self._owner(node).weight)

    def _owner(self, node: Node) -> nn.Module:
        return self.unit.region.get_submodule(node.meta["layer"])

    def _groups(self) -> list[dict[str, Any]]:
        s = self.settings
        modules = [module_of(node) for node in self.unit.nodes]
        scales = [m.log_scale for m in modules if isinstance(m, Quantizer)]
        scales = list({id(scale): scale for scale in scales}.values())
        groups = [{"params": scales, "base_lr": s.scale_lr, "decays": True}]
        for name, node in self.layers.items():
            groups += [{"params": [self.soft[name].logits], "base_lr": s.rounding_lr}]
            bias, quantizer = bias_of(node), module_of(node.args[1])
            if bias is not None:
                step = float(quantizer.scale.detach().mean())
                groups += [{"params": [bias], "base_lr": s.bias_lr * step, "decays": True}]
        return groups

    def step(self, at: int) -> Tensor | None:
        """One step on a random batch; the error, None for a unit without values."""
        if not self.values:
            return None
        values = self.values[at % len(self.values)]
        generator = self._generator(values.targets[0].device)
        count = len(values.targets[0])
        size = (min(self.settings.batch, count),)
        picked = torch.randint(count, size, generator=generator, device=generator.device)
        inputs = [
            _mix(x[picked], y[picked], self.settings.drop, generator)
            for x, y in zip(values.inputs, values.float_inputs, strict=True)
        ]
        self.runner.generator = generator
        pairs = zip(self.runner.compute(inputs), values.targets, strict=True)
        errors = [(relative_mse(found, target[picked]), target) for found, target in pairs]
        # As in BRECQ the error is summed over channels, which the regulariser's weight is for.
        loss = torch.stack([e * t.shape[1] for e, t in errors]).sum() + self._regularizer(at)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            decay = cosine(at, self.settings.steps) if "decays" in group else 1.0
            group["lr"] = group["base_lr"] * decay
        self.optimizer.step()
        return torch.stack([error.detach() for error, _ in errors]).mean()

    def _generator(self, device: torch.device) -> torch.Generator:
        """Random numbers for one step, on the device, from a seed drawn on the host."""
        seed = int(torch.randint(2**62, (), generator=self.rng))
        return torch.Generator(device).manual_seed(seed)

    def _regularizer(self, at: int) -> Tensor | float:
        """Nothing at first, then ever sharper until each weight is rounded one way."""
        done = at / self.settings.steps
        if done < self.settings.free or not self.soft:
            return 0.0
        sharpness = 20 - 18 * (done - self.settings.free) / (1 - self.settings.free)
        total = torch.stack([undecided(soft.up(), sharpness) for soft in self.soft.values()]).sum()
        return self.settings.decide * total

    @torch.no_grad()
    def finish(self) -> None:
        """Put the weights on their grids."""
        for name, node in self.layers.items():
            self._owner(node).weight.copy_(self.soft[name].hard())

    def state_dict(self) -> dict[str, Any]:
        return {
            "soft": {name: soft.state_dict() for name, soft in self.soft.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, soft in self.soft.items():
            soft.load_state_dict(state["soft"][name])
        self.optimizer.load_state_dict(state["optimizer"])


class _Runner(Interpreter):
    """Runs a unit's nodes on given inputs, with soft weights and partly quantized activations."""

    def __init__(self, unit: Unit, soft: dict[Node, SoftRounding]):
        super().__init__(unit.region)
        self.unit, self.soft, self.drop = unit, soft, 0.0
        self.generator: torch.Generator | None = None

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        self.env = dict(zip(self.unit.inputs, inputs, strict=True))
        for node in self.unit.nodes:
            self.env[node] = self.run_node(node)
        return [self.env[node] for node in self.unit.outputs]

    def run_node(self, n: Node):
        if n in self.soft:
            return self.soft[n]()
        value = super().run_node(n)
        if is_activation_quantizer(n):
            return _mix(value, self.env[n.args[0]], self.drop, self.generator)
        return value


def _mix(x: Tensor, y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`x` with a random share of its elements, in 256ths, taken from `y`.

    As an interpolation, whose ends are exact: on a CPU torch.where takes several times as long.
    """
    if not share or not x.is_floating_point():
        return x
    taken = _random_bytes(x, generator) < round(256 * share)
    return torch.lerp(x, y, taken.to(x.dtype))


def _random_bytes(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform bytes in a tensor's shape, which lie in memory as it does.

    Drawn eight at a time: a draw for each costs more than the rest of a mix.
    """
    words = torch.randint(
        -(2**63), 2**63 - 1, (like.numel() // 8 + 1,), generator=generator, device=generator.device
    )
    strides = torch.empty_like(like, device="meta").stride()
    return words.view(torch.uint8).as_strided(like.shape, strides)
