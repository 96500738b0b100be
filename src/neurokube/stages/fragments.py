"""Fragments: an oversegmentation by a watershed on the boundary map and the distance to the nearest boundary.

The height is the boundary map with the distance to the nearest voxel above a threshold taken off, smoothed (the
distance-transform watershed of Beier et al., Nature Methods 14:101, 2017); fragments are its basins, see `basins`.

A fragment never leaves its tile.  Its id is `tile * voxels of a full tile + n`, n = 1, 2, ... in the
tile, so ids are unique without any reduce, stay below the number of voxels, and tell their tile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Box, Grid, Vector
from ..volumes import VolumeSpec
from ..volumes.volume import Nanometres
from .base import (
    Data,
    Length,
    Source,
    Step,
    TableOutput,
    Target,
    TiledStage,
    looked_at,
    over_cells,
    probabilities,
    same_grid,
)
from .basins import LEVELS, basins


class Fragments(TiledStage):
    """Watershed on canonical tiles, in 3D or section by section."""

    kind: ClassVar[str] = "fragments"
    version: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("boundaries", "mask")

    boundaries: str = Field("boundaries", description="the boundary map, 0 to 255")
    mask: str | None = Field(None, description="a volume that is 0 where there is no tissue")
    threshold: int = Field(80, ge=0, le=254, description="boundary values above this are boundaries")
    reach: Length = Field(100.0, le=255, description="nm up to which the distance to a boundary counts")
    distance_weight: float = Field(0.5, ge=0, le=1, description="share of the distance in the height")
    smoothing: float = Field(8.0, ge=0, le=1000, description="width in nm of the smoothing of the height")
    depth: float = Field(
        0.03, ge=0, le=1, description="basins shallower than this share of the height join; larger: fewer fragments"
    )
    smallest: int = Field(100, ge=0, description="fragments under this many voxels join a neighbour in their tile")
    sections: Literal["auto", "one by one", "together"] = Field(
        "auto", description="fragments within single sections (coarse z) or in 3D"
    )

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan one pass over tiles."""
        boundaries = probabilities("boundaries", sources["boundaries"])
        if "mask" in sources:
            same_grid("mask", sources["mask"].spec, "boundaries", boundaries)
        output = self.output("fragments", replace(boundaries, dtype="uint64", kind="labels"))
        grid = output.grid()
        sizes = TableOutput("sizes", grid)
        halo = self.halo(boundaries.voxel_size, flat=self._flat(boundaries.is_coarse))

        def compute(cell: int, box: Box, data: Data) -> None:
            outer = box.grow(halo).clip(boundaries.box)
            inside = None if not data.has("mask") else data.volume("mask").read(outer) != 0
            labels = self.fragments_of(
                data.volume("boundaries").read(outer), box.relative_to(outer.start), boundaries.voxel_size, inside
            )
            data.put("sizes", cell, np.bincount(labels.ravel())[1:].astype(np.uint64))
            ids = labels.astype(np.uint64)
            ids += np.where(labels, np.uint64(first_id(grid, cell)), np.uint64(0))
            data.write("fragments", box, ids)

        targets = (Target(output), Target(sizes))
        return [Step("fragments", grid, targets, over_cells(grid, compute), effort=looked_at(grid, halo))]

    def _flat(self, is_coarse: bool) -> bool:
        return is_coarse if self.sections == "auto" else self.sections == "one by one"

    def halo(self, voxel_size: Nanometres, *, flat: bool) -> Vector:
        """Return how many voxels (z, y, x) around a tile decide the heights in it; `flat`: within sections."""
        z, y, x = (ceil(self.reach / v) + ceil(_RADIUS * self.smoothing / v) for v in voxel_size)
        return 0 if flat else z, y, x

    def fragments_of(
        self,
        boundaries: NDArray[np.uint8],
        inner: Box,
        voxel_size: Nanometres,
        mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.uint32]:
        """Return the fragments within the box `inner` of a boundary map (z, y, x), numbered 1, 2, ...

        What lies around the box decides heights within.  Voxels outside `mask` are 0.
        """
        flat = self._flat(replace(_ANY, voxel_size=voxel_size).is_coarse)
        height = self._height(boundaries, voxel_size, flat)[inner.slices]
        own = None if mask is None else np.ascontiguousarray(mask[inner.slices])
        return basins(
            np.ascontiguousarray(height), own, flat=flat, depth=round(self.depth * _STEPS), smallest=self.smallest
        )

    def _height(self, boundaries: NDArray[np.uint8], voxel_size: Nanometres, flat: bool) -> NDArray[np.uint16]:
        """Return the height: whole numbers on a scale that is the same in every tile."""
        from bioimage_cpp.filters import gaussian_smoothing

        height = boundaries.astype(np.float32)
        height *= np.float32((1 - self.distance_weight) * _STEPS / 255)
        if self.distance_weight:
            distance = np.sqrt(squared_distance(boundaries <= self.threshold, voxel_size, self.reach, flat=flat))
            distance *= np.float32(self.distance_weight * _STEPS / self.reach)
            height += np.float32(self.distance_weight * _STEPS)
            height -= distance
        if self.smoothing:
            sigma = tuple(self.smoothing / v for v in voxel_size)
            if flat:
                height = np.stack([gaussian_smoothing(section, sigma[1:], window_size=_RADIUS) for section in height])
            else:
                height = gaussian_smoothing(height, sigma, window_size=_RADIUS)
        steps: NDArray[np.uint16] = np.rint(height, out=height).astype(np.uint16)
        return steps


