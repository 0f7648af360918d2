"""What makes many exports in one process cheaper and changes no byte of any."""

from __future__ import annotations

import functools
from contextlib import suppress


def remember_translations() -> None:
    """Let torch.onnx list its translations once for each opset: a third of an export's time.

    The list is the same each time, and each export gets a copy. Where a later torch keeps it
    elsewhere, exports are slower.
    """
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        from_torchlib = functools.cache(ONNXRegistry.from_torchlib)

        def copied(opset_version: int) -> ONNXRegistry:
            known, registry = from_torchlib(opset_version=opset_version), ONNXRegistry()
            registry._opset_version = opset_version
            registry.functions = {target: list(found) for target, found in known.functions.items()}
            return registry

        ONNXRegistry.from_torchlib = staticmethod(copied)
