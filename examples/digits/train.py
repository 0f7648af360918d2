"""Train DigitsNet on scikit-learn's handwritten digits; save its weights and the held-out digits.

usage: train.py [FOLDER]

FOLDER (demo) gets digits.pt, a state dict, and digits_test.npz: what `fxquant quantize` takes as
MODEL and as --eval-data.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from net import DigitsNet
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

MEAN, STD = 0.3, 0.38
EPOCHS, BATCH = 15, 64


def load() -> list[np.ndarray]:
    """Training and held-out images, uint8 (n, 8, 8, 1), then the labels of both."""
    digits = load_digits()  # 1,797 of them, grey levels from 0 to 16
    images = (digits.images * 255 / 16).round().astype(np.uint8)[..., None]
    labels = digits.target.astype(np.uint8)
    return train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)


def to_tensor(images: np.ndarray) -> Tensor:
    """What the network is fed: float (n, 1, 8, 8), normalised."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def shift(images: Tensor) -> Tensor:
    """Move a batch by up to a pixel each way, so that 1,347 digits don't get learned by heart."""
    top, left = torch.randint(0, 3, (2,)).tolist()
    background = -MEAN / STD
    return F.pad(images, (1, 1, 1, 1), value=background)[..., top : top + 8, left : left + 8]


def train(images: Tensor, labels: Tensor) -> DigitsNet:
    """The network after 15 epochs of SGD with a one-cycle learning rate."""
    net = DigitsNet()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = F.cross_entropy(net(shift(images[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing from more
    train_images, test_images, train_labels, test_labels = load()
    start = time.perf_counter()
    net = train(to_tensor(train_images), torch.from_numpy(train_labels).long())
    seconds = time.perf_counter() - start
    with torch.no_grad():
        right = net(to_tensor(test_images)).argmax(1).numpy() == test_labels
    torch.save(net.state_dict(), folder / "digits.pt")
    np.savez_compressed(folder / "digits_test.npz", images=test_images, labels=test_labels)
    print(f"trained on {len(train_labels)} digits in {seconds:.0f} s")
    print(f"accuracy on {len(test_labels)} held-out digits: {100 * right.mean():.2f} %")


if __name__ == "__main__":
    main()
