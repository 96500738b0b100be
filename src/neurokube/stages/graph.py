"""Graph: the region adjacency graph of the fragments, with statistics of what lies along each edge.

A fragment never leaves its tile, so each pair of touching voxels belongs to the tile of its lower voxel,
and so does the whole edge between two fragments: tables made tile by tile need no merging, and are the
same however blocks are cut.  (An edge's pairs all lie inside one tile, or across one face of it.)  For the same
reason quantiles are exact: a tile sees all values of an edge at once.

    tables of a tile
      edges       (m, 2)   uint64  fragment ids, first < second, sorted
      stats       (m, 12)  int64   of the boundary map along each edge, see `STATISTICS`
      stats-NAME  (m, 12)  int64   of a further channel, or a filter of the image
      counts      (4,)     uint64  number of nodes and of edges, lowest and highest value of the boundary map
    and over all tiles
      totals      (2,)     uint64  number of nodes and of edges
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..blocks import Box, Grid, Vector
from ..errors import ConfigurationError, DataError
from ..volumes import VolumeSpec
from .base import (
    SINGLE,
    Block,
    Data,
    Source,
    Stage,
    Step,
    TableOutput,
    Target,
    looked_at,
    over_cells,
    probabilities,
    same_grid,
)
from .filters import Filter, filter_halo, filtered
from .fragments import first_id
from .fusion import ChannelName

STATISTICS = (
    *("pairs", "sum", "squares", "lowest"),
    *("q10", "q25", "median", "q75", "q90", "highest"),
    *("pairs_z", "sum_z"),
)
"""Columns of `stats`.  The value of a pair of voxels is the sum of both, 0 to 510; number of pairs, sum, sum of
squares, lowest, quantiles (the value of that rank, rounded down), highest; number and sum of the pairs across z."""

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

_VALUE_BITS = 10
"""Of a sorting key: nine for the value, one for whether the pair is across z."""


class Graph(Stage):
    """Region adjacency graph with statistics of each edge."""

    kind: ClassVar[str] = "graph"
    version: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("fragments", "boundaries", "image")
    unkeyed: ClassVar[tuple[str, ...]] = (*Stage.unkeyed, "channels")

    fragments: str = Field("fragments", description="the fragments stage")
    boundaries: str = Field("boundaries", description="the boundary map to measure edges on, 0 to 255")
    channels: dict[ChannelName, str] = Field(
        {}, description="further maps to measure edges on, by name: an output of another stage each"
    )
    image: str | None = Field(None, description="with filters: the image")
    filters: tuple[Filter, ...] = Field(
        (), description="filters of the image to measure edges on too, as {filter: gaussian, width: 20}, in nm"
    )

    @model_validator(mode="after")
    def _image(self) -> Self:
        if bool(self.filters) != (self.image is not None):
            raise ValueError("give 'image' and 'filters' together, or neither")
        names = [f.name for f in self.filters]
        if twice := [name for k, name in enumerate(names) if name in self.channels or name in names[:k]]:
            raise ValueError(f"filters: '{twice[0]}' is there twice; leave one out, or rename the channel")
        return self

    def references(self) -> dict[str, str]:
        """Return what is read, a role for each further channel: `channels.NAME`."""
        return super().references() | {f"channels.{name}": reference for name, reference in self.channels.items()}

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan a pass over tiles and the totals."""
        if sources["fragments"].kind != "fragments":
            raise ConfigurationError(f"fragments: '{sources['fragments'].name}' is not a fragments stage; name one")
        spec = sources["fragments"].spec
        for role in ("boundaries", *(f"channels.{name}" for name in self.channels), *(["image"] * bool(self.filters))):
            same_grid("fragments", spec, role, probabilities(role, sources[role]))
        grid = sources["fragments"].volume.grid()
        names = ("edges", *self.tables, "counts")
        tables = {name: TableOutput(name, grid) for name in names}
        totals = TableOutput("totals", SINGLE)

        def compute(cell: int, box: Box, data: Data) -> None:
            # one voxel more on the upper faces: a pair belongs to the tile of its lower voxel
            outer = Box(box.start, box.grow((1, 1, 1)).stop).clip(spec.box)
            own = Box.of(box.shape)
            nodes = len(data.table("fragments.sizes", cell))
            labels, starts, firsts = numbered(data.volume("fragments").read(outer), grid, cell, nodes)
            maps = self._maps(outer, spec, data)
            edges, stats = edge_statistics(labels, list(maps.values()), own)
            part = np.searchsorted(starts, edges, side="right") - 1
            data.put("edges", cell, edges - starts[part] + firsts[part])
            for name, values in zip(maps, stats, strict=True):
                data.put(name, cell, values)
            tissue = maps["stats"][own.slices]
            data.put("counts", cell, np.array([nodes, len(edges), tissue.min(), tissue.max()], np.uint64))

        def sum_up(block: Block, data: Data) -> None:
            counts = np.stack(list(data.tables("counts", range(len(grid)))))
            if counts[:, 2].min() == counts[:, 3].max():
                raise DataError(
                    f"boundaries: '{sources['boundaries'].name}' is {counts[0, 2]} everywhere, so there is nothing to "
                    "part cells by; look at it in the viewer, and check the model and the image that it was made of"
                )
            data.put("totals", 0, counts[:, :2].sum(0))

        return [
            Step(
                "edges",
                grid,
                tuple(Target(t) for t in tables.values()),
                over_cells(grid, compute),
                effort=looked_at(grid, self._halo(spec)),
            ),
            Step("totals", SINGLE, (Target(totals),), sum_up),
        ]

    @property
    def tables(self) -> list[str]:
        """The names of the tables of statistics, that of the boundary map first."""
        return ["stats", *(f"stats-{name}" for name in self.channels), *(f"stats-{f.name}" for f in self.filters)]

    def _halo(self, spec: VolumeSpec) -> Vector:
        return filter_halo(self.filters, spec.voxel_size, flat=spec.is_coarse) if self.filters else (0, 0, 0)

    def _maps(self, box: Box, spec: VolumeSpec, data: Data) -> dict[str, NDArray[np.uint8]]:
        """Return what lies in a box of each channel, by the table of its statistics."""
        found = {"stats": data.volume("boundaries").read(box)}
        found |= {f"stats-{name}": data.volume(f"channels.{name}").read(box) for name in self.channels}
        if self.filters:
            outer = box.grow(self._halo(spec)).clip(spec.box)
            image, inner = data.volume("image").read(outer), box.relative_to(outer.start)
            for each in self.filters:
                found[f"stats-{each.name}"] = filtered(image, inner, spec.voxel_size, each, flat=spec.is_coarse)
        return found


