"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import onnxruntime
import torch


def machine() -> str:
    """Processor, cores and versions in a line."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    return f"{names[0] if names else platform.machine()}, {cores} cores, {device}, {versions}"
