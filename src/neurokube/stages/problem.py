"""A multicut problem in parts: what blocks keep of it, and how parts are put together, contracted and solved.

A node is named by the id of its first fragment, at every level: ids are unique without any reduce, and tell the
tile, and so the block, that the node is of.  Values along edges are exact (see `costs`), so that a contracted edge is
the same in whatever order its parts were added.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .solvers import SolverName, solve

Ids = NDArray[np.uint64]
Values = NDArray[np.float64]

COST, WEIGHT, PAIRS, SUM = 0, 1, 2, 3
"""Columns of the values of an edge: its cost, by how much the cost falls where the logarithm of the odds of a boundary
rises by 1, its voxel pairs, and the sum of the boundary map over them."""


@dataclass(frozen=True)
class Part:
    """What a block keeps of a problem.

    nodes          (n,)    ids, ascending
    sizes          (n,)    their voxels
    edges          (m, 2)  ids; pairs of which one is in the block
    values         (m, 4)  see `COST`
    lifted         (k, 2)  ids of nodes that need not touch
    lifted_costs   (k,)    cost of parting them
    """

    nodes: Ids
    sizes: NDArray[np.int64]
    edges: Ids
    values: Values
    lifted: Ids
    lifted_costs: Values

    @classmethod
    def together(cls, parts: Sequence["Part"]) -> "Part":
        """Put parts together: nodes in the order of their ids, one edge a pair."""
        nodes = np.concatenate([p.nodes for p in parts])
        order = np.argsort(nodes)
        edges, values = summed(np.concatenate([p.edges for p in parts]), np.concatenate([p.values for p in parts]))
        lifted, costs = summed(
            np.concatenate([p.lifted for p in parts]), np.concatenate([p.lifted_costs for p in parts])
        )
        return cls(nodes[order], np.concatenate([p.sizes for p in parts])[order], edges, values, lifted, costs)

    def within(self, nodes: Ids) -> "Part":
        """Return the part on some of the nodes, ascending, and on the edges between them."""
        inner, lifted = has(nodes, self.edges).all(1), has(nodes, self.lifted).all(1)
        sizes = self.sizes[np.searchsorted(self.nodes, nodes)]
        return Part(nodes, sizes, self.edges[inner], self.values[inner], self.lifted[lifted], self.lifted_costs[lifted])

    def neighbourhood(self, nodes: Ids, steps: int) -> Ids:
        """Return the nodes of this part that some of them lead to over at most `steps` edges, and they themselves."""
        found = np.isin(self.nodes, nodes)
        ends = np.searchsorted(self.nodes, self.edges)
        known = has(self.nodes, self.edges).all(1)
        first, second = ends[known].T
        for _ in range(steps):
            touched = found.copy()
            touched[second[found[first]]] = True
            touched[first[found[second]]] = True
            found = touched
        return self.nodes[found]

    def solve(self, solvers: Sequence[SolverName], margin: float = 0.0) -> Ids:
        """Return a label for each node, (n,), as if the log-odds of all boundaries were higher by `margin`.

        Edges must be between the part's own nodes.
        """
        edges = np.searchsorted(self.nodes, self.edges).astype(np.uint64)
        lifted = np.searchsorted(self.nodes, self.lifted).astype(np.uint64)
        costs = self.values[:, COST] - margin * self.values[:, WEIGHT]
        return solve(len(self.nodes), edges, costs, solvers, lifted, self.lifted_costs)


def has(nodes: Ids, ids: Ids) -> NDArray[np.bool_]:
    """Return which ids are among the nodes, ascending."""
    if not len(nodes):
        return np.zeros(ids.shape, bool)
    found: NDArray[np.bool_] = nodes[np.minimum(np.searchsorted(nodes, ids), len(nodes) - 1)] == ids
    return found


def summed(pairs: Ids, values: Values) -> tuple[Ids, Values]:
    """Return each pair of different ids once, the lower id first, in ascending order, with the sum of its values."""
    pairs = np.sort(pairs, axis=1)
    apart = pairs[:, 0] != pairs[:, 1]
    pairs, values = pairs[apart], values[apart]
    if not len(pairs):
        return pairs, values
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    first = np.flatnonzero(np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(1)]))
    return pairs[first], np.add.reduceat(values[order], first, axis=0)


def joined(nodes: Ids, pairs: Ids) -> Ids:
    """Return for each of the nodes, ascending, the first of all that pairs of them lead to."""
    from bioimage_cpp.utils import UnionFind

    sets = UnionFind(len(nodes))
    sets.merge(np.searchsorted(nodes, pairs).astype(np.uint64))
    _, first, number = np.unique(sets.element_labeling(), return_index=True, return_inverse=True)
    return nodes[first[number]] if len(nodes) else nodes


def lookup(ids: Ids, tables: Iterable[Ids]) -> Ids:
    """Return what tables, (n, 2) with ascending first columns, have in their second for ids; ids in none stay."""
    found = ids.copy()
    for table in tables:
        known = has(table[:, 0], ids)
        found[known] = table[np.searchsorted(table[:, 0], ids[known]), 1]
    return found


def absorb_small(part: Part, segments: Ids, smallest: int) -> Ids:
    """Return the segments, (n,), with those under `smallest` voxels joined to a neighbour, again and again.

    A small segment joins the neighbour with the lowest mean boundary between them; one that has no neighbour stays.
    """
    if smallest <= 0 or not len(part.edges):
        return segments
    labels, where = np.unique(segments, return_inverse=True)
    sizes = np.bincount(where, part.sizes)
    pairs, values = summed(where[np.searchsorted(part.nodes, part.edges)].astype(np.uint64), part.values)
    names = np.arange(len(sizes), dtype=np.uint64)
    while True:
        small = sizes[pairs] < smallest
        if not small.any():
            break
        one = np.concatenate([pairs[small[:, 0]], pairs[small[:, 1]][:, ::-1]])
        along = np.concatenate([values[small[:, 0]], values[small[:, 1]]])
        order = np.lexsort((one[:, 1], along[:, SUM] / along[:, PAIRS], one[:, 0]))
        segment, first = np.unique(one[order, 0], return_index=True)
        first_of = joined(np.arange(len(sizes), dtype=np.uint64), np.stack([segment, one[order[first], 1]], axis=1))
        sizes = np.bincount(first_of, sizes, len(sizes))
        names = first_of[names]
        pairs, values = summed(first_of[pairs], values)
    merged: Ids = labels[names[where]]
    return merged


def consecutive(segments: Ids) -> Ids:
    """Return segments, (n,), numbered from 1 in the order of their first nodes."""
    _, first, where = np.unique(segments, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.uint64)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1, dtype=np.uint64)
    return rank[where.ravel()]
