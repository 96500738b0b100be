"""Random numbers that are functions of a place: a hash of lattice coordinates, and smooth noise made of it."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]
Lattice = tuple[float, float, float]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream(seed: int, name: str) -> int:
    """Return the key of a named stream of random numbers; streams of other names or seeds are independent."""
    return (seed << 32) ^ crc32(name.encode())


def hashed(key: int, *coordinates: ArrayLike) -> NDArray[np.uint64]:
    """Return 64 random bits for each (broadcast) tuple of integer coordinates.

    The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), applied once a coordinate.
    """
    with np.errstate(over="ignore"):
        bits = _finalize(np.asarray(key, np.int64).view(np.uint64))
        for coordinate in coordinates:
            bits = _finalize(bits ^ (np.asarray(coordinate, np.int64).view(np.uint64) * _GOLDEN))
    return bits


def uniform(key: int, *coordinates: ArrayLike) -> NDArray[np.float64]:
    """Return numbers in [0, 1), one for each tuple of integer coordinates."""
    return (hashed(key, *coordinates) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: int, *coordinates: ArrayLike) -> NDArray[np.float32]:
    """Return nearly normal numbers of mean 0 and deviation 1, none beyond 3.5: sums of four uniform ones."""
    bits = hashed(key, *coordinates)
    lanes = [((bits >> np.uint64(16 * lane)) & np.uint64(0xFFFF)).astype(np.float32) for lane in range(4)]
    total = lanes[0] + lanes[1] + lanes[2] + lanes[3]
    return (total - np.float32(2 * 65535)) * np.float32(np.sqrt(3) / 65536)


def _finalize(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits + _GOLDEN).astype(np.uint64, copy=False)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class SmoothNoise:
    """A smooth random field over space, in (-1, 1), of deviation about 0.2.

    Cubic B-spline interpolation of random values on a lattice of `spacing` (z, y, x).
    """

    key: int
    spacing: Lattice

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the field at scattered points, shape (n, 3)."""
        from scipy.ndimage import map_coordinates

        if len(points) == 0:
            return np.zeros(0)
        knots = points / np.asarray(self.spacing)
        start, stop = np.floor(knots.min(0)).astype(int) - 2, np.floor(knots.max(0)).astype(int) + 4
        values = self._lattice([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
        found: NDArray[np.float64] = map_coordinates(values, (knots - start).T, order=3, prefilter=False)
        return found

    def on_axes(self, z: Floats, y: Floats, x: Floats) -> NDArray[np.float32]:
        """Return the field on the grid spanned by three rows of positions, shape (len(z), len(y), len(x))."""
        axes = [_knots(p, s) for p, s in zip((z, y, x), self.spacing, strict=True)]
        (wz, kz), (wy, ky), (wx, kx) = ((_spline(*axis), axis[2]) for axis in axes)
        values = np.tensordot(wz, self._lattice([kz, ky, kx]).astype(np.float32), 1)
        return np.asarray(wy @ values @ wx.T, np.float32)

    def with_slope(self, z: Floats, y: Floats, x: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the field as `on_axes` does, and the length of its gradient, per unit of the positions."""
        axes = [_knots(p, s) for p, s in zip((z, y, x), self.spacing, strict=True)]
        wz, wy, wx = (_spline(*axis) for axis in axes)
        dz, dy, dx = (_spline(*axis, slope=True) / np.float32(s) for axis, s in zip(axes, self.spacing, strict=True))
        lattice = self._lattice([knots for _, _, knots in axes]).astype(np.float32)
        values, along = np.tensordot(wz, lattice, 1), np.tensordot(dz, lattice, 1)
        squared = (wy @ along @ wx.T) ** 2 + (dy @ values @ wx.T) ** 2 + (wy @ values @ dx.T) ** 2
        return np.asarray(wy @ values @ wx.T, np.float32), np.asarray(np.sqrt(squared), np.float32)

    def _lattice(self, knots: list[NDArray[np.int64]]) -> NDArray[np.float64]:
        z, y, x = knots
        return 2 * uniform(self.key, z[:, None, None], y[None, :, None], x[None, None, :]) - 1


def _knots(positions: Floats, spacing: float) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return the part of each position beyond the knot before it, that knot's number, and all knots needed."""
    base = np.floor(positions / spacing).astype(np.int64)
    return positions / spacing - base, base, np.arange(base.min() - 1, base.max() + 3)


def _spline(
    t: Floats, base: NDArray[np.int64], knots: NDArray[np.int64], *, slope: bool = False
) -> NDArray[np.float32]:
    """Return the weights (position, knot) of cubic B-splines, or of their slopes for a spacing of 1."""
    if slope:
        weights = np.stack([-((1 - t) ** 2), 3 * t**2 - 4 * t, -3 * t**2 + 2 * t + 1, t**2], 1) / 2
    else:
        weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    matrix = np.zeros((len(t), len(knots)), np.float32)
    np.put_along_axis(matrix, (base - knots[0] - 1)[:, None] + np.arange(4), weights.astype(np.float32), 1)
    return matrix
