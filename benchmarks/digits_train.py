"""Train the networks of digits_nets.py on scikit-learn's digits; keep weights and test digits.

usage: digits_train.py [FOLDER] [NETWORK ...]

FOLDER (runs/digits) gets a state dict for each network, NAME.pt, and digits_test.npz: a quarter
of the digits, drawn to 16x16, moved, turned and covered with noise so that they are no longer
easy. Training sees others of the same kind.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from digits_nets import NETWORKS
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SIZE, MEAN, STD = 16, 0.35, 0.32
EPOCHS, BATCH = 30, 64


def load() -> list[Tensor]:
    """Training and test digits, float (n, 1, 8, 8) in 0..1, then the labels of both."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    parts = train_test_split(
        images, torch.from_numpy(digits.target), test_size=0.25, random_state=0
    )
    return parts


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each digit at 16x16, turned by up to 25 degrees, scaled, moved, dimmed, with noise."""
    n = len(images)
    angle, zoom, dim = (torch.rand(n, generator=generator) for _ in range(3))
    angle, zoom = (angle - 0.5) * 0.87, 0.8 + 0.5 * zoom
    rows = torch.stack(
        [angle.cos() * zoom, -angle.sin() * zoom, angle.sin() * zoom, angle.cos() * zoom]
    )
    theta = torch.empty(n, 2, 3)
    theta[:, :, :2] = rows.t().reshape(n, 2, 2)
    theta[:, :, 2] = (torch.rand(n, 2, generator=generator) - 0.5) * 0.4
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    drawn = (
        F.grid_sample(images, grid, align_corners=False) * (0.5 + 0.5 * dim)[:, None, None, None]
    )
    noise = torch.randn(drawn.shape, generator=generator) * 0.15
    return (drawn + noise).clamp(0, 1)


def normalize(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


def train(net: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """A one-cycle learning rate; each epoch sees the digits disturbed in another way.

    SGD, and AdamW for twice as long where there are no batch norms.
    """
    net.train()
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    epochs, rate = (EPOCHS, 0.1) if has_norms else (2 * EPOCHS, 3e-3)
    if has_norms:
        optimizer = torch.optim.SGD(
            net.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    else:
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for _ in range(epochs):
        seen = normalize(disturb(images, generator))
        order = torch.randperm(len(images), generator=generator)
        for batch in order.split(BATCH)[: len(images) // BATCH]:
            loss = F.cross_entropy(net(seen[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train_images, test_images, train_labels, test_labels = load()
    generator = torch.Generator().manual_seed(1)
    repeats = 4
    pixels = disturb(test_images.repeat(repeats, 1, 1, 1), generator).mul(255).round().byte()
    labels = test_labels.repeat(repeats)
    stored = {"images": pixels.permute(0, 2, 3, 1).numpy(), "labels": labels.numpy()}
    np.savez_compressed(folder / "digits_test.npz", **stored)
    for name in sys.argv[2:] or NETWORKS:
        torch.manual_seed(0)
        net = NETWORKS[name]()
        train(net, train_images, train_labels, torch.Generator().manual_seed(0))
        torch.save(net.state_dict(), folder / f"{name}.pt")
        with torch.no_grad():
            right = net(normalize(pixels.float() / 255)).argmax(1) == labels
        print(
            f"{name}: {100 * right.float().mean():.2f} % of {len(labels)} test digits", flush=True
        )


if __name__ == "__main__":
    main()
