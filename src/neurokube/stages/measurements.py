"""Measurements: a table of instances, with their place, size and surface, and the cells that hold and touch them.

Everything is counted in whole numbers, tile by tile, and added up exactly.

The surface is estimated from how often lines cross it, in the 13 directions between neighbouring voxels
(Crofton's formula; Ohser & Mücklich, Statistical Analysis of Microstructures, Wiley 2000; Lehmann & Legland,
Insight Journal 2012): lines of direction k through the middles of voxels are V / l apart, as an area, where V
is the volume of a voxel and l the distance of neighbours along the line, so that n crossings stand for

    area = 2 * w * n * V / l        w: the share of the directions in space that are nearest to k

summed over k.  It is right on average over all orientations, and a few percent low for a flat sheet across an
axis; counting the faces of voxels would give a sphere half as much again.  Where the volume ends is no
surface.  A crossing counts for the cell that lies outside: it is the area along which the instance touches
that cell.

    tables of a tile
      parts     (n, 12)  int64   an instance; its voxels; the sums of their z, y, x and of their probabilities
                                 (0 to 255); the lowest z, y, x and the highest
      contacts  (m, 16)  int64   an instance and a cell, or 0; how many voxels of the one are in the other, and
                                 the crossings between them along each direction
"""

from collections.abc import Callable, Iterable, Mapping
from math import hypot, prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Box
from ..errors import ConfigurationError
from ..volumes import VolumeSpec
from ..volumes.volume import Nanometres
from .base import (
    SINGLE,
    Block,
    Data,
    Source,
    Stage,
    Step,
    TableOutput,
    Target,
    over_cells,
    same_grid,
)
from .objects import channel, directions
from .tables import files, put_table

Rows = NDArray[np.int64]

DIRECTIONS = directions(26)
"""One of each two opposite steps (z, y, x) to a neighbour: the directions of the lines."""

_FEW = 1 << 20
"""Rows of tables that are read before they are added up."""


