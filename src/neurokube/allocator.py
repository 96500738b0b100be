"""Settings of glibc's memory allocator; elsewhere they do nothing."""

import ctypes
import sys
from functools import lru_cache

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


def _set(*options: tuple[int, int]) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in options:
            libc.mallopt(option, value)
