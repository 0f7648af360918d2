"""Layer importance: the average Hessian trace of each layer, by Hutchinson's estimator.

Li et al., 2022, eq. 5 to 7: h_i = Tr(H_i) / m_i with Tr(H) = E[v^T H v], v of Rademacher signs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from fxquant.errors import SettingError
from fxquant.graph.insert_quantizers import layer_name
from fxquant.graph.insert_taps import is_tap
from fxquant.graph.ops import WEIGHTED, kind, module_of
from fxquant.graph.regions import all_nodes
from fxquant.inputs import flatten


@dataclass(frozen=True)
class Importance:
    """Average Hessian trace of each layer with its standard error, in graph order."""

    layers: tuple[str, ...]
    trace: tuple[float, ...]
    standard_error: tuple[float, ...]

    def normalized(self, how: str) -> dict[str, float]:
        """h by layer name, brought to order 1.

        `mean` divides by the mean and clips to [0, 10], `max` divides by the largest, `rank`
        spreads ranks over [0, 2], `none` leaves h as it is. Negative estimates, which are noise,
        count as 0.
        """
        h = torch.tensor(self.trace, dtype=torch.float64).clamp(min=0)
        tiny = torch.finfo(torch.float64).tiny
        if how == "mean":
            h = (h / h.mean().clamp(min=tiny)).clamp(max=10)
        elif how == "max":
            h = h / h.max().clamp(min=tiny)
        elif how == "rank":
            h = h.argsort().argsort().double() * 2 / max(len(h) - 1, 1)
        return dict(zip(self.layers, h.tolist(), strict=True))


def measure_importance(
    teacher: nn.Module,
    images: Tensor,
    *,
    method: str = "gauss-newton",
    probes: int = 50,
    labels: Tensor | None = None,
    rng: torch.Generator | None = None,
) -> Importance:
    """Average Hessian trace of each convolution and linear layer of `teacher` on `images`.

    `gauss-newton` is the trace of the generalised Gauss-Newton matrix of the teacher's own
    outputs: never negative, one backward pass a probe, no labels. For logits (n, classes) it is
    that of the cross-entropy, with labels drawn from the teacher's softmax (Fisher); for other
    outputs that of half their squared error. `hessian` is the paper's cross-entropy Hessian,
    on `labels` (n,) or, without them, on the teacher's most likely classes. The number of probes
    is fixed; the standard error tells what they leave uncertain.
    """
    rng = rng or torch.Generator().manual_seed(0)
    layers = {layer_name(n): module_of(n) for n in all_nodes(teacher) if _is_layer(n)}
    names, weights = list(layers), [layer.weight for layer in layers.values()]
    probe = _fisher_probe if method == "gauss-newton" else _hessian_probe
    flags = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        samples = probe(teacher, weights, images, labels, probes, rng)
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    sizes = torch.tensor([w.numel() for w in weights], dtype=torch.float64)
    average = samples / sizes
    error = average.std(0) / probes**0.5
    return Importance(tuple(names), tuple(average.mean(0).tolist()), tuple(error.tolist()))


def _fisher_probe(
    teacher: nn.Module,
    weights: list[Tensor],
    images: Tensor,
    labels: Tensor | None,
    probes: int,
    rng: torch.Generator,
) -> Tensor:
    """Rows of |J^T u|^2 per layer, u random with E[u u^T] = the loss's Hessian in the outputs."""
    rows = []
    outputs = [o for o in flatten(teacher(images)) if o.requires_grad]
    for index in range(probes):
        cotangents = [_output_noise(output.detach(), rng) for output in outputs]
        gradients = torch.autograd.grad(
            outputs, weights, cotangents, retain_graph=index + 1 < probes, materialize_grads=True
        )
        rows.append(torch.stack([g.double().square().sum() for g in gradients]))
    return torch.stack(rows).cpu() / len(images)


def _output_noise(output: Tensor, rng: torch.Generator) -> Tensor:
    """Noise whose covariance is the Hessian of the loss in this output, independent by sample."""
    if output.dim() != 2:
        return _signs(output.shape, rng).to(output) * (len(output) / output.numel()) ** 0.5
    p = output.softmax(1).cpu()
    drawn = torch.multinomial(p, 1, generator=rng)
    noise = F.one_hot(drawn[:, 0], p.shape[1]) - p
    return (_signs((len(p), 1), rng) * noise).to(output)


def _hessian_probe(
    teacher: nn.Module,
    weights: list[Tensor],
    images: Tensor,
    labels: Tensor | None,
    probes: int,
    rng: torch.Generator,
) -> Tensor:
    """Rows of v^T H v per layer for the mean cross-entropy on the batch."""
    logits = teacher(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise SettingError(
            "importance method 'hessian' is that of the cross-entropy, and the model's output is "
            "not logits (n, classes)",
            "use 'gauss-newton', which takes any output",
        )
    loss = F.cross_entropy(logits, logits.detach().argmax(1) if labels is None else labels)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    rows = []
    for index in range(probes):
        v = [_signs(w.shape, rng).to(w) for w in weights]
        keep = index + 1 < probes
        products = torch.autograd.grad(gradients, weights, v, retain_graph=keep)
        rows.append(torch.stack([(a * b).double().sum() for a, b in zip(v, products, strict=True)]))
    return torch.stack(rows).detach().cpu()


def _signs(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=rng).float() * 2 - 1


def nearest_layers(teacher: nn.Module, group: str) -> dict[str, str]:
    """For each tap of a group, by its name, the last layer of its region that it depends on."""
    order = {node: index for index, node in enumerate(all_nodes(teacher))}
    return {
        module_of(node).name: layer_name(layer)
        for node in order
        if is_tap(node, group) and (layer := _last_layer_before(node, order)) is not None
    }


def _is_layer(node: Node) -> bool:
    return node.op == "call_module" and kind(node) in WEIGHTED


def _last_layer_before(node: Node, order: dict[Node, int]) -> Node | None:
    seen, queue, layers = set(), [node], []
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if _is_layer(current):
            layers.append(current)
        else:
            queue += current.all_input_nodes
    return max(layers, key=order.__getitem__, default=None)
