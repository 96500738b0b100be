"""What a forest sees of an edge of the graph: numbers on scales that do not depend on tiles, nor on which fragment
comes first.

    of the boundary map, and with `NAME.` before it of each further channel or filter, 0 to 1
      mean, deviation            of the values along the edge
      lowest, q10, ..., highest  quantiles
    of the contact
      contact                    logarithm of its area in nm^2
      across_z                   share of its voxel pairs that lie across z
    of the two fragments
      smaller, larger            logarithms of their volumes in nm^3
      relative_contact           logarithm of the contact's area over the smaller one's volume to the power of 2/3

The integer statistics of the graph are exact, so features are the same bits however the volume is cut into blocks.
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..blocks import Grid
from ..volumes.volume import Nanometres
from .base import Data
from .graph import STATISTICS

STATS = "stats"
"""The table of the boundary map; further ones are called `stats-NAME`."""

_RANKS = STATISTICS[STATISTICS.index("lowest") : STATISTICS.index("highest") + 1]
_VALUES = ("mean", "deviation", *_RANKS)
_GEOMETRY = ("contact", "across_z", "smaller", "larger", "relative_contact")
_SCALE = 510.0
"""The largest value of a pair of voxels."""


def feature_names(channels: Sequence[str]) -> tuple[str, ...]:
    """Return the features of a graph with further channels and filters of these names, in order."""
    return (*_VALUES, *(f"{name}.{value}" for name in channels for value in _VALUES), *_GEOMETRY)


def edge_features(
    stats: Sequence[NDArray[np.int64]], sizes: NDArray[np.uint64], voxel_size: Nanometres
) -> NDArray[np.float32]:
    """Return the features of edges, (m, f), as `feature_names` orders them.

    `stats` are the statistics (m, 12) of the boundary map and of further channels, in order; `sizes` (m, 2) the voxels
    of both fragments.
    """
    columns = [column for table in stats for column in _of_values(table)]
    z, y, x = voxel_size
    pairs, pairs_z = (stats[0][:, STATISTICS.index(name)].astype(np.float64) for name in ("pairs", "pairs_z"))
    contact = np.log(pairs_z * (y * x) + (pairs - pairs_z) * (z * (y + x) / 2))
    volumes = np.log(np.sort(sizes, axis=1).astype(np.float64) * (z * y * x))
    columns += [contact, pairs_z / pairs, volumes[:, 0], volumes[:, 1], contact - volumes[:, 0] * (2 / 3)]
    return np.stack(columns, axis=1).astype(np.float32)


def _of_values(stats: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    pairs, total, squares = (stats[:, STATISTICS.index(name)] for name in ("pairs", "sum", "squares"))
    # the difference of two large numbers is taken while they are whole
    spread = np.sqrt((squares * pairs - total * total).astype(np.float64)) / pairs
    ranks = [stats[:, STATISTICS.index(name)] / _SCALE for name in _RANKS]
    return [total / (pairs * _SCALE), spread / _SCALE, *ranks]


def read_features(
    cell: int, data: Data, tiles: Grid, channels: Sequence[str], voxel_size: Nanometres
) -> NDArray[np.float32]:
    """Return the features of a tile's edges, (m, f), in the order of its table; roles `graph` and `fragments`."""
    names = (STATS, *(f"{STATS}-{name}" for name in channels))
    stats = [data.table(f"graph.{name}", cell) for name in names]
    return edge_features(stats, _sizes(data.table("graph.edges", cell), data, tiles), voxel_size)


def _sizes(edges: NDArray[np.uint64], data: Data, tiles: Grid) -> NDArray[np.uint64]:
    """Return the voxels of both fragments of edges, (m, 2); the other one may be of a neighbouring tile."""
    tile, number = np.divmod(edges - np.uint64(1), np.uint64(prod(tiles.cell)))
    sizes = np.zeros(edges.shape, np.uint64)
    for home in np.unique(tile).tolist():
        here = tile == home
        sizes[here] = data.table("fragments.sizes", int(home))[number[here]]
    return sizes


def missing_channels(needed: Sequence[str], tables: Mapping[str, object]) -> list[str]:
    """Return the channels that a graph with these tables does not have."""
    return [name for name in needed if f"{STATS}-{name}" not in tables]
