"""fxquant as a library, on a network that was defined in your own file.

Run it with `python examples/library.py`; it writes out/model.onnx and the report beside it.
"""

import torch
from torch import Tensor, nn

import fxquant


class MyNet(nn.Module):
    """Stands for your network; give yours its trained weights."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.head(x.mean((2, 3)))


def whole_job(model: nn.Module) -> None:
    """From the trained network to the ONNX file and its report, without data."""
    result = fxquant.quantize(model, bits=4, input_shape=(3, 32, 32), preset="fast")
    print(result.student)  # a torch.fx module, each fake-quantization visible in its graph
    fxquant.export(result, "out")


def step_by_step(model: nn.Module) -> nn.Module:
    """The quantized network from images that you have: what `quantize` does around its engine."""
    config = fxquant.QConfig(weight_bits=4, act_bits=4)
    prepared = fxquant.prepare(model, config, (3, 32, 32))
    images = torch.randn(256, 3, 32, 32)  # stands for images, normalised as the network wants
    fxquant.calibrate(prepared.student, images)
    with torch.no_grad():
        difference = prepared.student(images) - model.eval()(images)
    print(f"mean difference of the outputs: {difference.abs().mean():.4f}")
    return prepared.student


if __name__ == "__main__":
    torch.manual_seed(0)
    network = MyNet()
    step_by_step(network)
    whole_job(network)
