"""A prediction and its truth: whether they fit, and their voxels block by block."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Grid, Vector
from ..errors import DataError
from ..progress import progress
from ..volumes import Volume

BLOCK: Vector = (128, 128, 128)
"""Voxels (z, y, x) compared at a time; whole chunks of the default layouts."""

_TOLERANCE = 1e-3


class PairedBlocks:
    """The voxels of a prediction and its truth, block by block, with a progress bar.

    Raises:
        DataError: where one has channels, or shapes, voxel sizes or offsets differ by more than rounding.
    """

    def __init__(self, prediction: Volume, truth: Volume, block: Vector, *, quiet: bool) -> None:
        _require_same_space(prediction, truth)
        self.prediction, self.truth = prediction, truth
        self.grid = Grid(truth.spec.shape, block)
        self._quiet = quiet

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield the number of each cell of `grid` with its voxels (z, y, x) in prediction and truth."""
        with progress(quiet=self._quiet) as bars:
            bar = bars.add_task("evaluate", total=len(self.grid), unit="blocks")
            for cell in range(len(self.grid)):
                box = self.grid.box(cell)
                yield cell, self.prediction.read(box), self.truth.read(box)
                bars.advance(bar)


def _require_same_space(prediction: Volume, truth: Volume) -> None:
    for volume in (prediction, truth):
        if volume.spec.channels is not None:
            raise DataError(f"{volume.url}: has {volume.spec.channels} channels; give a volume with axes z, y, x")
    p, t = prediction.spec, truth.spec
    if p.shape != t.shape:
        raise DataError(
            f"{prediction.url} has {_text(p.shape)} voxels (z, y, x) and {truth.url} has {_text(t.shape)}; "
            "choose what both cover with --region, or import the truth of the same region"
        )
    if not np.allclose(p.voxel_size, t.voxel_size, rtol=_TOLERANCE, atol=0):
        raise DataError(
            f"{prediction.url} has voxels of {_text(p.voxel_size)} nm (z, y, x) and {truth.url} of "
            f"{_text(t.voxel_size)}; import one again with the right --voxel-size"
        )
    if np.any(np.abs(np.subtract(p.offset, t.offset)) > np.multiply(t.voxel_size, 0.1)):
        raise DataError(
            f"{prediction.url} starts at {_text(p.offset)} nm (z, y, x) and {truth.url} at "
            f"{_text(t.offset)}; choose the same place with --region, or import one with the right offset"
        )


def _text(vector: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in vector)
