"""Figures with the range that they are expected in, and how people read bytes and times."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A figure with the range that it is expected in."""

    low: float
    likely: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> "Range":
        """Return the range of so many times the figure."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)

    def widened(self, factor: float) -> "Range":
        """Return a range whose ends are so many times further away."""
        return Range(self.low / factor, self.likely, self.high * factor)


NONE = Range(0.0, 0.0, 0.0)


def exactly(value: float) -> Range:
    """Return a figure that is known."""
    return Range(value, value, value)


def human_bytes(count: float) -> str:
    """Return a number of bytes for a person to read."""
    units = ["B", "kB", "MB", "GB"]
    while count >= 1000 and units:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0] if units else 'TB'}"


def human_time(seconds: float) -> str:
    """Return seconds for a person to read."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds >= 1 else f"{round(seconds, 3):g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.4g} h"
