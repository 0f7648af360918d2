"""Runs files as another processor would: a program of its own, without torch, for an emulator.

usage: emulated.py IMAGES.npy OUTPUT.npz [--precise] MODEL.onnx ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

BATCH = 64


def main(images: str, output: str, *paths: str) -> None:
    """Write the first output of each file, under its name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if paths[0] == "--precise":
        options.add_session_config_entry("session.x64quantprecision", "1")
        paths = paths[1:]
    x = np.load(images)
    outputs = {}
    for path in paths:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        parts = [session.run(None, {name: x[i : i + BATCH]})[0] for i in range(0, len(x), BATCH)]
        outputs[Path(path).stem] = np.concatenate(parts)
    np.savez(output, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
