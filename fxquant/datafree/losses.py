"""Losses of data-free quantization: tensors in, a scalar out, the formula above each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6
# Similarities are between so many patches of an image at most; their density is taken at so many
# points from -1 to 1, as a sum of normal curves of this deviation, the distance of the points.
MOST_PATCHES, DENSITY_POINTS, BANDWIDTH = 36, 41, 0.05

# Averages a value over the parts of a batch; None where all of it is here.
Average = Callable[[Tensor], Tensor]


class _ScaleSampleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied, sample by sample, by given weights."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (weights,) = ctx.saved_tensors
        return grad * weights.to(grad.dtype).reshape([-1] + [1] * (grad.dim() - 1)), None


def scale_sample_gradient(x: Tensor, weights: Tensor) -> Tensor:
    """`x`, whose gradient with respect to sample b, x[b], is multiplied by weights[b]."""
    return _ScaleSampleGradient.apply(x, weights)


class _Moments(torch.autograd.Function):
    """Mean and variance over some axes, whose gradient in `x` is one pass over memory."""

    @staticmethod
    def forward(ctx, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        if x.device.type == "cpu":  # on which torch.var_mean takes 15 times as long
            mean = x.mean(axes, keepdim=True)
            variance = (x - mean).square_().mean(axes)
        else:
            variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
            variance = variance.reshape([n for i, n in enumerate(x.shape) if i not in axes])
        ctx.save_for_backward(x, mean)
        return mean.reshape(variance.shape), variance

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor):
        x, mean = ctx.saved_tensors
        count = x.numel() // max(mean.numel(), 1)
        slope = grad_variance.reshape(mean.shape) * (2 / count)
        offset = grad_mean.reshape(mean.shape) / count - slope * mean
        return torch.addcmul(offset, x, slope), None


def sample_weights(importance: Tensor, layer: int, batch: int, first: int = 0) -> Tensor:
    """Row of X1 for one layer, shape (batch,): sample b weighs it 1 + h_layer [layer = b mod N].

    The samples are those from `first` on.

    X1 = diag(h) + 1 1^T (Li et al., 2022, eq. 10), where "the i-th element acts on the update of
    the i-th sample": sample b is updated by element j = b mod N of the row L X1, and
    (L X1)_j = h_j L_j + sum_i L_i.
    """
    samples = torch.arange(first, first + batch, device=importance.device)
    chosen = samples % len(importance) == layer
    return 1 + importance[layer] * chosen


def channel_statistics(
    x: Tensor, *, per_sample: bool = False, across: Average | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in float32.

    `x` is (batch, channels, ...). The result has shape (channels,), over batch and positions, or
    (batch, channels), over positions alone, with `per_sample`. `across` averages over parts of the
    batch that are elsewhere.
    """
    x = x.float()
    axes = [i for i in range(x.dim()) if i != 1 and (i != 0 or not per_sample)]
    if not axes:
        raise ValueError("statistics per sample need at least one position axis")
    mean, variance = _Moments.apply(x, axes)
    if across is not None and not per_sample:
        own, mean = mean, across(mean)
        # The mean's own gradient through this vanishes: deviations from it add up to zero.
        variance = across(variance + (own - mean.detach()).square())
    return mean, (variance + EPS).sqrt()


def statistics_distance(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    per_sample: bool = False,
    across: Average | None = None,
) -> Tensor:
    """Distance of the statistics of `x`, (batch, channels, ...), from those of a batch norm.

    L_i = |mu~ - mu|^2 + |sigma~ - sigma|^2 (Li et al., 2022, eq. 8), averaged over channels so
    that width doesn't set its weight, and over samples where statistics are per sample.
    """
    found_mean, found_std = channel_statistics(x, per_sample=per_sample, across=across)
    distance = ((found_mean - mean).square() + (found_std - std).square()).mean()
    return across(distance) if across is not None and per_sample else distance


class _MeanAbsDifference(torch.autograd.Function):
    """mean |x - y|, whose gradient lies in memory as x does; of both it keeps the sign alone.

    That of `(x - y).abs().mean()` lies as a mean's gradient does, and whatever meets it on its way
    back through a network in another layout is many times slower for it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        difference = x - y
        mean = difference.abs().mean()
        ctx.save_for_backward(difference.sgn_().to(torch.int8))
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (sign,) = ctx.saved_tensors
        found = sign.to(grad.dtype).mul_(grad / sign.numel())
        x_wants, y_wants = ctx.needs_input_grad
        return found if x_wants else None, -found if y_wants else None


class _MeanSquare(torch.autograd.Function):
    """mean x^2, whose gradient lies in memory as x does."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 * grad / x.numel())


def mean_abs(x: Tensor) -> Tensor:
    """mean |x| in float32, without gradient."""
    return x.detach().float().abs().mean()


