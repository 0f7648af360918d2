"""What each construct is built into."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


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
