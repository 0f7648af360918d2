"""One small network for each way in which networks write the same thing.

`CONSTRUCTS[name]` says how to build it, what it takes, and what is to come of it. Each is built in
eval mode, the same at each call, its batch norms as training would leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs.activations import activated, changed_in_place, hard_swish, view_changed_in_place
from constructs.ends import Outputs, TwoInputs, UnknownTuple
from constructs.layers import (
    Functional,
    Sequences,
    StandardConv,
    Transposed,
    baked,
    dropped,
    dynamic,
    shared,
)
from constructs.moves import Blur, moves, pads, picked, resized, unpooled
from constructs.net import Net, conv
from constructs.norms import (
    FunctionalNorm,
    NormAct,
    Norms1d,
    Norms3d,
    TokenNorm,
    TorchNorm,
    after_conv,
    block_called_twice,
    dense_block,
    frozen,
    norm_of_concat,
    read_twice,
    transposed_norms,
)
from constructs.products import (
    Attention,
    Einsums,
    Products,
    Transformer,
    arithmetic,
    gates,
    normalised,
)

IMAGE = (3, 16, 16)


@dataclass(frozen=True)
class Construct:
    """A network, what it takes, and what is to come of it.

    `layers` are quantized; of `convolutions` and `linears` in the file, counted with the products
    of two values, all but `float_kernels` run in integer kernels. `folded` batch norms; `reasons`
    are parts of reasons why something stays in floating point.
    """

    build: Callable[[], nn.Module]
    layers: int
    convolutions: int = 0
    linears: int = 0
    float_kernels: int = 0
    folded: int = 0
    reasons: tuple[str, ...] = ()
    shape: tuple = IMAGE


def _built(build: Callable[[], nn.Module], shape: tuple) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(build(), shape)


@torch.no_grad()
def settle(model: nn.Module, shape: tuple) -> nn.Module:
    """Random affine parameters and the statistics of noise for every batch norm of `model`."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None if norm.track_running_stats else 0.1
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    model.train()(*noise(shape, 64))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def noise(shape: tuple, count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (shape,) if isinstance(shape[0], int) else shape
    return tuple(torch.randn(count, *each, generator=generator) + 0.2 for each in shapes)


def build(name: str) -> nn.Module:
    """The network of this name in eval mode, the same at each call."""
    return _built(CONSTRUCTS[name].build, CONSTRUCTS[name].shape)


ACTIVATION = "an activation that integer kernels"
ARITHMETIC = "arithmetic that integer kernels"
DIVIDES = "it divides by what it computes"
NO_LAYER = "its input is not a convolution or linear layer"
TRANSPOSED = "its weights and its input are quantized"

CONSTRUCTS: dict[str, Construct] = {
    # Batch norms.
    "norms_1d": Construct(Norms1d, 3, 1, 2, folded=2, shape=(3, 32)),
    "norms_3d": Construct(Norms3d, 3, 2, 1, folded=2, shape=(3, 4, 12, 12)),
    "sync_norm": Construct(after_conv(lambda: nn.SyncBatchNorm(8)), 3, 2, 1, folded=1),
    "frozen_norm": Construct(after_conv(frozen), 3, 2, 1, folded=1),
    "functional_norm": Construct(after_conv(lambda: FunctionalNorm(8)), 3, 2, 1, folded=1),
    "torch_norm": Construct(after_conv(lambda: TorchNorm(8, nn.ReLU())), 3, 2, 1, folded=1),
    "norm_act": Construct(after_conv(lambda: NormAct(8)), 3, 2, 1, folded=1),
    "own_statistics": Construct(
        after_conv(lambda: nn.BatchNorm2d(8, track_running_stats=False)),
        *(3, 2, 1),
        reasons=("it keeps no running statistics",),
    ),
    "token_norm": Construct(TokenNorm, 2, 0, 2, reasons=("it takes the second axis",)),
    "transposed_norms": Construct(
        transposed_norms, 6, 5, 1, float_kernels=3, folded=3, reasons=(TRANSPOSED,)
    ),
    "dense_block": Construct(dense_block, 4, 3, 1, reasons=(NO_LAYER,)),
    "norm_of_concat": Construct(norm_of_concat, 4, 3, 1, reasons=(NO_LAYER,)),
    "read_twice": Construct(
        read_twice, 3, 2, 1, reasons=(ACTIVATION, "the output of conv is also used elsewhere")
    ),
    "block_called_twice": Construct(block_called_twice, 4, 3, 1, folded=2),
    # Activations.
    "relu_forms": Construct(
        activated(nn.ReLU, F.relu, torch.relu, lambda x: x.relu(), nn.ReLU6, F.relu6), 8, 7, 1
    ),
    "clip_forms": Construct(
        activated(
            *(lambda x: x.clamp(0, 6), lambda x: torch.clamp(x, min=0), F.hardtanh, nn.Hardtanh),
            lambda x: x.clamp_min(-1),
        ),
        *(7, 6, 1),
    ),
    "smooth": Construct(
        activated(
            *(nn.SiLU, F.gelu, nn.Mish, torch.sigmoid, nn.Tanh, F.softplus, nn.Hardswish),
            *(F.hardsigmoid, hard_swish),
        ),
        *(11, 10, 1),
        reasons=(ACTIVATION, ARITHMETIC),
    ),
    "leaky": Construct(
        activated(nn.LeakyReLU, nn.PReLU, nn.ELU, F.selu, lambda x: F.glu(x.repeat(1, 2, 1, 1), 1)),
        *(7, 6, 1),
        reasons=(ACTIVATION,),
    ),
    "changed_in_place": Construct(changed_in_place, 5, 4, 1, reasons=(ACTIVATION,)),
    "view_changed_in_place": Construct(view_changed_in_place, 5, 4, 1),
    # Arithmetic and products.
    "gates": Construct(gates, 7, 5, 2, reasons=(ACTIVATION,)),
    "arithmetic": Construct(arithmetic, 5, 4, 1, reasons=(ARITHMETIC,)),
    "products": Construct(Products, 5, 0, 9, reasons=(ACTIVATION, ARITHMETIC, DIVIDES)),
    "einsums": Construct(Einsums, 3, 0, 5, reasons=(DIVIDES,)),
    "attention": Construct(Attention, 8, 0, 12, reasons=(DIVIDES,)),
    "attention_batch_first": Construct(
        lambda: Attention(batch_first=True, bias=False), 8, 0, 12, reasons=(DIVIDES,)
    ),
    "attention_extra_key": Construct(
        lambda: Attention(add_bias_kv=True),
        *(4, 0, 10),
        float_kernels=4,
        reasons=(DIVIDES, "attention that adds a key and value of its own"),
    ),
    "transformer": Construct(Transformer, 24, 0, 32, reasons=(ACTIVATION, DIVIDES)),
    "normalised": Construct(normalised, 6, 5, 1, reasons=(DIVIDES,)),
    # Ops that move numbers, and sums of one value's numbers.
    "moves": Construct(moves, 6, 5, 1),
    "pads": Construct(pads, 6, 5, 1),
    "resized": Construct(resized, 6, 5, 1),
    "unpooled": Construct(unpooled, 5, 4, 1, reasons=(ARITHMETIC,)),
    "picked": Construct(picked, 4, 3, 1, reasons=(ACTIVATION,)),
    "blur": Construct(
        lambda: Net(lambda m, x: m.conv(m.blur(x)), blur=Blur(), conv=conv()), 4, 3, 1
    ),
    # Layers.
    "transposed": Construct(Transposed, 5, 5, 0, float_kernels=4, reasons=(TRANSPOSED,)),
    "sequences": Construct(Sequences, 5, 2, 3, reasons=(ACTIVATION,)),
    "functional": Construct(Functional, 4, 2, 2, float_kernels=1, folded=1, reasons=(TRANSPOSED,)),
    "baked": Construct(baked, 5, 4, 1),
    "standardised": Construct(
        lambda: Net(lambda m, x: F.relu(m.conv(x)), conv=StandardConv()), 3, 2, 1
    ),
    "dynamic": Construct(
        dynamic, 4, 3, 2, float_kernels=1, reasons=(NO_LAYER, "its weight is computed while")
    ),
    "shared": Construct(shared, 6, 5, 1, float_kernels=1, reasons=(TRANSPOSED,)),
    "dropped": Construct(dropped, 4, 3, 1, folded=1),
    # Inputs and outputs.
    "two_inputs": Construct(TwoInputs, 4, 2, 2, shape=(IMAGE, (5,))),
    "outputs": Construct(Outputs, 3, 2, 1),
    "unknown_tuple": Construct(UnknownTuple, 3, 1, 2, reasons=("a recurrent layer",)),
}
