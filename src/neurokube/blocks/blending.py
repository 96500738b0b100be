"""Weighted merging of overlapping window predictions."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .box import Box
from .grid import WindowGrid

Array = Any
"""A NumPy array; or a PyTorch tensor, where a device other than the processor's memory holds it."""


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


@lru_cache(maxsize=4096)
def _ramp_on(device: Any, grid: WindowGrid, axis: int, k: int) -> Array:
    """Return the weights of `ramp` as a tensor on a device, with axes of length 1 for those after its own."""
    import torch

    weights = torch.tensor(ramp(grid, axis, k).tolist()).reshape(-1, *[1] * (2 - axis))
    # from pinned memory, so that nobody waits for what a card is at
    return weights.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else weights


class Blend:
    """The weighted mean of window predictions over one box, in float32.

    Add windows in ascending order of their number, all that touch the box: each voxel then sums the
    same values in the same order whatever the box, and the result does not depend on it.  The sums are a NumPy
    array, or lie on a PyTorch device and are then of the same bits: it multiplies and adds in the same order, and
    each of the two by itself.
    """

    def __init__(self, grid: WindowGrid, box: Box, channels: int, device: Any = None) -> None:
        self.grid = grid
        self.box = box
        self.device = device
        shape = (channels, *box.shape)
        if device is None:
            self.sum: Array = np.zeros(shape, np.float32)
        else:
            import torch

            self.sum = torch.zeros(shape, device=device)

    def advance(self, box: Box) -> None:
        """Move on along z to a box of which the first sections are the last of the one before, and keep these."""
        moved, kept = box.start[0] - self.box.start[0], self.box.stop[0] - box.start[0]
        last = self.sum[:, moved : moved + kept]
        self.sum[:, :kept] = last if self.device is None else last.clone()
        self.sum[:, kept:] = 0
        self.box = box

    def add(self, index: int, prediction: Array) -> None:
        """Add the prediction of a window, shape (channel, *grid.window)."""
        core = self.grid.core(index)
        common = core.clip(self.box)
        if common.size == 0:
            return
        there = common.relative_to(self.grid.box(index).start).slices
        values = prediction[(slice(None), *there)]
        values = values.copy() if self.device is None else values
        for axis, k in enumerate(self.grid.coordinate(index)):
            part = slice(common.start[axis] - core.start[axis], common.stop[axis] - core.start[axis])
            if self.device is not None:
                values = values * _ramp_on(self.device, self.grid, axis, k)[part]
                continue
            weights = ramp(self.grid, axis, k)[part]
            # most of a core weighs 1: only its slopes are worth a multiplication
            level = np.flatnonzero(weights == 1)
            slopes = [slice(0, level[0]), slice(level[-1] + 1, None)] if len(level) else [slice(None)]
            along = np.moveaxis(values, 1 + axis, -1)
            for slope in slopes:
                along[..., slope] *= weights[slope]
        here = self.sum[(slice(None), *common.relative_to(self.box.start).slices)]
        here += values


def quantized(probabilities: Array) -> Array:
    """Return probabilities 0 to 1, float32, as 0 to 255, uint8."""
    if not isinstance(probabilities, np.ndarray):
        return probabilities.clip(0, 1).mul_(255).round_().byte()
    return np.asarray(np.rint(np.clip(probabilities, 0, 1) * np.float32(255)), np.uint8)
