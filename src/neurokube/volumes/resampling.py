"""Linear resampling onto another voxel size, the same bit for bit however the volume is cut."""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector
from .volume import COARSE, Nanometres

ALIKE = 0.03
"""Voxel sizes that differ by no more than this share count as the same."""
_AS_THICK = 1.5


@dataclass(frozen=True)
class Resampling:
    """A volume of `shape` voxels seen with another voxel size: `scale` old voxels (z, y, x) to a new one.

    Both grids start at the same corner.  A new voxel is the weighted mean of the old ones within a
    triangle of one new or old voxel, whichever is larger, on either side of its middle: linear
    interpolation where voxels become smaller, without aliasing where they become larger.
    """

    shape: Vector
    scale: tuple[float, float, float]

    @classmethod
    def between(cls, shape: Vector, voxel_size: Nanometres, wanted: Nanometres) -> "Resampling":
        """Return the resampling of a volume to a voxel size; axes that are `ALIKE` stay as they are.

        So do thick sections of nearly the same thickness: neighbouring ones differ too much to be mixed.
        """
        z, y, x = (1.0 if abs(w / v - 1) <= ALIKE else w / v for v, w in zip(voxel_size, wanted, strict=True))
        coarse = all(size[0] / min(size[1:]) >= COARSE for size in (voxel_size, wanted))
        if coarse and 1 / _AS_THICK <= z <= _AS_THICK:
            z = 1.0
        return cls(shape, (z, y, x))

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.scale == (1.0, 1.0, 1.0)

    @property
    def new_shape(self) -> Vector:
        """The shape after resampling; at least one voxel an axis."""
        z, y, x = (max(1, ceil(n / s - 1e-6)) for n, s in zip(self.shape, self.scale, strict=True))
        return z, y, x

    @property
    def inverse(self) -> "Resampling":
        """The resampling back."""
        z, y, x = (1 / s for s in self.scale)
        return Resampling(self.new_shape, (z, y, x))

    def needed(self, box: Box) -> Box:
        """Return the old voxels from which a box of new ones is made."""
        spans = [self.span(axis, a, b) for axis, (a, b) in enumerate(zip(box.start, box.stop, strict=True))]
        (z0, z1), (y0, y1), (x0, x1) = spans
        return Box((z0, y0, x0), (z1, y1, x1))

    def span(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Return from which old voxels to which those from `start` to `stop` along an axis are made."""
        scale, length = self.scale[axis], self.shape[axis]
        if scale == 1:
            return start, stop
        reach = max(1.0, scale)
        low = floor((start + 0.5) * scale - 0.5 - reach)
        high = ceil((stop - 0.5) * scale - 0.5 + reach) + 1
        return min(max(low, 0), length - 1), max(1, min(high, length))

    def linear(self, values: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
        """Return a box of new voxels from the old ones it needs, both ([c,] z, y, x), float32."""
        source = self.needed(box)
        for axis in range(3):
            if self.scale[axis] != 1:
                new = np.arange(box.start[axis], box.stop[axis])
                at = values.ndim - 3 + axis
                values = _along(values, at, new, self.scale[axis], source.start[axis], self.shape[axis])
        return values

    def nearest(self, values: NDArray[np.generic], box: Box) -> NDArray[np.generic]:
        """Return a box of new voxels, each the old one in its middle: for labels."""
        source = self.needed(box)
        for axis in range(3):
            middle = (np.arange(box.start[axis], box.stop[axis]) + 0.5) * self.scale[axis]
            old = np.clip(np.floor(middle).astype(np.int64), 0, self.shape[axis] - 1)
            values = values.take(old - source.start[axis], values.ndim - 3 + axis)
        return values


def _along(
    values: NDArray[np.float32], axis: int, new: NDArray[np.int64], scale: float, origin: int, length: int
) -> NDArray[np.float32]:
    reach = max(1.0, scale)
    middle = (new + 0.5) * scale - 0.5
    first = np.floor(middle - reach).astype(np.int64) + 1
    shape = [1] * values.ndim
    shape[axis] = len(new)
    total = np.zeros((*values.shape[:axis], len(new), *values.shape[axis + 1 :]), np.float32)
    weights = np.zeros(len(new))
    # tap by tap, in a fixed order: a matrix product would add up in an order that depends on the shape
    for tap in range(ceil(2 * reach)):
        old = first + tap
        weight = np.maximum(0, 1 - np.abs(old - middle) / reach)
        total += values.take(np.clip(old, 0, length - 1) - origin, axis) * weight.astype(np.float32).reshape(shape)
        weights += weight
    total /= weights.astype(np.float32).reshape(shape)
    return total