def mean_square(x: Tensor) -> Tensor:
    """mean x^2 in float32, without gradient."""
    return x.detach().float().square().mean()


def relative_l1(
    student: Tensor, teacher: Tensor, size: Tensor | None = None, *, across: Average | None = None
) -> Tensor:
    """mean |P - Q| / mean |P| for features P of the teacher and Q of the student.

    Eq. 12 of Li et al., 2022, divided by the teacher's size so that no layer rules by its scale.
    `size` is that of the batch, mean |P|, where these are a part of it.
    """
    difference = _MeanAbsDifference.apply(teacher.float(), student.float())
    return _ratio(difference, mean_abs(teacher) if size is None else size, across)


def relative_mse(
    student: Tensor, teacher: Tensor, size: Tensor | None = None, *, across: Average | None = None
) -> Tensor:
    """mean (P - Q)^2 / mean P^2: the inverse of the signal-to-quantization-noise ratio.

    `size` is that of the batch, mean P^2, where these are a part of it.
    """
    difference = _MeanSquare.apply(teacher.float() - student.float())
    return _ratio(difference, mean_square(teacher) if size is None else size, across)


def _ratio(difference: Tensor, size: Tensor, across: Average | None) -> Tensor:
    """Their ratio, once both are averaged over the parts of a batch."""
    if across is not None:
        difference, size = across(torch.stack([difference, size]))
    return difference / (size + EPS)


def output_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(P / T) || softmax(Q / T)), mean over the batch, of logits (batch, classes)."""
    target = F.log_softmax(teacher.float() / temperature, -1)
    found = F.log_softmax(student.float() / temperature, -1)
    divergence = F.kl_div(found, target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def weigh_layers(losses: Sequence[Tensor], importance: Tensor | None) -> Tensor:
    """L X2 = sum_i (1 + h_i) L_i (Li et al., 2022, eq. 14 and 15); sum_i L_i without h."""
    stacked = torch.stack(list(losses))
    return stacked.sum() if importance is None else (stacked * (1 + importance)).sum()


def patch_entropy(patches: Tensor) -> Tensor:
    """Entropy of the similarities between an image's patches, mean over images, in nats.

    `patches` is (images, patches, features). To a network the patches of noise are all alike, those
    of pictures are not: their cosine similarities have a density f, of entropy -int f log f (Li et
    al., Patch Similarity Aware Data-Free Quantization for Vision Transformers, 2022, eq. 5 to 7),
    here that of a histogram with soft edges.
    """
    patches = F.normalize(patches.float(), dim=-1)
    similarity = patches @ patches.transpose(1, 2)
    first, second = torch.triu_indices(*similarity.shape[1:], 1, device=patches.device)
    places = torch.linspace(-1, 1, DENSITY_POINTS, device=patches.device)
    distances = (similarity[:, first, second, None] - places) / BANDWIDTH
    density = torch.exp(-0.5 * distances.square()).mean(1)
    density = density / density.sum(1, keepdim=True).clamp(min=EPS)
    return -(density * (density + EPS).log()).sum(1).mean()


def attention_patches(x: Tensor, images: int) -> Tensor:
    """What attention gives, as patches of each image: (images, patches, channels).

    `x` is (images * windows, heads, tokens, channels), over whose heads the mean is taken, or
    (images * heads, tokens, channels). At most MOST_PATCHES are kept, evenly spread.
    """
    x = x.mean(1) if x.dim() == 4 else x
    x = x.reshape(images, -1, x.shape[-1])
    return x[:, :: -(-x.shape[1] // MOST_PATCHES)]


def feature_patches(x: Tensor) -> Tensor:
    """Features (images, channels, height, width) or (images, tokens, channels) as patches."""
    if x.dim() == 3:
        return x[:, :: -(-x.shape[1] // MOST_PATCHES)]
    sides = [min(round(MOST_PATCHES**0.5), side) for side in x.shape[2:4]]
    return F.adaptive_avg_pool2d(x.flatten(3).mean(3) if x.dim() > 4 else x, sides).flatten(2).mT


def class_spread(logits: Tensor, *, across: Average | None = None) -> Tensor:
    """mean_b H(p_b) - H(mean_b p_b) in nats, of p = softmax(logits), (batch, classes).

    Least where the teacher is sure of each image and sees all classes equally often; minus the
    mutual information between image and class. `across` averages over parts of the batch.
    """
    log_p = F.log_softmax(logits.float(), 1)
    each = -(log_p.exp() * log_p).sum(1).mean()
    mean = log_p.exp().mean(0)
    if across is not None:
        each, mean = across(each), across(mean)
    return each + (mean * (mean + EPS).log()).sum()
