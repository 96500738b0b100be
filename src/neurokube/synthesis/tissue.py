"""A piece of tissue, asked at points: which cell is here, how far is its membrane, what organelle."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from bioimage_cpp.distance import distance_transform
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from . import organelles
from .neurites import THICKEST, THINNEST, Balls, Neurites, Points

Distances = NDArray[np.float32]
Indices = NDArray[np.int32]

_CORNERS = 0.99  # how far around a point to look for other cells, in nodes
_AROUND = 3  # nodes that those corners can fall on, along an axis
_SPARE = 2  # nodes around the box
_FAR = np.float32(1e6)


@dataclass(frozen=True)
class Sample:
    """What is at n points, each of shape (n,).

    `cell` is an index into `Tissue.cells`; distances are in nm, negative inside, 1e6 where far off, and that
    to the nearest membrane has no sign.
    """

    cell: Indices
    membrane: Distances
    mitochondrion: Distances
    vesicle: Distances


class Tissue:
    """The tissue in a box (nm), known at any point of it; `cells` are the ids of its cells.

    A point belongs to the cell to whose balls it is nearest, measured from their surfaces (an additively
    weighted Voronoi diagram): so neurites keep their calibre and no space is left over.  A grid of nodes
    holds the ball nearest to each, found by a distance transform; a point then decides exactly between the
    balls of the nodes around it.

    `mitochondria` and `vesicles` are shares of the sites that hold some; they keep `gap` nm from membranes.
    """

    def __init__(
        self, neurites: Neurites, low: Points, high: Points, *, mitochondria: float, vesicles: float, gap: float
    ) -> None:
        self._pitch = neurites.diameter / 12
        start = np.floor(low / self._pitch).astype(int) - _SPARE
        self._low = start * self._pitch
        self._shape = np.ceil(high / self._pitch).astype(int) + _SPARE - start
        halo, rim = 11, organelles.margin(neurites, gap)
        while True:
            rim = max(rim, halo * self._pitch + THICKEST * neurites.diameter)
            balls, places = neurites.balls(self._low - rim, self._low + self._shape * self._pitch + rim)
            nodes, furthest = self._nearest(balls, halo, THINNEST * neurites.diameter)
            # a node whose ball is nearer than the end of the halo has none nearer beyond it
            if furthest <= halo * self._pitch:
                break
            halo *= 2
        self._keep(balls, nodes)
        held = organelles.mitochondria(neurites, balls, places, mitochondria, gap)
        small = organelles.vesicles(neurites, balls, places, vesicles, gap, held)
        self._organelles = [self._near(held), self._near(small)]

    def _keep(self, balls: Balls, nodes: Indices) -> None:
        self.cells, cell_of_ball = np.unique(balls.cells, return_inverse=True)
        self._balls = _Lookup(balls, self._low)
        self._nodes = nodes.ravel()
        cells = cell_of_ball.astype(np.int32)[nodes]
        self._cells_of_nodes = cells.ravel()
        self._border = (maximum_filter(cells, _AROUND) != minimum_filter(cells, _AROUND)).ravel()

    def _nearest(self, balls: Balls, halo: int, thinnest: float) -> tuple[Indices, float]:
        """Return for each node the index of the ball nearest to it, and the largest distance found (nm)."""
        # to take the same from all radii changes nothing, and leaves less to draw; what is left must be more
        # than half a node's diagonal, for each ball to own a node
        cores = balls.radii - (thinnest - 0.9 * self._pitch)
        drawn = _draw(balls, cores, self._low - halo * self._pitch, self._pitch, self._shape + 2 * halo)
        distance, indices = distance_transform(drawn < 0, return_distances=True, return_indices=True)
        inner = tuple(slice(halo, halo + n) for n in self._shape)
        z, y, x = (i[inner] for i in indices)
        return drawn[z, y, x], float(distance[inner].max()) * self._pitch

    def _near(self, organelle: Balls) -> "tuple[_Lookup, Indices]":
        """Return an organelle's balls and for each node the one in whose reach it is, -1 for none."""
        nodes = _draw(organelle, organelle.radii + 1.5 * self._pitch, self._low, self._pitch, self._shape)
        return _Lookup(organelle, self._low), nodes.ravel()

    def sample(self, z: Distances, y: Distances, x: Distances) -> Sample:
        """Return what is at points, given by three arrays of one shape (n,), in nm from the box's `origin`."""
        point = (z, y, x)
        nearest = np.sum(self._nodes_beside(point, 0), axis=0)
        cell = self._cells_of_nodes.take(nearest)
        membrane = np.full(cell.shape, _FAR)
        border = np.flatnonzero(self._border.take(nearest))
        cell[border], membrane[border] = self._decide(tuple(p[border] for p in point), nearest[border])
        found = []
        for lookup, nodes in self._organelles:
            ball = nodes.take(nearest)
            distance = np.full(cell.shape, _FAR)
            some = np.flatnonzero(ball >= 0)
            distance[some] = lookup.surface(ball[some], *(p[some] for p in point))
            found.append(distance)
        return Sample(cell, membrane, *found)

    @property
    def origin(self) -> Points:
        """The point (nm) from which the points of `sample` are counted."""
        return self._low

    def _nodes_beside(self, point: tuple[Distances, ...], side: float) -> list[NDArray[np.int64]]:
        """Return, for each axis, the part of the index of the node `side` nodes from points."""
        _, ny, nx = self._shape
        scale = np.float32(1 / self._pitch)
        return [
            np.rint(p * scale + np.float32(side)).astype(np.int64) * stride
            for p, stride in zip(point, (ny * nx, nx, 1), strict=True)
        ]

    def _decide(self, point: tuple[Distances, ...], nearest: NDArray[np.int64]) -> tuple[Indices, Distances]:
        """Return the cell at points near a border, and how far (nm) the border is."""
        sides = zip(*(self._nodes_beside(point, side) for side in (-_CORNERS, _CORNERS)), strict=True)
        nodes = np.stack([nearest, *(z + y + x for z, y, x in product(*sides))])
        cells = self._cells_of_nodes.take(nodes)
        cell, membrane = cells[0], np.full(cells.shape[1], _FAR)
        contested = np.flatnonzero((cells != cell).any(0))
        balls, cells = self._nodes.take(nodes.take(contested, 1)), cells.take(contested, 1)
        z, y, x = (p[contested] for p in point)
        surface = self._balls.surface(balls, z, y, x)
        columns = np.arange(len(contested))
        first = surface.argmin(0)
        nearest_surface, own = surface[first, columns], cells[first, columns]
        surface[cells == own] = _FAR
        second = surface.argmin(0)
        steepness = self._steepness(balls[first, columns], balls[second, columns], z, y, x)
        cell[contested], membrane[contested] = own, (surface[second, columns] - nearest_surface) / steepness
        return cell, membrane

    def _steepness(self, one: Indices, other: Indices, z: Distances, y: Distances, x: Distances) -> Distances:
        """Return how fast the lead of one ball over another changes across their border, from 0.3 to 2."""
        a, b = (self._balls.centre(ball, z, y, x) for ball in (one, other))
        between = self._balls.between(one, other)
        squared = (between - (a - b) ** 2) / np.maximum(a * b, np.float32(1))
        return np.asarray(np.sqrt(np.clip(squared, 0.09, 4)), np.float32)