def first_id(grid: Grid, cell: int) -> int:
    """Return what is added to the number of a fragment in its tile to make its id."""
    return cell * prod(grid.cell)


def squared_distance(
    inside: NDArray[np.bool_], voxel_size: Nanometres, reach: float, *, flat: bool = False
) -> NDArray[np.float32]:
    """Return the squared distance in nm^2 of each voxel (z, y, x) to the nearest outside, at most `reach` squared.

    `flat`: within sections.  One axis after the other, each voxel the least of its neighbours' values and the square of
    the way there (Saito & Toriwaki, Pattern Recognition 27:1551, 1994), in whole numbers: of squared voxels where they
    are cubes (or squares, if flat), which fit into 8 bits, else of nm^2, rounded along each axis.
    """
    sides = voxel_size[1:] if flat else voxel_size
    alike = len(set(sides)) == 1
    unit = sides[0] if alike else 1.0
    # what is farther is cut off in the end; whole numbers of voxels do not end where the reach does
    far = ceil((reach / unit) ** 2)
    dtype = np.min_scalar_type(2 * far)  # large enough for a sum of two
    found = np.where(inside, dtype.type(far), dtype.type(0))
    for axis in range(1 if flat else 0, 3):
        ways = [round((k * voxel_size[axis] / unit) ** 2) for k in range(1, ceil(reach / voxel_size[axis]))]
        # rows along x are short, and numpy is slow at short rows
        turned = np.ascontiguousarray(found.swapaxes(1, 2)) if axis == 2 else found
        found = _lowered(turned, min(axis, 1), [dtype.type(way) for way in ways])
        if axis == 2:
            found = found.swapaxes(1, 2)
    squares: NDArray[np.float32] = found.astype(np.float32, order="C")
    squares *= np.float32(unit * unit)
    return np.minimum(squares, np.float32(reach * reach), out=squares)


def _lowered(squares: NDArray[Any], axis: int, ways: Sequence[Any]) -> NDArray[Any]:
    """Return the least of each voxel's square and its neighbours' along an axis with the square of the way there."""
    least, reached, count = squares.copy(), np.empty_like(squares), squares.shape[axis]
    for k, way in enumerate(ways[: count - 1], 1):
        lower = tuple(slice(0, count - k) if a == axis else slice(None) for a in range(3))
        upper = tuple(slice(k, None) if a == axis else slice(None) for a in range(3))
        np.add(squares, way, out=reached)
        np.minimum(least[lower], reached[upper], out=least[lower])
        np.minimum(least[upper], reached[lower], out=least[upper])
    return least


_ANY = VolumeSpec((1, 1, 1), "uint8", (1.0, 1.0, 1.0))

_STEPS = LEVELS - 2
"""Steps of the height."""

_RADIUS = 3.0
"""Deviations after which smoothing ends."""
