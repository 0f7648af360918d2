"""Activations, in each way of calling them."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from constructs.net import Net, conv


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