class _Lookup:
    """Distances between points and balls given by index; points count from `origin`."""

    def __init__(self, balls: Balls, origin: Points) -> None:
        self._z, self._y, self._x = (balls.centres - origin).astype(np.float32).T.copy()
        self._radius = balls.radii.astype(np.float32)

    def centre(self, ball: Indices, z: Distances, y: Distances, x: Distances) -> Distances:
        """Return how far points are from the centre of their ball."""
        squared = (self._z.take(ball) - z) ** 2
        squared += (self._y.take(ball) - y) ** 2
        squared += (self._x.take(ball) - x) ** 2
        return np.asarray(np.sqrt(squared, out=squared), np.float32)

    def surface(self, ball: Indices, z: Distances, y: Distances, x: Distances) -> Distances:
        """Return how far points are from the surface of their ball, negative inside."""
        return self.centre(ball, z, y, x) - self._radius.take(ball)

    def between(self, one: Indices, other: Indices) -> Distances:
        """Return the squared distance between the centres of two balls."""
        return np.asarray(sum((c[one] - c[other]) ** 2 for c in (self._z, self._y, self._x)))


def _draw(balls: Balls, extent: Points, low: Points, pitch: float, shape: NDArray[np.int64]) -> Indices:
    """Return for each node of a grid the ball that reaches deepest over it, of `extent` nm drawn; -1 for none."""
    far = np.iinfo(np.int64).max
    size = np.ceil(extent / pitch).astype(int)
    pad = int(size.max(initial=0))
    padded = shape + 2 * pad
    grid = np.full(int(np.prod(padded)), far)
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    centre = np.rint((balls.centres - low) / pitch).astype(np.int64)
    rest = (balls.centres - low - centre * pitch).astype(np.float32)
    centre += pad
    # whole or not at all: what is left out reaches no node that is returned
    whole = ((centre >= size[:, None]) & (centre < padded - size[:, None])).all(1)
    for n in np.unique(size[whole]):
        cube = np.stack(np.meshgrid(*[np.arange(-n, n + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
        stencil = cube[(cube**2).sum(1) <= (n + 0.9) ** 2]
        offsets = (stencil * pitch).astype(np.float32).T
        members = np.flatnonzero(whole & (size == n))
        for chunk in np.array_split(members, -(-len(members) * len(stencil) // 200_000)):
            squared = (rest[chunk] ** 2).sum(1)[:, None] + (offsets**2).sum(0) - 2 * rest[chunk] @ offsets
            distance = np.sqrt(np.maximum(squared, 0))
            rank = ((distance - balls.radii[chunk, None] + 4096) * 64).astype(np.int64) << 32 | chunk[:, None]
            node = (centre[chunk] @ strides)[:, None] + stencil @ strides
            hit = distance <= extent[chunk, None]
            np.minimum.at(grid, node[hit], rank[hit])
    inner = grid.reshape(padded)[tuple(slice(pad, pad + n) for n in shape)]
    return np.where(inner == far, -1, inner & 0xFFFFFFFF).astype(np.int32)
