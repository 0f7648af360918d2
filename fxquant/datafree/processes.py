"""Several processes that train one student together: what they average, exchange and agree on.

Each computes its part of every batch; what the parts come to is averaged, so that all hold the
same numbers throughout, those that one process with the whole batch would. Alone, every function
here gives back what it is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fxquant.errors import ResourceError, SettingError
from fxquant.memory import is_out_of_memory


@dataclass
class _Group:
    rank: int = 0
    size: int = 1


# A process group that the caller keeps for other ends must not be taken for ours.
_group = _Group()


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Train together with the other processes that torchrun started, while the block runs.

    On `cuda` each takes the GPU of its local rank. Without torchrun, or with one process, nothing
    changes. Raises SettingError for a device that they can't share out.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or _group.size > 1:
        yield
        return
    _take_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    _group.rank, _group.size = distributed.get_rank(), size
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """Go on alone, before the block of `joined` ends."""
    if _group.size > 1:
        _group.rank, _group.size = 0, 1
        distributed.destroy_process_group()


def _take_device(device: str) -> None:
    if not device.startswith("cuda"):
        return
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if ":" in device:
        raise SettingError(
            f"several processes can't share device '{device}'",
            "--device cuda: each takes a GPU of its own",
        )
    if local >= count:
        raise SettingError(
            f"there are more processes than GPUs, of which there are {count}",
            f"torchrun --nproc-per-node {count}",
        )
    torch.cuda.set_device(local)


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return _group.rank


def size() -> int:
    """How many processes train together."""
    return _group.size


def part(x: Tensor) -> Tensor:
    """This process's share of a batch (n, ...), n a multiple of their number: (n / size, ...)."""
    count = len(x) // _group.size
    return x if _group.size == 1 else x[_group.rank * count : (_group.rank + 1) * count]


def gather(x: Tensor) -> Tensor:
    """The whole batch from everyone's share, without gradients: the inverse of `part`."""
    if _group.size == 1:
        return x
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(_group.size)]
    with _exchange():
        distributed.all_gather(parts, x)
    return torch.cat(parts)


class _Average(torch.autograd.Function):
    """Mean over processes; its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _mean(grad)


class _AverageLoss(torch.autograd.Function):
    """Mean over processes for which all have the same gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def average(x: Tensor) -> Tensor:
    """Mean over processes of a value that each goes on to use in its own way."""
    return x if _group.size == 1 else _Average.apply(x)


def average_loss(x: Tensor) -> Tensor:
    """Mean over processes of a part of a loss, where all compute the same from it."""
    return x if _group.size == 1 else _AverageLoss.apply(x)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over processes, in one exchange."""
    if _group.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = _mean(torch.cat([grad.flatten() for grad in gradients]))
    pieces = flat.split([grad.numel() for grad in gradients])
    for grad, piece in zip(gradients, pieces, strict=True):
        grad.copy_(piece.view(grad.shape))


def share(module: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers."""
    if _group.size > 1:
        for value in (*module.parameters(), *module.buffers()):
            first = value.detach().contiguous()
            with _exchange():
                distributed.broadcast(first, 0)
            value.detach().copy_(first)


def agree(value: Any = None) -> Any:
    """The first process's value, in all."""
    if _group.size == 1:
        return value
    box = [value]
    with _exchange():
        distributed.broadcast_object_list(box, 0)
    return box[0]


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    if _group.size == 1:
        return flag
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor(int(flag), device=device)
    with _exchange():
        distributed.all_reduce(count)
    return bool(count)


def require_divisible(what: str, batch: int) -> None:
    """Raise SettingError for a batch that can't be shared out evenly."""
    if batch % _group.size:
        raise SettingError(
            f"{what} is {batch}, which {_group.size} processes can't share out evenly",
            "a multiple of their number",
        )


def _mean(x: Tensor) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    with _exchange():
        distributed.all_reduce(x)
    return x.div_(_group.size)


@contextmanager
def _exchange() -> Iterator[None]:
    """Raise ResourceError where another process can't be reached."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ResourceError(
            f"process {_group.rank} of {_group.size} lost the others, one of which has stopped",
            "what that one says tells why; the same command goes on from the last checkpoint",
        ) from error
