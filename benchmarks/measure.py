"""Fair comparison: contestants take turns, and what counts is the median of the ratios of a turn."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import psutil


def take_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let each contestant measure itself once a round; the machine's other work then meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            found[name].append(measure())
    return found


def ratio(ones: list[float], others: list[float]) -> float:
    """Return the median over the rounds of one / other."""
    return median(one / other for one, other in zip(ones, others, strict=True))


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yield a function that tells the seconds since the block began, or, when it has ended, how long it took."""
    began = time.perf_counter()
    ended: list[float] = []
    yield lambda: (ended[0] if ended else time.perf_counter()) - began
    ended.append(time.perf_counter())


def machine() -> str:
    """Return what the figures were measured on, in neutral words."""
    memory, processor = round(psutil.virtual_memory().total / 2**30), platform.machine().replace("_", "-")
    return f"{os.cpu_count()} cores, {processor}, {memory} GiB, Python {platform.python_version()}"
