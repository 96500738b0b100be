"""Pyramids: coarser resolutions of a volume, the mean for images and the most frequent value for labels."""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector
from .volume import Kind, Volume


def downsample(block: NDArray[Any], factor: Vector, kind: Kind) -> NDArray[Any]:
    """Return a block of shape ([c,] z, y, x) reduced by `factor` (z, y, x), its sides rounded up.

    Images take the mean, in integers exact and rounded half up; labels take the most frequent value, of
    equally frequent ones the smallest.  A voxel at a far face that covers fewer than `factor` voxels counts
    those that exist, so that the result is the same however a volume is cut at multiples of `factor`.

    Raises:
        ValueError: for an image of 64-bit integers, whose sums could overflow.
    """
    for axis, f in enumerate(factor, start=block.ndim - 3):
        side = block.shape[axis]
        if rest := side % f:
            edge_factor = tuple(rest if axis == k else n for k, n in enumerate(factor, start=block.ndim - 3))
            whole, edge = np.split(block, [side - rest], axis)
            coarse_edge = downsample(edge, edge_factor, kind)  # type: ignore[arg-type]
            if side < f:
                return coarse_edge
            return np.concatenate([downsample(whole, factor, kind), coarse_edge], axis)
    offsets = product(*(range(f) for f in factor))
    views = [
        block[..., dz :: factor[0], dy :: factor[1], dx :: factor[2]] for dz, dy, dx in offsets
    ]  # the k-th voxel of every cell
    if len(views) == 1:
        return block.copy()
    return _mean(views) if kind == "image" else _mode(views)


def fill_level(volume: Volume, level: int, box: Box) -> None:
    """Compute the voxels `box` of resolution `level` (at least 1) from the next finer one.

    Neighbouring resolutions differ by a factor of 1 or 2 along each axis, as `pyramid_factors` has it.
    The finer resolution must be complete below `box`; memory is bounded by that part of it.
    """
    fine, coarse = volume.level_shape(level - 1), volume.level_shape(level)
    fz, fy, fx = (-(-n // m) for n, m in zip(fine, coarse, strict=True))
    start, stop = ((z * fz, y * fy, x * fx) for z, y, x in (box.start, box.stop))
    data = volume.read(Box(start, stop).clip(Box.of(fine)), level - 1)
    volume.write(box, downsample(data, (fz, fy, fx), volume.spec.kind), level)


def _mean(views: list[NDArray[Any]]) -> NDArray[Any]:
    dtype, count = views[0].dtype, len(views)
    if dtype.kind == "f":
        total = np.zeros(views[0].shape, np.float64)
    elif dtype.itemsize <= 4:
        small = dtype.itemsize * 8 + (2 * count).bit_length() <= 31
        total = np.zeros(views[0].shape, np.int32 if small else np.int64)
    else:
        raise ValueError(f"the mean of {dtype} voxels could overflow; use an image of at most 32 bits")
    for view in views:
        total += view
    if dtype.kind == "f":
        return (total / count).astype(dtype)
    total *= 2
    total += count
    total //= 2 * count
    return total.astype(dtype)


def _mode(views: list[NDArray[Any]]) -> NDArray[Any]:
    # inside an object all voxels agree: only cells on its surface need a count
    mixed = np.zeros(views[0].shape, bool)
    for view in views[1:]:
        mixed |= view != views[0]
    result = views[0].copy()
    if mixed.any():
        result[mixed] = _most_frequent([view[mixed] for view in views])
    return result


def _most_frequent(values: list[NDArray[Any]]) -> NDArray[Any]:
    """Return, for each position, the most frequent of `values`; the smallest of equally frequent ones."""
    counts = [np.ones(len(values[0]), np.uint16) for _ in values]
    for i in range(1, len(values)):
        for j in range(i):
            equal = values[i] == values[j]
            counts[i] += equal
            counts[j] += equal
    best, most = values[0].copy(), counts[0]
    for value, count in zip(values[1:], counts[1:], strict=True):
        better = (count > most) | ((count == most) & (value < best))
        np.copyto(best, value, where=better)
        np.copyto(most, count, where=better)
    return best
