"""How much memory and time a file may take, and how this process is held to it.

The bounds grow with what a file is: its bytes, those of the images it is run on, those of the
student beside it. What is far above them is no network of that size.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None

GIGABYTE = 1 << 30
# Each thread has a stack; memory allocators have some for each, too.
_PER_THREAD = 1 << 24
_START_MEMORY, _MEMORY_PER_BYTE, _MEMORY_PER_IMAGE_BYTE = 3 * GIGABYTE // 2, 12, 64
_START_SECONDS, _BYTES_A_SECOND, _IMAGE_BYTES_A_SECOND = 20.0, 1e7, 2.5e5
DEFAULT_SECONDS = 3600.0


def memory_allowed(file_bytes: int, batch_bytes: int = 0, student_bytes: int = 0) -> int:
    """Bytes that loading a file and running it on a batch may take beside what is there."""
    threads = _PER_THREAD * (os.cpu_count() or 1)
    sizes = _MEMORY_PER_BYTE * (file_bytes + student_bytes) + _MEMORY_PER_IMAGE_BYTE * batch_bytes
    return _START_MEMORY + threads + sizes


def seconds_allowed(file_bytes: int, image_bytes: int) -> float:
    """Seconds that loading a file and a first call on one image may take."""
    return _START_SECONDS + file_bytes / _BYTES_A_SECOND + image_bytes / _IMAGE_BYTES_A_SECOND


def hold_memory(allowed: int) -> None:
    """From here on this process may take so many bytes more; elsewhere than on Linux nothing."""
    status = Path("/proc/self/status")
    if resource is None or not status.exists():
        return
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            limit = int(line.split()[1]) * 1024 + int(allowed)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def hold_clock(seconds: float | None) -> None:
    """This process ends when so many seconds have passed, whatever it does; None takes that back.

    By an alarm that nothing handles, as Python itself is not asked while ONNX Runtime computes.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds or 0)


def hold_processor(seconds: float) -> None:
    """This process ends when it has taken so many seconds more of the processor.

    Not where time is measured: under such a limit Linux counts a process's time in whole ticks.
    """
    if resource is not None:
        times = os.times()
        limit = int(times.user + times.system + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def end_with_parent(parent: int) -> None:
    """Let this process end when the one that started it does, however that ends; on Linux alone."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            set_death_signal = 1  # PR_SET_PDEATHSIG
            ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
