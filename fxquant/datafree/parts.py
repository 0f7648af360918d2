"""A batch that the teacher saw, in parts that the student is compared on one after the other.

What the student must keep in memory to be differentiated is then that of a part. Its gradients wait
at the teacher's tensors until all are there, and go on through the teacher at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from fxquant.datafree.objective import View
from fxquant.errors import SettingError


def split(view: View, count: int) -> list[View]:
    """The batch in `count` parts, or as many as it has images, cut off from the teacher.

    Raises SettingError for a feature or an output that has no place for each image.
    """
    sizes = [len(part) for part in view.images.tensor_split(count) if len(part)]
    images = _cut("images", view.images, sizes)
    features = {name: _cut(name, x, sizes) for name, x in view.teacher_features.items()}
    outputs = [_cut("the output", x, sizes) for x in view.teacher_outputs]
    starts = accumulate(sizes[:-1], initial=view.first)
    return [
        replace(
            view,
            images=images[i],
            bn_inputs={},
            attended=(),
            teacher_features={name: parts[i] for name, parts in features.items()},
            teacher_outputs=tuple(parts[i] for parts in outputs),
            first=start,
            whole=view,
        )
        for i, start in enumerate(starts)
    ]


def _cut(name: str, x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Parts for so many images each, which want a gradient of their own where `x` wants one."""
    if len(sizes) == 1:
        parts: Sequence[Tensor] = [x.detach()]
    else:
        each, rest = divmod(len(x), sum(sizes)) if x.dim() else (0, 1)
        if rest:
            raise _not_by_image(name, f"{tuple(x.shape)} for {sum(sizes)} images")
        parts = x.detach().split([each * size for size in sizes])
    return [part.requires_grad_(x.requires_grad) for part in parts]


def check(part: View) -> None:
    """Raise SettingError where the student's tensors are not of the images that the teacher's are.

    As of one that has time or tokens in its first dimension, whose parts are others.
    """
    pairs = [(n, x, part.student_features[n]) for n, x in part.teacher_features.items()]
    outputs = zip(part.teacher_outputs, part.student_outputs, strict=True)
    pairs += [("the output", *pair) for pair in outputs]
    for name, teacher, student in pairs:
        if teacher.shape != student.shape:
            raise _not_by_image(
                name, f"{tuple(student.shape)} for a part that should have {tuple(teacher.shape)}"
            )


def _not_by_image(name: str, found: str) -> SettingError:
    return SettingError(
        f"schedule.parts: {name} does not hold one image after the other in its first dimension, "
        f"so that a batch can't be taken in parts (it is {found})",
        "schedule.parts = 1",
    )


def pull(view: View, parts: Sequence[View], own: Tensor | None) -> None:
    """Backward through the teacher: from a loss of its `own`, and from what waits at the parts."""
    roots, gradients = ([], []) if own is None else ([own], [None])
    for x, *pieces in zip(*map(_differentiable, (view, *parts)), strict=True):
        found = [piece.grad for piece in pieces if piece.grad is not None]
        for piece in pieces:
            piece.grad = None  # not to hold it twice
        if found:
            roots.append(x)
            gradients.append(found[0] if len(found) == 1 else torch.cat(found))
    if roots:
        torch.autograd.backward(roots, gradients)


def _differentiable(view: View) -> list[Tensor]:
    tensors = (view.images, *view.teacher_features.values(), *view.teacher_outputs)
    return [x for x in tensors if x.requires_grad]
