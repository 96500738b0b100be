"""A prediction and its truth: whether they fit, and their voxels block by block."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Grid, Vector
from ..errors import DataError
from ..progress import progress
from ..volumes import Volume
from .contingency import Labels

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
        yield from self.read("evaluate", range(len(self.grid)))

    def read(
        self, task: str, cells: Sequence[int], after: Vector = (0, 0, 0)
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield some cells likewise, each with `after` (z, y, x) more voxels behind it as far as there are any."""
        with progress(quiet=self._quiet) as bars:
            bar = bars.add_task(task, total=len(cells), unit="blocks")
            for cell in cells:
                own = self.grid.box(cell)
                box = Box(own.start, own.grow(after).stop).clip(self.truth.spec.box)
                yield cell, self.prediction.read(box), self.truth.read(box)
                bars.advance(bar)


def require_labels(*volumes: Volume) -> None:
    """Check that volumes hold labels.

    Raises:
        DataError: where one holds anything else, or an image.
    """
    for volume in volumes:
        if volume.spec.channels is not None:
            raise DataError(f"{volume.url}: has {volume.spec.channels} channels; give a volume with axes z, y, x")
        if np.dtype(volume.spec.dtype).kind not in "iu":
            raise DataError(f"{volume.url}: holds {volume.spec.dtype}, not labels; give a volume of integer labels")
        if volume.spec.kind == "image" and np.dtype(volume.spec.dtype).itemsize <= 2:
            raise DataError(
                f"{volume.url}: an image, not labels; import it with --labels if it holds labels, "
                "or score it with --mask if it is a mask or a probability map"
            )


def as_labels(volume: Volume, voxels: NDArray[Any]) -> Labels:
    """Return voxels of a volume as uint64.

    Raises:
        DataError: where one is negative.
    """
    if voxels.dtype.kind == "i" and voxels.size and voxels.min() < 0:
        raise DataError(f"{volume.url}: holds negative labels; relabel them to 0 (no label) and up")
    return np.ascontiguousarray(voxels, np.uint64)


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
