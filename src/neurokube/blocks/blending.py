"""Weighted merging of overlapping window predictions."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .box import Box
from .grid import WindowGrid


@lru_cache(maxsize=256)
def ramp(grid: WindowGrid, axis: int, k: int) -> NDArray[np.float32]:
    """Return the weights (0 to 1) along the core of the k-th window of an axis, float32.

    They rise over what the core shares with the one before it and fall over what it shares with the next,
    so that the weights of all windows add up to 1 at every voxel.

        1 ┤    ┌────────┐
          │  ╱ │        │ ╲
          │╱   │        │   ╲
        0 ┼────┴────────┴────
           overlap     overlap
    """
    start, stop = grid.span(axis, k)
    place = np.arange(start, stop)
    weights = np.ones(stop - start)
    overlap, stride, last = grid.overlap[axis], grid.stride[axis], len(grid.starts[axis]) - 1
    for edge, rising in ((k * stride, True), ((k + 1) * stride, False)):
        if (k == 0 and rising) or (k == last and not rising):
            continue
        up = np.clip((place - edge + 1) / (overlap + 1), 0, 1)
        weights *= up if rising else 1 - up
    result = weights.astype(np.float32)
    result.flags.writeable = False
    return result


class Blend:
    """The weighted mean of window predictions over one box, in float32.

    Add windows in ascending order of their number, all that touch the box: each voxel then sums the
    same values in the same order whatever the box, and the result does not depend on it.
    """

    def __init__(self, grid: WindowGrid, box: Box, channels: int) -> None:
        self.grid = grid
        self.box = box
        self.sum = np.zeros((channels, *box.shape), np.float32)

    def add(self, index: int, prediction: NDArray[np.float32]) -> None:
        """Add the prediction of a window, shape (channel, *grid.window)."""
        core = self.grid.core(index)
        common = core.clip(self.box)
        if common.size == 0:
            return
        there = common.relative_to(self.grid.box(index).start).slices
        values = prediction[(slice(None), *there)].copy()
        for axis, k in enumerate(self.grid.coordinate(index)):
            part = slice(common.start[axis] - core.start[axis], common.stop[axis] - core.start[axis])
            weights = ramp(self.grid, axis, k)[part]
            # most of a core weighs 1: only its slopes are worth a multiplication
            level = np.flatnonzero(weights == 1)
            slopes = [slice(0, level[0]), slice(level[-1] + 1, None)] if len(level) else [slice(None)]
            along = np.moveaxis(values, 1 + axis, -1)
            for slope in slopes:
                along[..., slope] *= weights[slope]
        self.sum[(slice(None), *common.relative_to(self.box.start).slices)] += values


def quantized(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return probabilities 0 to 1 as 0 to 255."""
    return np.asarray(np.rint(np.clip(probabilities, 0, 1) * np.float32(255)), np.uint8)
