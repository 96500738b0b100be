"""What the comparisons share: contestants take turns, and what counts is the median of the ratios of a turn."""

import os
import platform
from statistics import median

import psutil


def ratio(ones: list[float], others: list[float]) -> float:
    """Return the median over the turns of one / other; what else the machine does meets both alike."""
    return median(one / other for one, other in zip(ones, others, strict=True))


def machine() -> str:
    """Return what the figures were measured on, in neutral words."""
    memory, processor = round(psutil.virtual_memory().total / 2**30), platform.machine().replace("_", "-")
    return f"{os.cpu_count()} cores, {processor}, {memory} GiB, Python {platform.python_version()}"
