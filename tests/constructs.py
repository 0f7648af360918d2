"""One small network for each way in which networks write the same thing.

`CONSTRUCTS[name]` says how to build it, what it takes, and what is to come of it. Each is built in
eval mode, the same at each call, its batch norms as training would leave them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

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


class Net(nn.Module):
    """A network made of a body and its forward, with a stem before and a linear layer after."""

    def __init__(self, forward: Callable, width: int = 8, head: int = 8, **parts: nn.Module):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        for name, part in parts.items():
            setattr(self, name, part)
        self.body, self.head = forward, nn.Linear(head, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, F.relu(self.stem(x))).mean((2, 3)))


def conv(inputs: int = 8, outputs: int = 8, kernel: int = 3, **settings) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


# Batch norms.


class Norms1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.linear, self.flat = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.relu(self.flat(self.linear(x.mean(2)))))


class Norms3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8)
        self.conv2, self.norm2 = nn.Conv3d(8, 8, (1, 3, 3)), nn.BatchNorm3d(8, affine=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm1(self.conv1(x))), 2)
        return self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3, 4)))


class TokenNorm(nn.Module):
    """A batch norm whose channels are the tokens: it can't go into the layer before it."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(16, 8), nn.BatchNorm1d(48), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.flatten(1, 2)))
        return self.head(F.relu(x)).mean(1)


class FunctionalNorm(nn.Module):
    """Its own batch norm: parameters and buffers of one module, `F.batch_norm` in its forward."""

    def __init__(self, channels: int, act: nn.Module | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels) * 0.3)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        statistics = (self.running_mean, self.running_var)
        x = F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, 1e-3)
        return self.act(x)


class TorchNorm(FunctionalNorm):
    """The same by `torch.batch_norm`, whose arguments come in another order."""

    def forward(self, x: Tensor) -> Tensor:
        own = (self.weight, self.bias, self.running_mean, self.running_var)
        return self.act(torch.batch_norm(x, *own, self.training, 0.1, 1e-3, False))


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a batch norm with a forward of its own, which ends in a ReLU."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        training = self.training or (self.running_mean is None and self.running_var is None)
        statistics = (self.running_mean, self.running_var)
        x = F.batch_norm(x, *statistics, self.weight, self.bias, training, 0.1, self.eps)
        return self.act(self.drop(x))


def frozen() -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(8)
    norm.weight.uniform_(0.5, 1.5), norm.bias.normal_(), norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def after_conv(norm: Callable[[], nn.Module], **settings) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: F.relu(m.norm(m.conv(x))), conv=conv(bias=False), norm=norm(), **settings
    )


def transposed_norms() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.norm1(m.up1(x)))
        x = F.relu(m.norm2(m.up2(x)))
        return m.conv(F.relu(m.norm3(m.up3(x))))

    return Net(
        forward,
        up1=nn.ConvTranspose2d(8, 6, 2, stride=2),
        norm1=nn.BatchNorm2d(6),
        up2=nn.ConvTranspose2d(6, 12, 3, padding=1, groups=3, bias=False),
        norm2=nn.BatchNorm2d(12),
        up3=nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1, groups=12),
        norm3=nn.BatchNorm2d(12),
        conv=conv(12, 8),
    )


def dense_block() -> nn.Module:
    def forward(m, x):
        for norm, layer in zip(m.norms, m.convs, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return F.relu(m.last(x))

    return Net(
        forward,
        head=16,
        norms=nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12)]),
        convs=nn.ModuleList([conv(8, 4), conv(12, 4)]),
        last=nn.BatchNorm2d(16),
    )


def read_twice() -> nn.Module:
    def forward(m, x):
        y = m.conv(x)
        return F.relu(m.norm(y)) + torch.sigmoid(y)

    return Net(forward, conv=conv(), norm=nn.BatchNorm2d(8))


def block_called_twice() -> nn.Module:
    """A block of layer and batch norm called twice: both calls agree, so it folds."""

    def forward(m, x):
        for _ in range(2):
            x = F.relu(m.norm(m.conv(x)))
        return x

    return Net(forward, conv=conv(bias=False), norm=nn.BatchNorm2d(8))


def norm_of_concat() -> nn.Module:
    return Net(
        lambda m, x: F.relu(m.norm(torch.cat([m.left(x), m.right(x)], 1))),
        head=16,
        left=conv(),
        right=conv(kernel=1),
        norm=nn.BatchNorm2d(16),
    )


# Activations.


