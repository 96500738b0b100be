"""Multicut: which fragments belong together, decided for all at once.

Each edge has a cost: positive where the boundary along it is weak (better joined), negative where it is
strong (better cut).  The multicut is the partition of the graph whose cut edges cost least (Andres et
al., ICCV 2011; Beier et al., Nature Methods 14:101, 2017).  One level here, solved greedily (GAEC) and
improved by Kernighan-Lin moves (Keuper et al., ICCV 2015).
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Grid
from ..errors import ConfigurationError
from .base import SINGLE, Block, Data, Source, Stage, Step, TableOutput, Target
from .graph import WholeGraph, load_graph


class Multicut(Stage):
    """Partition of the fragment graph."""

    kind: ClassVar[str] = "multicut"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("graph", "fragments")

    graph: str = Field("graph", description="the graph stage")
    fragments: str = Field("fragments", description="the fragments stage that the graph was made of")
    bias: float = Field(
        0.72,
        gt=0,
        lt=1,
        description="above 0.5: edges are cut more readily, segments get smaller; below: joined",
    )
    size_weight: float = Field(
        0.8, ge=0, le=1, description="how much more a large contact counts than a small one; 0: all alike"
    )
    smallest: int = Field(
        0, ge=0, description="segments under this many voxels join the neighbour behind the weakest boundary"
    )

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan the one solve."""
        grid = graph_grid(sources)
        labels = TableOutput("segments", grid)

        def compute(block: Block, data: Data) -> None:
            graph = load_graph(grid, data)
            segments = solve(graph, edge_costs(graph.stats, bias=self.bias, size_weight=self.size_weight))
            segments = absorb_small(graph, segments, self.smallest)
            offsets = data.table("graph.offsets", 0)
            for cell in range(len(grid)):
                first, last = int(offsets[cell, 0]), int(offsets[cell + 1, 0])
                data.put("segments", cell, segments[first:last])

        return [Step("multicut", SINGLE, (Target(labels),), compute)]


def graph_grid(sources: Mapping[str, Source]) -> Grid:
    """Return the grid of tiles of a graph.

    Raises:
        ConfigurationError: where `graph` is no graph stage or was made of other fragments.
    """
    graph, fragments = sources["graph"], sources["fragments"]
    if graph.kind != "graph":
        raise ConfigurationError(f"graph: '{graph.name}' is not a graph stage; name one")
    if fragments.kind != "fragments" or fragments.volume.grid() != graph.table("edges").cells:
        raise ConfigurationError(f"fragments: '{fragments.name}' is not what the graph '{graph.name}' was made of")
    return graph.table("edges").cells


def edge_costs(stats: NDArray[np.int64], *, bias: float, size_weight: float) -> NDArray[np.float64]:
    """Return the cost of cutting each edge, (m,): the log-odds of "same cell", plus that of the bias.

    The mean boundary value along the edge, in 0 to 1, is taken as the probability of a membrane; a cost
    is scaled by (voxel pairs / 100) ** (size_weight / 2).
    """
    pairs, total = stats[:, 0].astype(np.float64), stats[:, 1]
    boundary = np.clip(total / (pairs * 510), 0.001, 0.999)
    costs = np.log((1 - boundary) / boundary) + np.log((1 - bias) / bias)
    return costs * (pairs / 100) ** (size_weight / 2)  # type: ignore[no-any-return]


def solve(graph: WholeGraph, costs: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return the segment of each node, (n,), numbered from 1 in the order of their first nodes."""
    from bioimage_cpp.graph import UndirectedGraph
    from bioimage_cpp.graph.multicut import (
        ChainedMulticutSolvers,
        GreedyAdditiveMulticut,
        KernighanLinMulticut,
        MulticutObjective,
    )

    nodes = len(graph.sizes)
    if len(graph.edges) == 0:
        return np.arange(1, nodes + 1, dtype=np.uint64)
    objective = MulticutObjective(UndirectedGraph.from_edges(nodes, graph.edges), costs)
    labels = ChainedMulticutSolvers([GreedyAdditiveMulticut(), KernighanLinMulticut()]).optimize(objective)
    return _numbered(labels)


def absorb_small(graph: WholeGraph, segments: NDArray[np.uint64], smallest: int) -> NDArray[np.uint64]:
    """Return the segments with those under `smallest` voxels joined to a neighbour, again and again.

    A small segment joins the neighbour with the lowest mean boundary between them; one that has no
    neighbour stays.
    """
    while smallest > 0:
        sizes = np.bincount(segments, weights=graph.sizes)
        pairs = segments[graph.edges]
        small = (sizes[pairs] < smallest) & (pairs[:, :1] != pairs[:, 1:])
        if not small.any():
            break
        one = np.concatenate([pairs[small[:, 0]], pairs[small[:, 1]][:, ::-1]])
        stats = np.concatenate([graph.stats[small[:, 0]], graph.stats[small[:, 1]]])
        contacts, where = np.unique(one, axis=0, return_inverse=True)
        count = np.bincount(where.ravel(), weights=stats[:, 0])
        mean = np.bincount(where.ravel(), weights=stats[:, 1]) / count
        order = np.lexsort((contacts[:, 1], mean, contacts[:, 0]))
        segment, first = np.unique(contacts[order, 0], return_index=True)
        segments = _joined(segments, segment, contacts[order[first], 1])
    return _numbered(segments)


def _joined(segments: NDArray[np.uint64], one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    from bioimage_cpp.utils import UnionFind

    sets = UnionFind(int(segments.max()) + 1)
    sets.merge(np.stack([one, other], axis=1))
    return np.asarray(sets.find(segments))


def _numbered(labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
    _, first, where = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.uint64)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1, dtype=np.uint64)
    return rank[where.ravel()]
