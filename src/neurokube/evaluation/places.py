"""Where the parts of a segment meet, found block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector
from ..volumes.volume import Nanometres
from .contingency import Labels
from .pairs import PairedBlocks, as_labels

Pair = tuple[int, int]
"""A predicted segment and a truth body, and so the voxels that are of both."""

PARTS = 8
"""Parts that are looked at, a power of two."""

Codes = NDArray[np.uint32]
"""(k + 1) * 8 + n for the n-th part of what is sought k-th, or 0; shape (z, y, x)."""

_GAP = 120.0
"""Parts count as close up to this many nanometres: where membranes are labelled 0, they come between."""

_GAP_VOXELS = 16
"""And up to this many voxels, which blocks have to read beyond their end."""


Meeting = Literal["touch", "near", "apart"]


class Place(NamedTuple):
    """A voxel (z, y, x), which part the first one meets there, and how."""

    voxel: Vector
    part: int
    meeting: Meeting


def find_places(pairs: PairedBlocks, sought: Sequence[Sequence[Sequence[Pair]]]) -> list[list[Place]]:
    """Return a place for each that is sought of each group: where its first part meets another.

    What is sought is given by its two or more parts, of which the first eight are looked at.  The place is where
    the first touches another across a face, the earliest of those that it touches.  Where it touches none, it is
    halfway between voxels that lie closest to each other along an axis, with at most 120 nm and 16 voxels from one
    to the other; and where there are none either, a voxel of the second part.  Of all such voxels it is the nearest
    to their middle.

    All parts must occur, and within a group none twice.  Takes a pass over all blocks and one over those where
    candidates are, and holds a block and the numbers of blocks.  The places do not depend on the blocks.
    """
    if not any(sought):
        return [[] for _ in sought]
    steps = _steps(pairs.truth.spec.voxel_size)
    groups = [_Group(wanted, steps, pairs.truth.spec.voxel_size) for wanted in sought]
    z, y, x = (max(by for step in steps for along, by in step if along == axis) for axis in range(3))
    for narrowing in (False, True):
        cells = sorted(set().union(*(g.cells for g in groups))) if narrowing else range(len(pairs.grid))
        for cell, predicted, true in pairs.read("places", cells, (z, y, x)):
            runs = _Runs.of(as_labels(pairs.prediction, predicted), as_labels(pairs.truth, true))
            for group in groups:
                group.look(cell, pairs.grid.box(cell), runs, narrowing=narrowing)
    return [group.places() for group in groups]


class _Runs(NamedTuple):
    """The labels of a block run by run in the order of its voxels, as neighbours mostly have the same."""

    prediction: Labels
    truth: Labels
    lengths: NDArray[np.intp]
    shape: Vector

    @classmethod
    def of(cls, prediction: Labels, truth: Labels) -> "_Runs":
        z, y, x = prediction.shape
        p, t = prediction.ravel(), truth.ravel()
        starts = np.flatnonzero(np.concatenate([[True], (p[1:] != p[:-1]) | (t[1:] != t[:-1])]))
        return cls(p[starts], t[starts], np.diff(starts, append=p.size), (z, y, x))


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
    """What shares no parts, so that one array of codes holds it all.

    Candidates are those of a part other than the first, by its code.  Their rank is the number of the step from
    the first part to it, or, as the last, the number of steps, for a voxel of the part itself.
    """

    def __init__(
        self, sought: Sequence[Sequence[Pair]], steps: Sequence[Sequence[tuple[int, int]]], size: Nanometres
    ) -> None:
        self._steps, self._size, self._count = steps, np.array(size), len(sought)
        coded = [((k + 1) * PARTS + n, pair) for k, parts in enumerate(sought) for n, pair in enumerate(parts[:PARTS])]
        self._best = {code: _Candidates(len(steps)) for code, _ in coded if code % PARTS}
        wanted = np.array([pair for _, pair in coded], np.uint64).reshape(-1, 2)
        self._segments, column = np.unique(wanted[:, 0], return_inverse=True)
        self._bodies, row = np.unique(wanted[:, 1], return_inverse=True)
        # a row and a column more, of zeros, for labels that are not sought
        self._codes = np.zeros((self._segments.size + 1, self._bodies.size + 1), np.uint32)
        self._codes[column, row] = [code for code, _ in coded]

    @property
    def cells(self) -> set[int]:
        """The cells in which candidates are."""
        return set().union(*(self._best[code].cells for code in self._chosen()))

    def places(self) -> list[Place]:
        """Return the places found."""
        found = []
        for code in self._chosen():
            z, y, x = self._best[code].nearest[1]
            found.append(Place((z, y, x), code % PARTS, _MEETINGS[self._meeting(self._best[code].rank)]))
        return found

    def _meeting(self, rank: int) -> int:
        return 0 if rank == 0 else 1 if rank < len(self._steps) else 2

    def _chosen(self) -> list[int]:
        """Return which part of each that is sought the first one meets."""
        of = [range((k + 1) * PARTS, (k + 2) * PARTS) for k in range(self._count)]
        return [
            min((c for c in codes if c in self._best), key=lambda c: (self._meeting(self._best[c].rank), c))
            for codes in of
        ]

    def look(self, cell: int, own: Box, runs: _Runs, *, narrowing: bool) -> None:
        """Look for candidates whose lower voxel is in the box `own`; `narrowing`, for the nearest to their middle."""
        of_runs = self._codes[_position(self._segments, runs.prediction), _position(self._bodies, runs.truth)]
        present = set(np.unique(of_runs).tolist()) - {0}
        if not present:
            return
        codes: Codes = np.repeat(of_runs, runs.lengths).reshape(runs.shape)
        inside = Box.of(own.shape)
        chosen = set(self._chosen()) if narrowing else set()
        for rank in range(len(self._steps) + 1):
            wanted = self._wanted(rank, present)
            if narrowing:
                wanted = {c for c in wanted & chosen if self._best[c].rank == rank and cell in self._best[c].cells}
            if not wanted:
                continue
            for who, voxels in self._candidates(codes, inside, rank, wanted):
                for code in wanted.intersection(who.tolist()):
                    found = voxels[who == code] + np.array(own.start)
                    self._narrow(code, found) if narrowing else self._add(code, rank, cell, found)

    def _wanted(self, rank: int, present: set[int]) -> set[int]:
        """Return which parts in a block can have candidates of a rank that are of use."""
        others = {code for code in present if code % PARTS}
        if rank < len(self._steps):
            others = {code for code in others if code - code % PARTS in present}
        # what cannot become the choice need not be looked for
        chosen = {code // PARTS: (self._meeting(self._best[code].rank), code) for code in self._chosen()}
        return {
            code
            for code in others
            if self._best[code].rank >= rank and (self._meeting(rank), code) <= chosen[code // PARTS]
        }

    def _candidates(
        self, codes: Codes, inside: Box, rank: int, wanted: set[int]
    ) -> Iterator[tuple[Codes, NDArray[np.intp]]]:
        """Yield candidates: of which parts they are, (n,), and their voxels within the block, (n, 3)."""
        is_wanted = np.zeros((self._count + 1) * PARTS, bool)
        is_wanted[list(wanted)] = True
        if rank == len(self._steps):
            own = codes[inside.slices]
            voxels = np.nonzero(is_wanted[own])
            yield own[voxels], np.stack(voxels, axis=1)
            return
        for axis, by in self._steps[rank]:
            z, y, x = (by * (k == axis) for k in range(3))
            lower = inside.clip(Box.of(codes.shape).shift((-z, -y, -x)))
            here, there = codes[lower.slices], codes[lower.shift((z, y, x)).slices]
            voxels = np.nonzero(here != there)
            one, other = here[voxels], there[voxels]
            part = np.maximum(one, other)
            # the first part of what is sought has the lowest code of it
            meets = is_wanted[part] & (np.minimum(one, other) == part // PARTS * PARTS)
            yield part[meets], np.stack(voxels, axis=1)[meets] + np.array((z // 2, y // 2, x // 2))

    def _add(self, code: int, rank: int, cell: int, voxels: NDArray[np.intp]) -> None:
        best = self._best[code]
        if rank > best.rank:
            return
        if rank < best.rank:
            best = self._best[code] = _Candidates(rank)
        best.count += len(voxels)
        best.total += voxels.sum(axis=0)
        best.cells.add(cell)

    def _narrow(self, code: int, voxels: NDArray[np.intp]) -> None:
        best = self._best[code]
        distance = (((voxels - best.total / best.count) * self._size) ** 2).sum(axis=1)
        z, y, x = voxels.T
        first = np.lexsort((x, y, z, distance))[0]
        best.nearest = min(best.nearest, (float(distance[first]), voxels[first].tolist()))


_MEETINGS: tuple[Meeting, ...] = ("touch", "near", "apart")


def _position(names: Labels, labels: Labels) -> NDArray[np.intp]:
    """Return the position of each label among sorted names, or their number where it is none of them."""
    at = np.searchsorted(names, labels)
    return np.where(names[np.minimum(at, names.size - 1)] == labels, at, names.size) if names.size else at
