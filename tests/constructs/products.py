"""Arithmetic, gates, and products of two values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs.net import Net, conv


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