class Measurements(Stage):
    """Table of instances, as Parquet and CSV: place, volume, surface, and the cells that hold and touch them."""

    kind: ClassVar[str] = "measurements"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("objects", "cells", "semantics")

    objects: str = Field("objects", description="the instances, a volume of labels")
    cells: str | None = Field(None, description="a volume of labels: each instance is assigned to one of them")
    semantics: str | None = Field(None, description="a channel, 0 to 255, of which each instance's mean is given")

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan a pass over tiles and the table."""
        spec = _labels("objects", sources["objects"])
        if "cells" in sources:
            same_grid("cells", _labels("cells", sources["cells"]), "objects", spec)
        if self.semantics is not None:
            same_grid("semantics", channel(self.semantics, sources["semantics"]), "objects", spec)
        grid = sources["objects"].volume.grid()
        tables = [TableOutput(name, grid) for name in ("parts", "contacts")]

        def count(cell: int, box: Box, data: Data) -> None:
            # lines are followed towards the voxels after it, of which in z none comes before
            start, stop = box.grow((0, 1, 1)).start, box.grow((1, 1, 1)).stop
            seen = Box(start, stop).clip(spec.box)
            objects = data.volume("objects").read(seen).astype(np.uint64, copy=False)
            has_any = objects.any()
            cells = data.volume("cells").read(seen).astype(np.uint64) if has_any and data.has("cells") else None
            values = data.volume("semantics").read(box) if has_any and data.has("semantics") else None
            own = box.relative_to(seen.start)
            data.put("parts", cell, parts(objects[own.slices], values, box))
            data.put("contacts", cell, contacts(objects, cells, own))

        def tabulate(block: Block, data: Data) -> None:
            every = range(len(grid))
            found = summed(data.tables("parts", every), merged_parts)
            touching = summed(data.tables("contacts", every), merged_contacts)
            table, pairs = tabulated(
                found, touching, spec, cells=data.has("cells"), probabilities=data.has("semantics")
            )
            put_table(data, "table", table)
            if data.has("cells"):
                put_table(data, "contacts", pairs)

        names = ("table", "contacts") if "cells" in sources else ("table",)
        made = tuple(Target(file) for name in names for file in files(name))
        return [
            Step("counts", grid, tuple(Target(t) for t in tables), over_cells(grid, count)),
            Step("table", SINGLE, made, tabulate),
        ]


def _labels(role: str, source: Source) -> VolumeSpec:
    spec = source.spec
    if spec.kind != "labels" or spec.channels is not None:
        raise ConfigurationError(
            f"{role}: '{source.name}' holds {spec.dtype} {spec.kind}; a volume of labels is needed: name an objects "
            "or a segmentation stage, or import one with --labels"
        )
    return spec


def parts(objects: NDArray[np.uint64], values: NDArray[np.uint8] | None, box: Box) -> Rows:
    """Return what lies in a box of the volume of each instance there, as the table `parts` has it.

    `objects` are the labels within the box, `values` the probabilities there.
    """
    inside = np.flatnonzero(objects)
    ids, where = np.unique(objects.ravel()[inside], return_inverse=True)
    rows = np.zeros((len(ids), 12), np.int64)
    rows[:, 0], rows[:, 1] = ids, np.bincount(where, minlength=len(ids))
    if values is not None:
        rows[:, 5] = np.bincount(where, values.ravel()[inside], len(ids))
    rows[:, 6:9] = np.iinfo(np.int64).max
    for axis, (index, start) in enumerate(zip(np.unravel_index(inside, objects.shape), box.start, strict=True)):
        # within a tile the sums are so small that floating point keeps them exact
        rows[:, 2 + axis] = np.bincount(where, index, len(ids)).astype(np.int64) + start * rows[:, 1]
        np.minimum.at(rows[:, 6 + axis], where, index + start)
        np.maximum.at(rows[:, 9 + axis], where, index + start)
    return rows


def contacts(objects: NDArray[np.uint64], cells: NDArray[np.uint64] | None, own: Box) -> Rows:
    """Return what instances and cells have in common, as the table `contacts` has it; cell 0 where there are none.

    Voxels count that are in the box `own` of the labels, and crossings that start there.
    """
    if not objects.any():
        return np.zeros((0, 3 + len(DIRECTIONS)), np.int64)
    from ..evaluation import Contingency

    cells = np.zeros_like(objects) if cells is None else cells
    found = [Contingency.of(*map(np.ascontiguousarray, (cells[own.slices], objects[own.slices])))]
    for step in DIRECTIONS:
        here = own.clip(Box.of(objects.shape).shift([-n for n in step]))
        there = here.shift(step).slices
        crossing = objects[here.slices] != objects[there]
        ends = [(cells[part][crossing], objects[part][crossing]) for part in (here.slices, there)]
        (cell, instance), (other_cell, other) = ends
        found.append(Contingency.of(np.concatenate([other_cell, cell]), np.concatenate([instance, other])))
    keys = np.concatenate([np.stack([t.truth, t.prediction], axis=1) for t in found])
    pairs, where = np.unique(keys, axis=0, return_inverse=True)
    rows = np.zeros((len(pairs), 2 + len(found)), np.int64)
    rows[:, :2] = pairs
    column = np.repeat(np.arange(2, 2 + len(found)), [len(t) for t in found])
    rows[where.ravel(), column] = np.concatenate([t.count for t in found])
    return rows


def summed(tables: Iterable[Rows], merged: Callable[[Rows], Rows]) -> Rows:
    """Return the sum of the tables of all tiles; holds a small multiple of its rows."""
    held: list[Rows] = []
    rows, most = 0, _FEW
    for table in tables:
        held.append(table)
        rows += len(table)
        if rows > most:
            held = [merged(np.concatenate(held))]
            rows = len(held[0])
            most = max(2 * rows, _FEW)
    return merged(np.concatenate(held))


def merged_parts(rows: Rows) -> Rows:
    """Return one row an instance, in the order of their labels."""
    order, first = _groups(rows[:, :1])
    rows = rows[order]
    together = np.add.reduceat(rows, first)
    together[:, 0] = rows[first, 0]
    together[:, 6:9] = np.minimum.reduceat(rows[:, 6:9], first)
    together[:, 9:] = np.maximum.reduceat(rows[:, 9:], first)
    return together


def merged_contacts(rows: Rows) -> Rows:
    """Return one row an instance and cell, in the order of their labels."""
    order, first = _groups(rows[:, :2])
    rows = rows[order]
    together = np.add.reduceat(rows, first)
    together[:, :2] = rows[first, :2]
    return together


def _groups(keys: Rows) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the order that sorts rows by their columns, and where equal ones start in it."""
    order = np.lexsort(keys.T[::-1])
    changes = (np.diff(keys[order], axis=0) != 0).any(1)
    return order, np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), changes]))


