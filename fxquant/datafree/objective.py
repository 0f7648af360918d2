"""What a recipe's terms come to on one batch that teacher and student have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from fxquant.datafree import losses, processes
from fxquant.datafree.importance import Importance, nearest_layers
from fxquant.datafree.pixel_scale import STANDARD, PixelScale
from fxquant.datafree.recipe import Term
from fxquant.graph.insert_taps import ATTENTION_TAPS, BN_TAPS, FEATURE_TAPS, record, tap_names
from fxquant.inputs import flatten


@dataclass(frozen=True)
class View:
    """What images showed: values at the taps, and outputs; the student's once it has seen them.

    The images are a batch or part of a `whole` one; `first` is the number of the first of them
    among those of all processes.
    """

    images: Tensor
    bn_inputs: dict[str, Tensor]
    teacher_features: dict[str, Tensor]
    teacher_outputs: tuple[Tensor, ...]
    student_features: dict[str, Tensor] = field(default_factory=dict)
    student_outputs: tuple[Tensor, ...] = ()
    attended: tuple[Tensor, ...] = ()
    first: int = 0
    whole: View | None = None
    _sizes: dict[tuple, Tensor] = field(default_factory=dict, repr=False)

    def feature_size(self, name: str, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """How large a feature of the teacher is in the whole batch; measured once."""
        if self.whole is not None:
            return self.whole.feature_size(name, measure)
        if (name, measure) not in self._sizes:
            self._sizes[name, measure] = measure(self.teacher_features[name])
        return self._sizes[name, measure]

    def output_size(self, index: int) -> Tensor:
        """The mean square of an output of the teacher over the whole batch."""
        return losses.mean_square((self.whole or self).teacher_outputs[index])


class Objective:
    """Evaluates terms for one pair of teacher and student.

    Layer importance counts as absent until `set_importance`. `scale` is that of the images.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, scale: PixelScale = STANDARD):
        self.teacher, self.student, self.scale = teacher, student, scale
        self.targets = _bn_targets(teacher)
        self.names = {group: tap_names(teacher, group) for group in (BN_TAPS, FEATURE_TAPS)}
        self.importance: dict[str, Tensor] = {}

    def set_importance(self, importance: Importance, normalize: str) -> None:
        """Give each tap the importance of the layer before it, 0 where there is none."""
        h = importance.normalized(normalize)
        device = next(self.teacher.parameters()).device
        for group in (BN_TAPS, FEATURE_TAPS):
            nearest = nearest_layers(self.teacher, group)
            values = [h.get(nearest.get(name, ""), 0.0) for name in self.names[group]]
            self.importance[group] = torch.tensor(values, dtype=torch.float32, device=device)

    def view(self, images: Tensor, *, teacher_grad: bool) -> View:
        """Run the teacher and keep what the taps see."""
        with (
            torch.set_grad_enabled(teacher_grad),
            record(self.teacher, BN_TAPS) as bn_inputs,
            record(self.teacher, FEATURE_TAPS) as teacher_features,
            record(self.teacher, ATTENTION_TAPS) as attended,
        ):
            outputs = flatten(self.teacher(images))
        return View(
            images,
            self._in_order(BN_TAPS, bn_inputs),
            self._in_order(FEATURE_TAPS, teacher_features),
            outputs,
            attended=tuple(attended.values()),
            first=processes.rank() * len(images),
        )

    def compare(self, view: View) -> View:
        """Run the student as well, on what the teacher has seen."""
        with record(self.student, FEATURE_TAPS) as features:
            outputs = flatten(self.student(view.images))
        features = self._in_order(FEATURE_TAPS, features)
        return replace(view, student_features=features, student_outputs=outputs)

    def _in_order(self, group: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values in the order of the group's importance: regions may be called in another one."""
        return {name: values[name] for name in self.names[group] if name in values}

    def losses(self, terms: Iterable[Term], view: View) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each term, by the name of its loss."""
        return {term.loss: (term.weight, LOSSES[term.loss](self, term, view)) for term in terms}

    def error_of_zeros(self, term: Term) -> float:
        """What a `features` term comes to for a student whose features are all zero."""
        h = self.importance.get(FEATURE_TAPS)
        count = len(self.names[FEATURE_TAPS])
        return count + float(h.sum()) if h is not None and term.weighting == "layer" else count

    def sum_layers(
        self,
        term: Term,
        group: str,
        values: list[tuple[Tensor, ...]],
        distance: Callable[..., Tensor],
        view: View,
    ) -> Tensor:
        """Sum a distance over the taps of a group under the term's weighting.

        With X1 the value is the plain sum; its gradient is what acts on each sample of the view.
        """
        h = self.importance.get(group)
        if h is None or term.weighting == "none":
            return losses.weigh_layers([distance(*v) for v in values], None)
        if term.weighting == "layer":
            return losses.weigh_layers([distance(*v) for v in values], h)
        scaled = [
            tuple(_weigh_samples(x, h, i, view) if x.requires_grad else x for x in tensors)
            for i, tensors in enumerate(values)
        ]
        return losses.weigh_layers([distance(*v) for v in scaled], None)


def _weigh_samples(x: Tensor, h: Tensor, layer: int, view: View) -> Tensor:
    """`x`, of all images of a view, with gradients weighed by X1's row for the layer."""
    first = view.first * len(x) // len(view.images)
    weights = losses.sample_weights(h, layer, len(x), first)
    return losses.scale_sample_gradient(x, weights)


def _bn_statistics(objective: Objective, term: Term, view: View) -> Tensor:
    distance = partial(losses.statistics_distance, per_sample=term.per_sample, across=_across())
    values = [(x, *objective.targets[name]) for name, x in view.bn_inputs.items()]
    return objective.sum_layers(term, BN_TAPS, values, distance, view)


def _input_statistics(objective: Objective, term: Term, view: View) -> Tensor:
    images = objective.scale.to_standard(view.images)
    zero = images.new_zeros(images.shape[1])
    return losses.statistics_distance(
        images, zero, zero + 1, per_sample=term.per_sample, across=_across()
    )


def _patch_similarity(objective: Objective, term: Term, view: View) -> Tensor:
    """Minus the entropy of similarities, mean over attentions; over features where are none."""
    count = len(view.images)
    patches = [losses.attention_patches(x, count) for x in view.attended]
    features = [x for x in view.teacher_features.values() if x.dim() > 2]
    patches = patches or [losses.feature_patches(x) for x in features]
    found = [losses.patch_entropy(x) for x in patches]
    return -processes.average_loss(torch.stack(found).mean())


def _classes(objective: Objective, term: Term, view: View) -> Tensor:
    """Of logits (n, classes), mean over such outputs; 0 where there are none."""
    logits = [output for output in view.teacher_outputs if output.dim() == 2]
    found = [losses.class_spread(x, across=_across()) for x in logits if x.shape[1] > 1]
    return torch.stack(found).mean() if found else view.images.sum() * 0


def _features(objective: Objective, term: Term, view: View) -> Tensor:
    distance, size = DISTANCES[term.distance]
    values = [
        (view.student_features[name], teacher, view.feature_size(name, size))
        for name, teacher in view.teacher_features.items()
    ]
    distance = partial(distance, across=_across())
    return objective.sum_layers(term, FEATURE_TAPS, values, distance, view)


def _output(objective: Objective, term: Term, view: View) -> Tensor:
    """Divergence of logits (n, classes); relative squared error of any other output."""
    pairs = zip(view.student_outputs, view.teacher_outputs, strict=True)
    return torch.stack(
        [
            processes.average_loss(losses.output_divergence(q, p, temperature=term.temperature))
            if p.dim() == 2
            else losses.relative_mse(q, p, view.output_size(index), across=_across())
            for index, (q, p) in enumerate(pairs)
        ]
    ).sum()


def _across() -> losses.Average | None:
    """How losses are averaged over processes; None where there is one."""
    return processes.average_loss if processes.size() > 1 else None


DISTANCES = {
    "l1": (losses.relative_l1, losses.mean_abs),
    "mse": (losses.relative_mse, losses.mean_square),
}
LOSSES: dict[str, Callable[[Objective, Term, View], Tensor]] = {
    "bn_statistics": _bn_statistics,
    "input_statistics": _input_statistics,
    "patch_similarity": _patch_similarity,
    "classes": _classes,
    "features": _features,
    "output": _output,
}


def _bn_targets(teacher: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Running mean and standard deviation of each tapped batch norm, float32, by tap name."""
    targets = {}
    for name in tap_names(teacher, BN_TAPS):
        bn = teacher.get_submodule(name)
        std = (bn.running_var.float() + losses.EPS).sqrt()
        targets[name] = (bn.running_mean.float(), std)
    return targets


@torch.no_grad()
def output_distances(
    teacher: nn.Module, student: nn.Module, images: Tensor, batch: int
) -> tuple[float, float]:
    """How far the student's outputs are on images (n, ...), `batch` at once: error, divergence.

    The error is the relative squared one, the divergence KL(teacher || student) in nats where
    outputs are logits (n, classes) and the error of any other; both mean over the images. A
    divergence that rounding leaves below zero is zero.
    """
    totals = torch.zeros(2, dtype=torch.float64)
    for part in images.split(batch):
        for q, p in zip(flatten(student(part)), flatten(teacher(part)), strict=True):
            error = losses.relative_mse(q, p)
            logits = p.dim() == 2 and p.shape[1] > 1
            divergence = losses.output_divergence(q, p, temperature=1.0) if logits else error
            totals += len(part) * torch.tensor([float(error), float(divergence)]).double()
    error, divergence = (totals / len(images)).clamp(min=0).tolist()
    return error, divergence
