"""Weighted merging of overlapping window predictions."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .box import Box, Vector


@lru_cache(maxsize=16)
def blending_weights(window: Vector, overlap: Vector) -> NDArray[np.float32]:
    """Return the weight of each voxel of a window, shape `window`, in (0, 1], float32.

    Along an axis the weight rises linearly over the overlap with the next window, and is never 0, so
    that voxels which a single window covers keep its value.

        1 ┤    ┌────────┐
          │  ╱ │        │ ╲
          │╱   │        │   ╲
        0 ┼────┴────────┴────
           overlap     overlap
    """
    ramps = []
    for n, o in zip(window, overlap, strict=True):
        distance = np.minimum(np.arange(n), np.arange(n)[::-1]) + 1
        ramps.append(np.minimum(distance / (o + 1), 1).astype(np.float32))
    z, y, x = ramps
    weights = z[:, None, None] * y[None, :, None] * x[None, None, :]
    weights.flags.writeable = False
    return weights


class Blend:
    """The weighted mean of window predictions over one box, in float32.

    Add windows in ascending order of their number, all that touch the box: each voxel then sums the
    same values in the same order whatever the box, and the result does not depend on it.
    """

    def __init__(self, box: Box, channels: int, weights: NDArray[np.float32]) -> None:
        self.box = box
        self.weights = weights
        self._sum = np.zeros((channels, *box.shape), np.float32)
        self._weight = np.zeros(box.shape, np.float32)

    def add(self, window: Box, prediction: NDArray[np.float32]) -> None:
        """Add a prediction of shape (channel, *window.shape)."""
        common = window.clip(self.box)
        if common.size == 0:
            return
        here, there = common.relative_to(self.box.start).slices, common.relative_to(window.start).slices
        self._sum[(slice(None), *here)] += prediction[(slice(None), *there)] * self.weights[there]
        self._weight[here] += self.weights[there]

    def result(self) -> NDArray[np.float32]:
        """Return the blended prediction, shape (channel, z, y, x); 0 where no window was added."""
        mean: NDArray[np.float32] = np.divide(self._sum, np.maximum(self._weight, np.finfo(np.float32).tiny))
        return mean
