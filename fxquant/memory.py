"""When memory runs out: told from other errors, and in a person's words."""

from __future__ import annotations

import torch

# What torch's allocator for the CPU and ONNX Runtime say; neither has an error of its own for it.
_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the CPU's or a GPU's, was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and any(word in str(error).lower() for word in _WORDS)
