"""Figures with the range that they are expected in."""

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
