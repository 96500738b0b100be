"""Where two parts of a segment meet, found block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector
from ..volumes.volume import Nanometres
from .contingency import Contingency, Labels
from .pairs import PairedBlocks, as_labels

Codes = NDArray[np.uint32]
"""0, or, of what is sought k-th, 2k + 2 in its first part and 2k + 3 in its second; shape (z, y, x)."""

Pair = tuple[int, int]
"""A predicted segment and a truth body."""

_GAP = 120.0
"""Parts count as close up to this many nanometres: where membranes are labelled 0, they come between."""

_GAP_VOXELS = 16
"""And up to this many voxels, which blocks have to read beyond their end."""


class Sought(NamedTuple):
    """Two parts, each the voxels that the prediction and the truth label so."""

    first: Pair
    second: Pair


class Place(NamedTuple):
    """A voxel (z, y, x), and whether two parts touch there."""

    voxel: Vector
    touch: bool


def find_places(pairs: PairedBlocks, sought: Sequence[Sequence[Sought]]) -> list[list[Place]]:
    """Return a place for each two parts of each group; within a group no pair of labels is in two of them.

    It is a voxel where the two touch across a face.  Where they nowhere do, it is halfway between voxels that
    lie closest to each other along an axis, with at most 120 nm and 16 voxels from one to the other; and where
    there are none either, a voxel of the second part.  Of all such voxels it is the nearest to their middle.
    All parts must occur.  Takes a pass over all blocks and one over those where candidates are, and holds a
    block and the numbers of blocks.
    """
    steps = _steps(pairs.truth.spec.voxel_size)
    groups = [_Group(wanted, steps, pairs.truth.spec.voxel_size) for wanted in sought]
    if not any(sought):
        return [[] for _ in sought]
    z, y, x = (max(by for step in steps for along, by in step if along == axis) for axis in range(3))
    for narrowing in (False, True):
        cells = sorted(set().union(*(g.cells for g in groups))) if narrowing else range(len(pairs.grid))
        for cell, predicted, true in pairs.read("places", cells, (z, y, x)):
            prediction, truth = as_labels(pairs.prediction, predicted), as_labels(pairs.truth, true)
            table = Contingency.of(prediction, truth)
            for group in groups:
                if present := group.present(table):
                    group.look(cell, pairs.grid.box(cell), prediction, truth, present, narrowing=narrowing)
    return [group.places() for group in groups]


def _steps(voxel_size: Nanometres) -> list[list[tuple[int, int]]]:
    """Return steps as (axis, voxels), those of one length together, the shortest first; touching is the shortest."""
    lengths: dict[float, list[tuple[int, int]]] = {}
    for axis, size in enumerate(voxel_size):
        for by in range(2, min(_GAP_VOXELS, int(_GAP / size)) + 1):
            lengths.setdefault(round(by * size, 3), []).append((axis, by))
    return [[(axis, 1) for axis in range(3)], *(lengths[length] for length in sorted(lengths))]


@dataclass
class _Candidates:
    """The best candidates for a place so far: how good they are, how many, the sum of their voxels, their cells."""

    rank: int
    count: int = 0
    total: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    cells: set[int] = field(default_factory=set)
    nearest: tuple[float, list[int]] = (inf, [])


class _Group:
    """Parts that share no pair of labels, so that one array of codes holds them all.

    A candidate has a rank: the number of the step between the two parts, or, as the last, their number, for a
    voxel of the second part.
    """

    def __init__(self, sought: Sequence[Sought], steps: Sequence[Sequence[tuple[int, int]]], size: Nanometres) -> None:
        self._steps, self._size = steps, np.array(size)
        self._best = [_Candidates(len(steps)) for _ in sought]
        wanted = np.array([pair for both in sought for pair in both], np.uint64).reshape(-1, 2)
        self._segments, column = np.unique(wanted[:, 0], return_inverse=True)
        self._bodies, row = np.unique(wanted[:, 1], return_inverse=True)
        # a row and a column more, of zeros, for labels that are not sought
        self._codes = np.zeros((self._segments.size + 1, self._bodies.size + 1), np.uint32)
        self._codes[column, row] = np.arange(len(wanted)) + 2

    @property
    def cells(self) -> set[int]:
        """The cells in which candidates are."""
        return set().union(*(best.cells for best in self._best))

    def present(self, table: Contingency) -> set[int]:
        """Return the codes of the parts that are in a block, of whose labels the table is."""
        return set(self._coded(table.prediction, table.truth).tolist()) - {0}

    def places(self) -> list[Place]:
        """Return the places found."""
        found = []
        for best in self._best:
            z, y, x = best.nearest[1]
            found.append(Place((z, y, x), best.rank == 0))
        return found

    def look(
        self, cell: int, own: Box, prediction: Labels, truth: Labels, present: set[int], *, narrowing: bool
    ) -> None:
        """Look for candidates whose lower voxel is in the box `own`; `narrowing`, for the nearest to their middle."""
        codes = self._coded(prediction, truth)
        inside = Box.of(own.shape)
        for rank in range(len(self._steps) + 1):
            wanted = self._wanted(cell, rank, present, narrowing)
            if not wanted:
                continue
            for who, voxels in self._candidates(codes, inside, rank):
                for k in wanted.intersection(who.tolist()):
                    found = voxels[who == k] + np.array(own.start)
                    self._narrow(k, found) if narrowing else self._add(k, rank, cell, found)

    def _coded(self, prediction: Labels, truth: Labels) -> Codes:
        columns = _position(self._segments, prediction)
        rows = _position(self._bodies, truth)
        return self._codes[columns, rows]

    def _wanted(self, cell: int, rank: int, present: set[int], narrowing: bool) -> set[int]:
        """Return which of those in a block can have candidates of a rank that are still of use."""
        seen = {code // 2 - 1 for code in present if code % 2}
        if rank < len(self._steps):
            seen = {k for k in seen if 2 * k + 2 in present}
        if narrowing:
            return {k for k in seen if self._best[k].rank == rank and cell in self._best[k].cells}
        return {k for k in seen if self._best[k].rank >= rank}

    def _candidates(self, codes: Codes, inside: Box, rank: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield candidates: whose they are, (n,), and their voxels within the block, (n, 3)."""
        if rank == len(self._steps):
            own = codes[inside.slices]
            yield _listed(own, own % 2 == 1, (0, 0, 0))
            return
        for axis, by in self._steps[rank]:
            z, y, x = (by * (k == axis) for k in range(3))
            lower = inside.clip(Box.of(codes.shape).shift((-z, -y, -x)))
            here, there = codes[lower.slices], codes[lower.shift((z, y, x)).slices]
            yield _listed(here, ((here ^ there) == 1) & (here > 1), (z // 2, y // 2, x // 2))

    def _add(self, k: int, rank: int, cell: int, voxels: NDArray[np.intp]) -> None:
        best = self._best[k]
        if rank > best.rank:
            return
        if rank < best.rank:
            best = self._best[k] = _Candidates(rank)
        best.count += len(voxels)
        best.total += voxels.sum(axis=0)
        best.cells.add(cell)

    def _narrow(self, k: int, voxels: NDArray[np.intp]) -> None:
        best = self._best[k]
        distance = (((voxels - best.total / best.count) * self._size) ** 2).sum(axis=1)
        z, y, x = voxels.T
        first = np.lexsort((x, y, z, distance))[0]
        best.nearest = min(best.nearest, (float(distance[first]), voxels[first].tolist()))


def _position(names: Labels, labels: Labels) -> NDArray[np.intp]:
    """Return the position of each label among sorted names, or their number where it is none of them."""
    at = np.searchsorted(names, labels)
    return np.where(names[np.minimum(at, names.size - 1)] == labels, at, names.size) if names.size else at


def _listed(codes: Codes, where: NDArray[np.bool_], by: Vector) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    voxels = np.argwhere(where)
    return codes[where].astype(np.intp) // 2 - 1, voxels + np.array(by)
