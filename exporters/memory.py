"""How much memory a file needs: run as a program of its own, so that nothing else counts.

It imports neither torch nor the rest of the package, whose memory would hide that of a small file.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_memory(path: str | Path, inputs: dict[str, tuple[list[int], str]]) -> int | None:
    """Bytes that loading the file and running it once take at most; None where that fails.

    `inputs` gives the shape and the numpy type of each of the file's inputs.
    """
    command = [sys.executable, "-m", __name__, str(path), json.dumps(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def _measure(path: str, inputs: dict[str, tuple[list[int], str]]) -> int:
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in inputs.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, arrays)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _UNIT


if __name__ == "__main__":
    print(_measure(sys.argv[1], json.loads(sys.argv[2])))