def area_of_crossing(voxel_size: Nanometres) -> NDArray[np.float64]:
    """Return the area in nm^2 (13,) that one crossing along each of the directions stands for."""
    from scipy.spatial import SphericalVoronoi

    lines = np.array(DIRECTIONS) * np.array(voxel_size)
    length = np.array([hypot(*line) for line in lines.tolist()])
    ends = lines / length[:, None]
    shares = SphericalVoronoi(np.concatenate([ends, -ends])).calculate_areas().reshape(2, -1).sum(0)
    return np.asarray(2 * shares / shares.sum() * prod(voxel_size) / length)


def tabulated(
    found: Rows, touching: Rows, spec: VolumeSpec, *, cells: bool, probabilities: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the columns of the table of instances, and of that of instances and cells, from the sums of all tiles."""
    ids, voxels = found[:, 0].astype(np.uint64), found[:, 1]
    start, stop = found[:, 6:9], found[:, 9:] + 1
    row = np.searchsorted(found[:, 0], touching[:, 0])
    areas = area_of_crossing(spec.voxel_size) / 1e6
    crossings = np.zeros((len(found), len(areas)), np.int64)
    np.add.at(crossings, row, touching[:, 3:])
    table: dict[str, NDArray[Any]] = {"id": ids}
    for axis, name in enumerate("zyx"):
        table[f"{name}_nm"] = spec.offset[axis] + found[:, 2 + axis] / voxels * spec.voxel_size[axis]
    table |= {
        "volume_um3": voxels * prod(spec.voxel_size) / 1e9,
        "voxels": voxels,
        "surface_um2": _weighted(crossings, areas),
    }
    table |= {f"{name}_start": start[:, axis] for axis, name in enumerate("zyx")}
    table |= {f"{name}_stop": stop[:, axis] for axis, name in enumerate("zyx")}
    table["at_border"] = (start == 0).any(1) | (stop == spec.shape).any(1)
    if probabilities:
        table["mean_probability"] = found[:, 5] / voxels / 255
    if not cells:
        return table, {}
    is_cell = touching[:, 1] != 0
    row, touching = row[is_cell], touching[is_cell]
    share = touching[:, 2] / voxels[row]
    # the largest part of each instance, of equal ones that in the lowest cell, is written last
    order = np.lexsort((-touching[:, 1], touching[:, 2]))
    order = order[touching[order, 2] > 0]
    table["cell"], table["cell_share"] = np.zeros(len(found), np.uint64), np.zeros(len(found))
    table["cell"][row[order]], table["cell_share"][row[order]] = touching[order, 1], share[order]
    table["contacts"] = np.bincount(row, minlength=len(found))
    pairs = {
        "id": ids[row],
        "cell": touching[:, 1].astype(np.uint64),
        "voxels": touching[:, 2],
        "share": share,
        "area_um2": _weighted(touching[:, 3:], areas),
    }
    return table, pairs


def _weighted(crossings: Rows, areas: NDArray[np.float64]) -> NDArray[np.float64]:
    # column by column: a product of matrices adds in an order of the processor's choice
    total = np.zeros(len(crossings))
    for column, area in zip(crossings.T, areas, strict=True):
        total += column * area
    return total