def activated(*functions: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Convolutions with an activation after each."""

    def forward(m, x):
        for layer, function in zip(m.convs, m.functions, strict=True):
            x = function(layer(x))
        return x

    def build() -> nn.Module:
        net = Net(forward, convs=nn.ModuleList([conv() for _ in functions]))
        made = [f() if isinstance(f, type) else f for f in functions]
        for index, function in enumerate(made):
            if isinstance(function, nn.Module):
                net.add_module(f"act{index}", function)
        net.functions = made
        return net

    return build


def hard_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


def changed_in_place() -> nn.Module:
    """Values that are changed after they were read: what reads them later must see that."""

    def forward(m, x):
        y = m.conv1(x)
        y.relu_()
        z = m.conv2(y)
        z += y
        z.clamp_(0, 4)
        y *= 0.5
        return F.silu(m.conv3(z), inplace=True).add_(y)

    return Net(forward, conv1=conv(), conv2=conv(), conv3=conv())


def view_changed_in_place() -> nn.Module:
    """A change through a view, which the whole shows later, and an assignment to a part."""

    def forward(m, x):
        y = m.conv1(x)
        y[:, :4].relu_()
        y = m.conv2(y)
        y[:, 2:6] = y[:, 4:8] * 2
        return m.conv3(y)

    return Net(forward, conv1=conv(), conv2=conv(), conv3=conv())


# Arithmetic and products.


def gates() -> nn.Module:
    def forward(m, x):
        y = m.conv(x)
        gate = F.hardsigmoid(m.excite(F.relu(m.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = F.hardswish(y * gate)
        second = m.linear(y.mean((2, 3))).sigmoid().view(-1, 8, 1, 1)
        return m.last(y * second.expand_as(y))

    parts = {"conv": conv(), "squeeze": conv(8, 4, 1), "excite": conv(4, 8, 1), "last": conv()}
    return Net(forward, linear=nn.Linear(8, 8), **parts)


def arithmetic() -> nn.Module:
    def forward(m, x):
        y = (m.conv1(x) - x) / 2
        z = -m.conv2(y.abs()) * 0.5
        w = torch.maximum(torch.addcmul(y, z, x), torch.minimum(z, x))
        w = torch.where(w > 0, w, 0.1 * w) + torch.div(y.square().sqrt(), 3)
        return m.conv3(1 - w + torch.sub(w, y, alpha=2))

    return Net(forward, conv1=conv(), conv2=conv(), conv3=conv())


class Products(nn.Module):
    """Attention by hand in three spellings, between linear layers on sequences."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv = nn.Linear(16, 12), nn.Linear(12, 36)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.mix, self.head = nn.Linear(12, 12), nn.Linear(12, 10)
        self.matrix = nn.Parameter(torch.randn(12, 12) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 12)).unbind(2)
        x = x + (q @ k.transpose(-2, -1) * 12**-0.5).softmax(-1) @ v
        x = x + torch.bmm(F.softmax(torch.einsum("nic,njc->nij", k, q) / 3, -1), v)
        x = x + torch.matmul(F.gelu(self.mix(self.norm2(x))), self.matrix)
        return self.head(x).mean(1)


class Attention(nn.Module):
    """torch's own attention as a module, and as a function with a learned bias on its scores."""

    def __init__(self, **settings):
        super().__init__()
        self.embed, self.norm = nn.Linear(16, 12), nn.LayerNorm(12)
        self.first = nn.MultiheadAttention(12, 3, **settings)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(95, 3))
        place = torch.arange(48)
        self.register_buffer("index", place[:, None] - place[None] + 47)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        y = self.norm(x)
        y = y if self.first.batch_first else y.transpose(0, 1)
        y, _ = self.first(y, y, y, need_weights=False)
        x = x + (y if self.first.batch_first else y.transpose(0, 1))
        q, k, v = self.qkv(x).reshape(-1, 48, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))
        return self.head(x).mean(1)


class Transformer(nn.Module):
    """torch's own transformer layers, norms before or after, with queries of its own."""

    def __init__(self):
        super().__init__()
        settings = {"dim_feedforward": 16, "batch_first": True}
        self.embed = nn.Linear(16, 12)
        layer = nn.TransformerEncoderLayer(12, 3, activation="gelu", **settings)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12))
        self.decoder = nn.TransformerDecoderLayer(12, 2, norm_first=True, **settings)
        self.queries, self.head = nn.Parameter(torch.randn(1, 4, 12)), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.encoder(self.embed(x.flatten(1, 2)))
        return self.head(self.decoder(self.queries.expand(len(x), -1, -1), memory)).mean(1)


