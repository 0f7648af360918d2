"""Tables of what modules, functions and methods do to numbers: one kind for all forms of an op.

`conv`, `linear` and `matmul` multiply and sum; `batchnorm` and `normalization` scale by
statistics; `relu` and `clip` limit the range, which kernels do while they round; `activation` is
any other function of one number; `average` sums along the axes of one value, `elementwise` is the
arithmetic that is neither `add` nor `mul`; `move` gives back numbers that it read, and zeros.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

_MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    ),
    "linear": (nn.Linear,),
    "batchnorm": (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d),
    ),
    "normalization": (
        *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        *(nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax),
    ),
    "relu": (nn.ReLU,),
    "clip": (nn.ReLU6, nn.Hardtanh),
    "activation": (
        *(nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.SiLU, nn.Mish, nn.GELU),
        *(nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Tanh),
        *(nn.Softplus, nn.Softsign, nn.GLU, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink),
    ),
    "average": (
        *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        *(nn.UpsamplingBilinear2d, nn.Fold),
    ),
    # Numbers of one grid too, but no runtime spreads out integers.
    "elementwise": (
        nn.MaxUnpool1d,
        nn.MaxUnpool2d,
        nn.MaxUnpool3d,
    ),
    "move": (
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
        *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        *(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
        *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Unfold, nn.UpsamplingNearest2d),
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
        *(nn.FeatureAlphaDropout, StochasticDepth),
        *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
        *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
        *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
        *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    ),
}

_FUNCTIONS: dict[str, tuple[object, ...]] = {
    "conv": (
        *(F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    ),
    "linear": (F.linear,),
    "matmul": (
        *(operator.matmul, operator.imatmul, torch.matmul, torch.bmm, torch.mm, torch.einsum),
    ),
    "normalization": (
        *(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm),
        *(F.group_norm, torch.group_norm, F.instance_norm, torch.instance_norm),
        *(F.batch_norm, torch.batch_norm, F.local_response_norm, F.normalize),
        *(F.softmax, torch.softmax, F.softmin, F.log_softmax, torch.log_softmax),
    ),
    "relu": (F.relu, F.relu_, torch.relu, torch.relu_),
    "clip": (
        *(F.relu6, F.hardtanh, F.hardtanh_),
        *(torch.clamp, torch.clip, torch.clamp_min, torch.clamp_max),
    ),
    "activation": (
        *(F.hardswish, F.hardsigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, F.logsigmoid),
        *(F.silu, F.mish, F.gelu, F.elu, F.elu_, F.selu, F.selu_, torch.selu, F.celu),
        *(F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, F.rrelu, F.threshold),
        *(F.tanh, torch.tanh, torch.tanh_, F.softplus, F.softsign, F.glu),
        *(F.hardshrink, F.softshrink, F.tanhshrink),
    ),
    "add": (operator.add, operator.iadd, torch.add),
    "mul": (operator.mul, operator.imul, torch.mul, torch.multiply),
    "elementwise": (
        *(operator.sub, operator.isub, torch.sub, torch.subtract, torch.rsub),
        *(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide),
        *(operator.neg, torch.neg, torch.negative, operator.abs, torch.abs),
        *(operator.pow, torch.pow, torch.square, torch.sqrt, torch.rsqrt, torch.exp),
        *(torch.maximum, torch.minimum, torch.where, torch.masked_fill),
        *(torch.lerp, torch.addcmul, torch.addcdiv),
        *(F.max_unpool1d, F.max_unpool2d, F.max_unpool3d),
    ),
    "concat": (
        *(torch.cat, torch.concat, torch.concatenate, torch.stack),
        *(torch.hstack, torch.vstack, torch.dstack),
    ),
    "average": (
        *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.lp_pool1d, F.lp_pool2d),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        *(torch.mean, torch.sum, torch.cumsum, F.fold, F.upsample_bilinear),
    ),
    "move": (
        *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
        *(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
        *(F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices),
        *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        *(F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices),
        F.adaptive_max_pool3d_with_indices,
        *(F.unfold, F.upsample_nearest),
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout),
        *(F.alpha_dropout, F.feature_alpha_dropout),
        *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.channel_shuffle),
        *(torch.flatten, torch.unflatten, torch.reshape, torch.squeeze, torch.unsqueeze),
        *(torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.t),
        *(torch.movedim, torch.moveaxis, torch.roll, torch.flip, torch.rot90),
        *(torch.chunk, torch.split, torch.tensor_split, torch.unbind, torch.narrow),
        *(torch.select, torch.index_select, torch.gather, torch.take_along_dim),
        *(torch.tile, torch.repeat_interleave, torch.broadcast_to, torch.clone, torch.detach),
        *(torch.amax, torch.amin, torch.diagonal, operator.getitem),
    ),
}

_METHODS: dict[str, tuple[str, ...]] = {
    "matmul": ("matmul", "bmm", "mm"),
    "normalization": ("softmax", "log_softmax"),
    "relu": ("relu", "relu_"),
    "clip": ("clamp", "clip", "clamp_min", "clamp_max", "clamp_", "clip_", "clamp_min_"),
    "activation": ("sigmoid", "tanh", "prelu", "hardshrink", "sigmoid_", "tanh_"),
    "add": ("add", "add_"),
    "mul": ("mul", "multiply", "mul_"),
    "elementwise": (
        *("sub", "subtract", "div", "divide", "true_divide", "neg", "negative", "abs", "pow"),
        *("square", "sqrt", "rsqrt", "exp", "maximum", "minimum", "where", "masked_fill"),
        *("lerp", "addcmul", "addcdiv", "sub_", "div_", "neg_", "abs_", "pow_", "square_"),
    ),
    "average": ("mean", "sum", "cumsum"),
    "move": (
        *("flatten", "unflatten", "view", "view_as", "reshape", "reshape_as", "contiguous"),
        *("permute", "transpose", "swapaxes", "swapdims", "movedim", "squeeze", "unsqueeze", "t"),
        *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select"),
        *("index_select", "gather", "take_along_dim", "amax", "amin", "diagonal", "unfold"),
        *("expand", "expand_as", "repeat", "repeat_interleave", "tile", "broadcast_to"),
        *("roll", "flip", "rot90", "detach", "clone"),
    ),
}

MODULES = {module: kind for kind, modules in _MODULES.items() for module in modules}
FUNCTIONS = {function: kind for kind, functions in _FUNCTIONS.items() for function in functions}
METHODS = {method: kind for kind, methods in _METHODS.items() for method in methods}

# Along an axis these pick numbers and give (values, indices); of two tensors the larger number.
PICKS = frozenset({torch.max, torch.min, "max", "min"})

# Those whose result is never negative, whatever they read.
NON_NEGATIVE = frozenset(
    {
        *(nn.Hardsigmoid, nn.Sigmoid, nn.Softplus, nn.Softmax, nn.Softmax2d, nn.Softmin),
        *(F.hardsigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, F.softplus, F.softmax),
        *(torch.softmax, F.softmin, torch.abs, operator.abs, torch.square, torch.sqrt, torch.exp),
        *("sigmoid", "sigmoid_", "softmax", "abs", "abs_", "square", "square_", "sqrt", "exp"),
    }
)
