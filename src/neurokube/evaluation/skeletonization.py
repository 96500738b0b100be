"""Skeletons of the bodies of a label volume, made block by block."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from bioimage_cpp.skeleton.distributed import (
    block_border_targets_labels,
    block_teasar_labels,
    merge_block_skeletons,
    minimum_spanning_forest,
)

from ..blocks import Box, Grid, Vector
from ..errors import DataError
from ..progress import progress
from ..volumes import Volume
from .pairs import as_labels, require_labels
from .skeletons import Skeleton, Skeletons

TILE: Vector = (128, 128, 128)
"""Voxels (z, y, x) skeletonized at a time; paths depend a little on it, where they end on a face exactly."""

_SCALE, _CONSTANT = 1.5, 300.0
"""A path covers what is within 1.5 radii + 300 nm of it, as kimimaro has it for neurites."""

MERGE_NODES = 10
"""Nodes of each of several skeletons that make a segment a merger, unless somebody says otherwise.

Nodes lie a voxel apart, and paths end at the surface of a body: of synthetic tissue whose borders are moved by one
voxel, and nothing else, a single node would make NERL 0.17, and 10 make it 0.94."""

Fragments = dict[int, Any]
"""Of each label the nodes (n, 3) in voxels of the volume, the edges (m, 2) and the radii (n,)."""


def skeletonize(volume: Volume, *, min_size: int = 0, tile: Vector = TILE, quiet: bool = False) -> Skeletons:
    """Return a skeleton, named by its label, of each body that has `min_size` voxels or more.

    A body of several pieces within the volume is one skeleton.  By TEASAR (Sato et al., Pacific Graphics 2000)
    in tiles that share a plane of voxels with the next: all paths of a body go through the middles of its cross
    sections in these planes, so that those of neighbours meet (bioimage_cpp.skeleton.distributed).  Holds one
    tile, and all skeletons.

    Raises:
        DataError: where the volume holds no labels, or nothing to skeletonize.
    """
    require_labels(volume)
    grid = Grid(volume.spec.shape, tile)
    found: dict[int, list[Any]] = {}
    sizes: dict[int, int] = {}
    with progress(quiet=quiet) as bars:
        for cell in bars.track(range(len(grid)), description="skeletonize"):
            for label, fragment in _fragments(volume, grid, cell, sizes).items():
                found.setdefault(label, []).append(fragment)
    skeletons = [
        _skeleton(volume, label, fragments) for label, fragments in sorted(found.items()) if sizes[label] >= min_size
    ]
    made = Skeletons.of(skeletons)
    if not made.lengths.any():
        raise DataError(f"{volume.url}: no body is long enough for a skeleton with an edge; check the file")
    return made


def _fragments(volume: Volume, grid: Grid, cell: int, sizes: dict[int, int]) -> Fragments:
    """Skeletonize a tile and the plane that it shares with each neighbour behind it; add up its labels' sizes."""
    own = grid.box(cell)
    box = Box(own.start, own.grow((1, 1, 1)).stop).clip(Box.of(grid.shape))
    labels = as_labels(volume, volume.read(box))
    ids, counts = np.unique(labels[own.relative_to(box.start).slices], return_counts=True)
    for label, count in zip(ids.tolist(), counts.tolist(), strict=True):
        sizes[label] = sizes.get(label, 0) + count
    faces = [
        (axis, side)
        for axis, side in product(range(3), ("low", "high"))
        if (own.start[axis] > 0 if side == "low" else own.stop[axis] < grid.shape[axis])
    ]
    place: Mapping[str, Any] = {"origin": box.start, "spacing": volume.spec.voxel_size}
    targets = block_border_targets_labels(labels, faces, **place)
    fragments: Fragments = block_teasar_labels(
        labels, open_faces=faces, required_targets=targets, scale=_SCALE, constant=_CONSTANT, **place
    )
    return fragments


def _skeleton(volume: Volume, label: int, fragments: list[Any]) -> Skeleton:
    spec = volume.spec
    voxels, edges, _ = minimum_spanning_forest(merge_block_skeletons(fragments), spacing=spec.voxel_size)
    places = voxels * np.array(spec.voxel_size) + spec.offset
    return Skeleton(str(label), volume.url, range(len(voxels)), places, edges)
