"""How much memory a file needs: run as a program of its own, so that nothing else counts.

It imports neither torch nor the rest of the package, whose memory would hide that of a small file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

from fxquant.exporters.isolated import command, environment
from fxquant.exporters.limits import end_with_parent


def peak_memory(path: str | Path, inputs: dict[str, tuple[list[int], str]]) -> int | None:
    """Bytes that loading the file and running it once take at most; None where it can't be told.

    `inputs` gives the shape and the numpy type of each of the file's inputs.
    """
    if not Path("/proc/self/status").exists():
        return None
    program = command(
        "fxquant.exporters.memory", os.path.abspath(path), json.dumps(inputs), str(os.getpid())
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            program, cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
    return int(done.stdout) if done.returncode == 0 else None


def _measure(path: str, inputs: dict[str, tuple[list[int], str]]) -> int:
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in inputs.items()}
    before = _memory("VmRSS")
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, arrays)
    return _memory("VmHWM") - before


def _memory(what: str) -> int:
    """Bytes that the process holds (VmRSS), or held at most since it began (VmHWM).

    Not getrusage: what it calls the most is on Linux at least that of the process's parent.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {what}")


if __name__ == "__main__":
    end_with_parent(int(sys.argv[3]))
    print(_measure(sys.argv[1], json.loads(sys.argv[2])))
