"""An axis-aligned box of voxels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from ..errors import UsageError

Vector = tuple[int, int, int]


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """The voxels from `start` to `stop`, `stop` excluded, in order (z, y, x).

    start ●───────┐
          │       │      Box((0, 2, 2), (1, 5, 9)).shape == (1, 3, 7)
          └───────○ stop
    """

    start: Vector
    stop: Vector

    @classmethod
    def of(cls, shape: Iterable[int]) -> Self:
        """Return the box of a whole array of that shape."""
        z, y, x = (int(n) for n in shape)
        return cls((0, 0, 0), (z, y, x))

    @property
    def shape(self) -> Vector:
        """Extent in voxels; no axis is negative."""
        z, y, x = (max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def size(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of this box in an array that starts at the origin."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def grow(self, halo: Iterable[int]) -> "Box":
        """Return the box with `halo` voxels more on either side of each axis."""
        h = tuple(halo)
        return Box(_sub(self.start, h), _add(self.stop, h))

    def shift(self, by: Iterable[int]) -> "Box":
        """Return the box moved by a vector."""
        v = tuple(by)
        return Box(_add(self.start, v), _add(self.stop, v))

    def relative_to(self, origin: Iterable[int]) -> "Box":
        """Return the box in the coordinates of an array that starts at `origin`."""
        return self.shift(-int(o) for o in origin)

    def clip(self, other: "Box") -> "Box":
        """Return the part of this box inside `other`; its size is 0 where they do not meet."""
        start = _max(self.start, other.start)
        return Box(start, _max(start, _min(self.stop, other.stop)))

    def contains(self, other: "Box") -> bool:
        """Whether `other` lies wholly inside this box."""
        return self.clip(other) == other

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


def parse_region(text: str) -> Box:
    """Read `Z0:Z1,Y0:Y1,X0:X1` in voxels, the form of `--region`.

    Raises:
        UsageError: where the text has another form or a side is empty.
    """
    try:
        pairs = [tuple(int(n) for n in part.split(":")) for part in text.split(",")]
        (z0, z1), (y0, y1), (x0, x1) = pairs
    except ValueError:
        raise UsageError(f"region '{text}': write it as Z0:Z1,Y0:Y1,X0:X1 in voxels, as 0:50,100:612,100:612") from None
    box = Box((z0, y0, x0), (z1, y1, x1))
    if box.size == 0 or min(box.start) < 0:
        raise UsageError(f"region '{text}': each axis needs 0 <= start < stop")
    return box


def _add(a: Iterable[int], b: Iterable[int]) -> Vector:
    z, y, x = (int(p) + int(q) for p, q in zip(a, b, strict=True))
    return z, y, x


def _sub(a: Iterable[int], b: Iterable[int]) -> Vector:
    return _add(a, (-int(q) for q in b))


def _max(a: Vector, b: Vector) -> Vector:
    z, y, x = (max(p, q) for p, q in zip(a, b, strict=True))
    return z, y, x


def _min(a: Vector, b: Vector) -> Vector:
    z, y, x = (min(p, q) for p, q in zip(a, b, strict=True))
    return z, y, x
