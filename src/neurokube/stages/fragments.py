"""Fragments: an oversegmentation by a watershed on the distance to the nearest boundary.

The distance-transform watershed of Beier et al., Nature Methods 14:101 (2017): seeds are the maxima of
the smoothed distance to the thresholded boundary map, flooded over boundaries and inverted distance.

A fragment never leaves its tile.  Its id is `tile * voxels of a full tile + n`, n = 1, 2, ... in the
tile, so ids are unique without any reduce, stay below the number of voxels, and tell their tile.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Box, Grid
from ..volumes.volume import Nanometres
from .base import Data, Source, Step, TableOutput, Target, TiledStage, over_cells, same_grid


class Fragments(TiledStage):
    """Distance-transform watershed on canonical tiles, in 3D or section by section."""

    kind: ClassVar[str] = "fragments"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("boundaries", "mask")

    boundaries: str = Field("boundaries", description="the boundary map, 0 to 255")
    mask: str | None = Field(None, description="a volume that is 0 where there is no tissue")
    threshold: int = Field(80, ge=0, le=254, description="boundary values above this are boundaries")
    seed_smoothing: float = Field(
        16.0,
        ge=0,
        description="width in nm of the smoothing before seeds are sought; larger: fewer fragments",
    )
    distance_weight: float = Field(0.2, ge=0, le=1, description="share of the distance in the flooded height")
    sections: Literal["auto", "one by one", "together"] = Field(
        "auto", description="flood each section alone (coarse z) or in 3D"
    )
    halo: float = Field(120.0, ge=0, allow_inf_nan=False, description="nm around a tile that its watershed sees")

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan one pass over tiles."""
        boundaries = sources["boundaries"].spec
        if "mask" in sources:
            same_grid("mask", sources["mask"].spec, "boundaries", boundaries)
        output = self.output("fragments", replace(boundaries, dtype="uint64", kind="labels"))
        grid = output.grid()
        sizes = TableOutput("sizes", grid)
        flat = boundaries.is_coarse if self.sections == "auto" else self.sections == "one by one"
        halo = tuple(int(np.ceil(self.halo / v)) for v in boundaries.voxel_size)
        reach = (0 if flat else halo[0], halo[1], halo[2])

        def compute(cell: int, box: Box, data: Data) -> None:
            outer = box.grow(reach).clip(boundaries.box)
            inside = None if not data.has("mask") else data.volume("mask").read(outer) != 0
            labels = watershed_tile(
                data.volume("boundaries").read(outer),
                box.relative_to(outer.start),
                boundaries.voxel_size,
                flat=flat,
                mask=inside,
                threshold=self.threshold,
                seed_smoothing=self.seed_smoothing,
                distance_weight=self.distance_weight,
            )
            data.put("sizes", cell, np.bincount(labels.ravel())[1:].astype(np.uint64))
            data.write("fragments", box, np.where(labels, labels + first_id(grid, cell), 0).astype(np.uint64))

        return [Step("fragments", grid, (Target(output), Target(sizes)), over_cells(grid, compute))]


def first_id(grid: Grid, cell: int) -> int:
    """Return what is added to the number of a fragment in its tile to make its id."""
    return cell * prod(grid.cell)


def watershed_tile(
    boundaries: NDArray[np.uint8],
    inner: Box,
    voxel_size: Nanometres,
    *,
    flat: bool,
    mask: NDArray[np.bool_] | None = None,
    threshold: int = 80,
    seed_smoothing: float = 16.0,
    distance_weight: float = 0.2,
) -> NDArray[np.uint64]:
    """Return the fragments within the box `inner` of a boundary map (z, y, x), numbered 1, 2, ...

    What lies around the box is context.  A fragment that the box cuts apart becomes several, so that each
    is connected.  Voxels outside `mask` are 0.
    """
    from bioimage_cpp.segmentation import label

    def flood(part: slice | int, pixel: tuple[float, ...]) -> NDArray[np.uint32]:
        return _flood(
            boundaries[part],
            pixel,
            None if mask is None else mask[part],
            threshold=threshold,
            seed_smoothing=seed_smoothing,
            distance_weight=distance_weight,
        )

    if not flat:
        flooded = flood(slice(None), voxel_size)[inner.slices]
        labels: NDArray[np.uint64] = label(np.ascontiguousarray(flooded), connectivity=1)
        return labels
    sections, count = [], 0
    for z in range(inner.start[0], inner.stop[0]):
        section = label(np.ascontiguousarray(flood(z, voxel_size[1:])[inner.slices[1:]]), connectivity=1)
        sections.append(np.where(section, section + np.uint64(count), 0))
        count += int(section.max())
    return np.stack(sections)


def _flood(
    boundaries: NDArray[np.uint8],
    voxel_size: tuple[float, ...],
    mask: NDArray[np.bool_] | None,
    *,
    threshold: int,
    seed_smoothing: float,
    distance_weight: float,
) -> NDArray[np.uint32]:
    from bioimage_cpp.distance import distance_transform
    from bioimage_cpp.filters import gaussian_smoothing
    from bioimage_cpp.segmentation import label, watershed
    from scipy.ndimage import maximum_filter

    inside = boundaries <= threshold
    if mask is not None:
        inside &= mask
    if inside.all():
        distance = np.full(boundaries.shape, _FARTHEST, np.float32)
    else:
        distance = np.minimum(distance_transform(inside, sampling=voxel_size), np.float32(_FARTHEST))
    if seed_smoothing:
        sigma = tuple(max(seed_smoothing / v, 0.5) for v in voxel_size)
        distance = gaussian_smoothing(distance, sigma)
    # heights are integers on a scale that is the same in every tile: what one tile holds decides nothing
    depth = np.rint(distance * np.float32(_LEVELS / _FARTHEST)).astype(np.uint16)
    if mask is not None:
        depth[~mask] = 0
    peaks = (maximum_filter(depth, size=3) == depth) & (depth > 0)
    # half the memory traffic; a tile has fewer voxels than 2^32
    seeds = label(peaks, connectivity=boundaries.ndim).astype(np.uint32)
    height = boundaries.astype(np.float32) * np.float32((1 - distance_weight) * _LEVELS / 255)
    height += (np.float32(_LEVELS) - depth) * np.float32(distance_weight)
    flooded: NDArray[np.uint32] = watershed(np.rint(height), seeds, mask=mask)
    dry = flooded == 0 if mask is None else mask & (flooded == 0)
    if dry.any():
        # tissue that no seed reaches: a blank tile, or a part of the mask too thin for a peak of its own
        alone = label(dry, connectivity=1)
        flooded = np.where(dry, alone + flooded.max(), flooded).astype(np.uint32)
    return flooded


_FARTHEST = 2000.0
"""Distance in nm beyond which a boundary is simply far."""

_LEVELS = 65_000
"""Steps of the height; below the 65,536 that the watershed can tell apart."""