Numbers = NDArray[np.uint64]


def numbered(fragments: Numbers, grid: Grid, cell: int, nodes: int) -> tuple[NDArray[np.uint32], Numbers, Numbers]:
    """Return a tile's fragments, with one voxel more on its upper faces, as small numbers, in the order of their ids.

    `fragments` are ids (z, y, x), `nodes` how many the tile itself has.  Numbers from the k-th of the ascending
    `starts`, which is returned with them, are those of a tile whose ids begin with the k-th of `firsts`.
    """
    own = grid.box(cell)
    here, size = grid.coordinate(cell), own.shape
    labels = np.zeros(fragments.shape, np.uint32)
    starts, firsts = [1], [first_id(grid, cell) + 1]
    inner = Box.of(size).slices
    np.subtract(
        fragments[inner], np.uint64(firsts[0] - 1), out=labels[inner], where=fragments[inner] > 0, casting="unsafe"
    )
    start = nodes + 1
    for axis in (2, 1, 0):
        if fragments.shape[axis] == size[axis]:
            continue
        z, y, x = (k + (a == axis) for a, k in enumerate(here))
        first = first_id(grid, grid.index((z, y, x))) + 1
        face = tuple(slice(size[a], None) if a == axis else slice(0, size[a]) for a in range(3))
        shift = np.uint64(first - start)
        np.subtract(fragments[face], shift, out=labels[face], where=fragments[face] > 0, casting="unsafe")
        starts.append(start)
        firsts.append(first)
        start = max(start, int(labels[face].max()) + 1)
    return labels, np.array(starts, np.uint64), np.array(firsts, np.uint64)


