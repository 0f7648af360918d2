"""Several inputs, and outputs of any structure."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from constructs.net import conv


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