class Einsums(nn.Module):
    """Attention and layers in Einstein's notation, with axes in several orders."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6, 16) * 0.3)
        self.mix, self.head = nn.Parameter(torch.randn(12, 12) * 0.3), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("nchw,idw->nchid", x, self.weight).flatten(1, 2)
        scores = torch.einsum("bthd,bshd->bhts", x * 0.4, x)
        x = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), x).flatten(2)
        return self.head(torch.relu(torch.einsum("btc,cd -> btd", x, self.mix))).mean(1)


def normalised() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.group(m.conv1(x)))
        x = F.relu(m.instance(m.conv2(x)))
        x = F.relu(m.layer(m.conv3(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return m.conv4(F.normalize(m.response(x), dim=1))

    return Net(
        forward,
        **{f"conv{i}": conv() for i in range(1, 5)},
        group=nn.GroupNorm(2, 8),
        instance=nn.InstanceNorm2d(8, affine=True),
        layer=nn.LayerNorm(8),
        response=nn.LocalResponseNorm(3),
    )


# Ops that move numbers, and sums of one value's numbers.


def moves() -> nn.Module:
    def forward(m, x):
        y = m.conv1(x.roll((2, 1), (2, 3)).flip(3))
        left, right = y.chunk(2, 1)
        y = m.conv2(torch.stack([right, left], 2).flatten(1, 2))
        y = y.view(-1, 2, 4, 16, 16).transpose(1, 2).contiguous().view(-1, 8, 16, 16)
        a, b, c = torch.split(y, [2, 4, 2], 1)
        y = m.conv3(torch.cat([c, torch.cat([a, b], 1)], 1))
        parts = torch.index_select(y, 1, m.order)[:, ::2].repeat(1, 2, 1, 1).unbind(1)
        return m.conv4(torch.stack(parts[:8], 1))

    net = Net(forward, **{f"conv{i}": conv() for i in range(1, 5)})
    net.register_buffer("order", torch.randperm(8))
    return net


def pads() -> nn.Module:
    def forward(m, x):
        x = m.conv1(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = m.conv2(F.pad(x, (1, 1, 1, 1), mode="replicate"))
        x = m.conv3(F.pad(x, (1, 1, 1, 1)))
        return m.conv4(m.pad(x))

    layers = {f"conv{i}": nn.Conv2d(8, 8, 3) for i in range(1, 4)}
    last = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    return Net(forward, **layers, conv4=last, pad=nn.ReflectionPad2d(1))


def resized() -> nn.Module:
    def forward(m, x):
        x = m.conv1(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2))
        x = m.conv2(F.interpolate(x, size=(8, 8), mode="bilinear", align_corners=False))
        x = m.conv3(m.shuffle(x))
        return m.conv4(m.up(m.max(x)))

    return Net(
        forward,
        conv1=conv(),
        conv2=conv(),
        shuffle=nn.PixelShuffle(2),
        conv3=conv(2, 8),
        conv4=conv(),
        max=nn.AdaptiveMaxPool2d(4),
        up=nn.Upsample(scale_factor=2),
    )


def unpooled() -> nn.Module:
    """A SegNet: places of the largest numbers, kept by one pooling, used by its inverse."""

    def forward(m, x):
        y, places = F.max_pool2d(m.conv1(x), 2, return_indices=True)
        return m.conv3(F.max_unpool2d(m.conv2(y), places, 2))

    return Net(forward, **{f"conv{i}": conv() for i in range(1, 4)})


def picked() -> nn.Module:
    """Attention maps of the mean and the largest number of each place, as in CBAM."""

    def forward(m, x):
        largest, _ = torch.max(x, 1, keepdim=True)
        gate = torch.sigmoid(m.gate(torch.cat([largest, x.mean(1, keepdim=True)], 1)))
        return m.conv(x * gate) + x.amax((2, 3), keepdim=True) + x.sum(1, keepdim=True)

    return Net(forward, gate=conv(2, 1, 7), conv=conv())


class Blur(nn.Module):
    """A fixed filter for each channel, made from one buffer."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", row[:, None] * row[None])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filter[None, None].repeat(8, 1, 1, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=8)


# Layers.


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.ConvTranspose1d(3, 6, 4, stride=2, padding=1)
        self.two = nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.three = nn.ConvTranspose3d(8, 8, 2, stride=2, groups=8)
        self.conv = nn.Conv3d(8, 8, 1)
        self.last = nn.ConvTranspose2d(8, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x.flatten(2))).unflatten(2, (16, -1))
        x = F.relu(self.two(x))
        x = F.relu(self.conv(F.relu(self.three(x.unflatten(3, (4, -1))))))
        return self.last(x.mean(2)).mean((2, 3))


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(48, 16, 3, padding=1), nn.Conv1d(16, 16, 5, groups=4)
        self.mix, self.grid, self.head = nn.Linear(12, 12), nn.Linear(4, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x.flatten(1, 2)))))
        x = F.relu(self.mix(x)).unflatten(2, (3, 4))
        return self.head(F.gelu(self.grid(x))).mean((1, 2))