def edge_statistics(
    labels: NDArray[np.uint32], maps: Sequence[NDArray[np.uint8]], own: Box
) -> tuple[Numbers, list[NDArray[np.int64]]]:
    """Return the edges (m, 2), sorted, and for each map their statistics (m, 12).

    Pairs of voxels count whose lower one is in the box `own` and of which none is 0.  Columns as in `STATISTICS`.
    """
    bits = max(1, int(labels.max(initial=0)).bit_length())
    if 2 * bits + _VALUE_BITS > 64:
        raise DataError(f"a tile has {labels.max()} fragments, too many for its graph: use larger fragments or tiles")
    keys, lower, upper = _contacts(labels, own, bits)
    stats = []
    edges = np.zeros((0, 2), np.uint64)
    for values in maps:
        flat = values.ravel()
        value = flat.take(lower).astype(np.uint64) + flat.take(upper)
        key = np.sort(keys | value << np.uint64(1))
        edge = key >> np.uint64(_VALUE_BITS)
        first = np.flatnonzero(np.concatenate([np.ones(min(1, len(edge)), bool), edge[1:] != edge[:-1]]))
        edge = edge[first]
        edges = np.stack([edge >> np.uint64(bits), edge & np.uint64((1 << bits) - 1)], axis=1)
        stats.append(_summary(key, first))
    return edges, stats


def _contacts(labels: NDArray[np.uint32], own: Box, bits: int) -> tuple[Numbers, NDArray[np.intp], NDArray[np.intp]]:
    """Return, of all pairs of voxels that are on an edge, the key without its value, and both places."""
    _, ny, nx = labels.shape
    every, steps = labels.ravel(), (ny * nx, nx, 1)
    keys, lowers, uppers = [], [], []
    for axis in range(3):
        step = tuple(int(a == axis) for a in range(3))
        here = own.clip(Box.of(labels.shape).shift([-s for s in step]))
        one, other = labels[here.slices], labels[here.shift(step).slices]
        differ = np.zeros(labels.shape, bool)
        np.not_equal(one, other, out=differ[here.slices])
        lower = np.flatnonzero(differ)
        upper = lower + steps[axis]
        first, second = every.take(lower), every.take(upper)
        both = (first > 0) & (second > 0)
        if not both.all():
            lower, upper, first, second = lower[both], upper[both], first[both], second[both]
        key = np.minimum(first, second).astype(np.uint64) << np.uint64(bits)
        key |= np.maximum(first, second)
        keys.append((key << np.uint64(_VALUE_BITS)) | np.uint64(axis == 0))
        lowers.append(lower)
        uppers.append(upper)
    return np.concatenate(keys), np.concatenate(lowers), np.concatenate(uppers)


def _summary(key: Numbers, first: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the statistics of sorted keys, of which each edge's begin at `first`."""
    if not len(first):
        return np.zeros((0, len(STATISTICS)), np.int64)
    value = (key >> np.uint64(1) & np.uint64(511)).astype(np.int64)
    across = (key & np.uint64(1)).astype(np.int64)
    pairs = np.diff(first, append=len(key))
    ranks = [first + (q * (pairs - 1)).astype(np.intp) for q in _QUANTILES]

    def total(each: NDArray[np.int64]) -> NDArray[Any]:
        return np.add.reduceat(each, first)

    columns = [pairs, total(value), total(value * value), *(value[rank] for rank in ranks)]
    return np.stack([*columns, total(across), total(value * across)], axis=1).astype(np.int64)


def fragment_ids(grid: Grid, cell: int, count: int) -> Numbers:
    """Return the ids of a tile's fragments in the order of their dense numbers."""
    return np.arange(1, count + 1, dtype=np.uint64) + np.uint64(first_id(grid, cell))
