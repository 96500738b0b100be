"""Graph: the region adjacency graph of the fragments, with statistics of the boundary along each edge.

A fragment never leaves its tile, so each pair of touching voxels belongs to the tile of its lower voxel,
and so does the whole edge between two fragments: tables made tile by tile need no merging, and are the
same however blocks are cut.  (An edge's pairs all lie inside one tile, or across one face of it.)

    tables of a tile t
      edges   (m, 2)  uint64   fragment ids, first < second, sorted
      stats   (m, 5)  int64    pairs, sum, sum of squares, minimum, maximum of the boundary, each value
                               the sum of both voxels (0 to 510), so that all are exact integers
      counts  (2,)    uint64   number of nodes and of edges
    and over all tiles
      offsets (tiles + 1, 2)  uint64   dense number of the tile's first node and first edge

The dense number of a fragment is `offsets[tile, 0] + n - 1`: a prefix sum, nothing to look up.
"""

from collections.abc import Mapping
from math import prod
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Box, Grid
from ..errors import ConfigurationError
from .base import SINGLE, Block, Data, Source, Stage, Step, TableOutput, Target, over_cells, same_grid
from .fragments import first_id


class Graph(Stage):
    """Region adjacency graph with edge statistics."""

    kind: ClassVar[str] = "graph"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("fragments", "boundaries")

    fragments: str = Field("fragments", description="the fragments stage")
    boundaries: str = Field("boundaries", description="the boundary map to measure edges on, 0 to 255")

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan a pass over tiles and the prefix sum."""
        if sources["fragments"].kind != "fragments":
            raise ConfigurationError(f"fragments: '{sources['fragments'].name}' is not a fragments stage; name one")
        fragments = sources["fragments"].volume
        same_grid("fragments", fragments.spec, "boundaries", sources["boundaries"].spec)
        grid = fragments.grid()
        tables = [TableOutput(name, grid) for name in ("edges", "stats", "counts")]
        offsets = TableOutput("offsets", SINGLE)

        def compute(cell: int, box: Box, data: Data) -> None:
            # one voxel more on the upper faces: a pair belongs to the tile of its lower voxel
            outer = Box(box.start, tuple(b + 1 for b in box.stop)).clip(fragments.spec.box)  # type: ignore[arg-type]
            edges, stats = edge_statistics(
                data.volume("fragments").read(outer), data.volume("boundaries").read(outer), Box.of(box.shape)
            )
            data.put("edges", cell, edges)
            data.put("stats", cell, stats)
            nodes = len(data.table("fragments.sizes", cell))
            data.put("counts", cell, np.array([nodes, len(edges)], np.uint64))

        def sum_up(block: Block, data: Data) -> None:
            counts = np.zeros((len(grid) + 1, 2), np.uint64)
            for cell in range(len(grid)):
                counts[cell + 1] = data.table("counts", cell)
            data.put("offsets", 0, np.cumsum(counts, axis=0, dtype=np.uint64))

        return [
            Step("edges", grid, tuple(Target(t) for t in tables), over_cells(grid, compute)),
            Step("offsets", SINGLE, (Target(offsets),), sum_up),
        ]


def edge_statistics(
    fragments: NDArray[np.uint64], boundaries: NDArray[np.uint8], own: Box
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the edges (m, 2) and their statistics (m, 5) of the voxel pairs whose lower voxel is in `own`.

    Pairs with fragment 0 do not count.  Columns as in the module's docstring.
    """
    from bioimage_cpp.graph.distributed import block_edge_map_stats

    doubled = boundaries.astype(np.float64) * 2
    edges, moments = block_edge_map_stats(fragments, doubled, own.start, own.shape, number_of_threads=1)
    real = edges[:, 0] != 0
    edges, (count, mean, m2, low, high) = edges[real], moments[real].T
    # the library keeps running means; sums of integers are exact again once rounded
    total = np.rint(count * mean)
    squares = np.rint(m2 + count * mean * mean)
    return edges, np.stack([count, total, squares, low, high], axis=1).astype(np.int64)


class WholeGraph(NamedTuple):
    """The graph in memory, with dense node numbers.

    `edges` is (m, 2) uint64, `stats` (m, 5) int64, `sizes` (n,) uint64.
    """

    edges: NDArray[np.uint64]
    stats: NDArray[np.int64]
    sizes: NDArray[np.uint64]


def load_graph(grid: Grid, data: Data) -> WholeGraph:
    """Read the graph whole; `data` has the role `graph` and the fragments' sizes as `fragments.sizes`."""
    offsets = data.table("graph.offsets", 0)
    edges, stats, sizes = [], [], []
    for cell in range(len(grid)):
        edges.append(dense_numbers(data.table("graph.edges", cell), grid, offsets))
        stats.append(data.table("graph.stats", cell))
        sizes.append(data.table("fragments.sizes", cell))
    return WholeGraph(np.concatenate(edges), np.concatenate(stats), np.concatenate(sizes))


def dense_numbers(ids: NDArray[np.uint64], grid: Grid, offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the dense number, from 0, of fragment ids (none of them 0)."""
    tile, number = np.divmod(ids - np.uint64(1), np.uint64(prod(grid.cell)))
    numbers: NDArray[np.uint64] = offsets[tile, 0] + number
    return numbers


def fragment_ids(grid: Grid, cell: int, count: int) -> NDArray[np.uint64]:
    """Return the ids of a tile's fragments in the order of their dense numbers."""
    return np.arange(1, count + 1, dtype=np.uint64) + np.uint64(first_id(grid, cell))