class Functional(nn.Module):
    """Layers called as functions on parameters of the model and of others of its modules."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3)
        self.bias = nn.Parameter(torch.randn(8))
        self.inner = nn.Module()
        self.inner.up_weight = nn.Parameter(torch.randn(8, 4, 2, 2) * 0.3)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 12), nn.Linear(12, 10)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weight, bias=self.bias, padding=1, stride=2))
        x = F.relu(self.norm(F.conv_transpose2d(x, self.inner.up_weight, stride=2)))
        x = x.mean((2, 3))
        for block in self.blocks:
            x = F.linear(x, block.weight, block.bias)
        return x


def baked() -> nn.Module:
    """Weights that torch computes at each call, in its old way and in its new one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old way
        old = weight_norm(conv())
    net = Net(
        lambda m, x: m.conv3(F.relu(m.conv2(F.relu(m.conv1(x))))),
        conv1=parametrizations.weight_norm(conv()),
        conv2=old,
        conv3=spectral_norm(conv()),
    )
    parametrizations.spectral_norm(net.head)
    return net


class StandardConv(nn.Conv2d):
    """As timm's StdConv2d: the weight is standardised anew at each call."""

    def __init__(self):
        super().__init__(8, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            *(self.weight.reshape(1, 8, -1), None, None),
            weight=(self.gain * 0.2).view(-1),
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x, weight, self.bias, *settings)


def dynamic() -> nn.Module:
    """A convolution whose weight is computed from the input."""

    def forward(m, x):
        weight = m.make(x.mean((0, 2, 3))).view(8, 8, 1, 1)
        return m.conv(F.relu(F.conv2d(m.norm(x), weight)))

    return Net(forward, make=nn.Linear(8, 64), conv=conv(), norm=nn.BatchNorm2d(8))


def shared() -> nn.Module:
    """Two layers with one weight, one called twice, and a transposed one on the same weight."""

    def forward(m, x):
        x = F.relu(m.second(F.relu(m.first(x))))
        x = F.relu(m.first(x))
        return F.conv_transpose2d(x, m.first.weight, padding=1)

    net = Net(forward, first=conv(), second=conv())
    net.second.weight = net.first.weight
    return net


class DropPath(nn.Module):
    """As timm's: a module of its own that does nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5))


def dropped() -> nn.Module:
    def forward(m, x):
        x = x + m.depth(m.norm(m.conv1(x)))
        x = x + m.path(F.dropout2d(m.relu(m.same(m.conv2(x))), training=m.training))
        return F.dropout(m.alpha(x), 0.3, m.training)

    return Net(
        forward,
        conv1=conv(),
        norm=nn.BatchNorm2d(8),
        depth=StochasticDepth(0.2, "row"),
        conv2=nn.Sequential(conv(), nn.Dropout2d(0.1)),
        same=nn.Identity(),
        relu=nn.ReLU(),
        path=DropPath(),
        alpha=nn.AlphaDropout(0.1),
    )


# Inputs and outputs.


class TwoInputs(nn.Module):
    """An image and a vector, of which only some entries enter a layer; a dict comes out."""

    def __init__(self):
        super().__init__()
        self.conv, self.embed = nn.Conv2d(3, 8, 3), nn.Linear(4, 8)
        self.head, self.map = nn.Linear(8, 10), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor, facts: Tensor) -> dict[str, object]:
        x = F.relu(self.conv(image))
        both = x.mean((2, 3)) + self.embed(facts[:, :4])
        scaled = self.map(x) * facts[:, 4, None, None, None]
        return {"input": self.head(both), "maps": [scaled, (x,)]}


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = conv(3, 8), conv(8, 4), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> tuple:
        x = F.relu(self.stem(x))
        return self.left(x), {"deep": self.right(x.mean((2, 3))), "relu": x}


class UnknownTuple(nn.Module):
    """A recurrent layer between convolutions: its tuple's entries are quantized for the next."""

    def __init__(self):
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(48, 8, 3), nn.LSTM(14, 6, batch_first=True)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        sequence, (hidden, _) = self.lstm(F.relu(self.conv(x.flatten(1, 2))))
        return self.head(sequence).mean(1) + self.head(hidden[0])


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
        dynamic, 4, 3, 2, float_kernels=2, reasons=(NO_LAYER, "its weight is computed while")
    ),
    "shared": Construct(shared, 6, 5, 1, float_kernels=1, reasons=(TRANSPOSED,)),
    "dropped": Construct(dropped, 4, 3, 1, folded=1),
    # Inputs and outputs.
    "two_inputs": Construct(TwoInputs, 4, 2, 2, shape=(IMAGE, (5,))),
    "outputs": Construct(Outputs, 3, 2, 1),
    "unknown_tuple": Construct(UnknownTuple, 3, 1, 2, reasons=("a recurrent layer",)),
}
