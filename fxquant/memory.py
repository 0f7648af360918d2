"""How much memory there is, and when it runs out: told from other errors."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

# What torch's allocator for the CPU and ONNX Runtime say; neither has an error of its own for it.
_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the CPU's or a GPU's, was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and any(word in str(error).lower() for word in _WORDS)


def memory_bytes() -> int | None:
    """The machine's memory, or the container's where that is less; None where nobody tells."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        limits.append(int(_CONTAINER_LIMIT.read_text()))
    return min(limits, default=None)
