"""The memory of this process: settings of glibc's allocator (elsewhere they do nothing), and the peak."""

import ctypes
import resource
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@lru_cache(maxsize=1)
def share_heaps() -> None:
    """Let all threads share two heaps: of one for each, the default, memory grows with every thread."""
    _set((_ARENA_MAX, 2))


@lru_cache(maxsize=1)
def keep_freed() -> None:
    """Keep what is freed for the next time: a network frees and asks for the same large arrays again and again.

    By default each goes back to the system and comes again page by page, which can take half of the time.
    """
    _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory() -> int:
    """Return the most memory this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # what getrusage reports on Linux counts the parent's memory at the time of the fork
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let `peak_memory` count from now on, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _set(*options: tuple[int, int]) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in options:
            libc.mallopt(option, value)
