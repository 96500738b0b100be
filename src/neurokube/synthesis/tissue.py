"""A piece of tissue, asked at points: which cell is here, how far is its membrane, what organelle."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

import numpy as np
from bioimage_cpp.distance import distance_transform
from numpy.typing import NDArray

from . import organelles, synapses
from .cytoskeleton import bundles
from .neurites import THICKEST, THINNEST, Balls, Neurites, Points

Distances = NDArray[np.float32]
Indices = NDArray[np.int32]

_CORNERS = 0.99  # how far around a point to look for other cells, in nodes
_AROUND = 3  # nodes that those corners can fall on, along an axis
_SPARE = 2  # nodes around the box
_FAR = np.float32(1e6)
_LARGE = 24  # nodes; balls of a larger radius are few


ORGANELLES = frozenset({"mitochondrion", "vesicle", "cloud", "synapse", "pedestal", "nucleus"})
"""What a tissue can hold beside cells."""


@dataclass(frozen=True)
class Density:
    """Shares of the sites that hold an organelle, from 0 to 1."""

    mitochondria: float = 0
    vesicles: float = 0
    synapses: float = 0
    microtubules: float = 0


@dataclass(frozen=True)
class Near:
    """The nearest organelle of a kind at n points, each array of shape (n,).

    `distance` (nm) from its surface, or, for synapses, from its middle, 1e6 where far off; `index` of the
    instance in `Tissue.instances` or `Tissue.synapses`, of meaning only where near.
    """

    distance: Distances
    index: Indices


@dataclass(frozen=True)
class Sample:
    """What is at n points, each array of shape (n,).

    `cell` and `neighbour`, the nearest other cell, or the cell itself where none is near, are indices into
    `Tissue.cells`; distances are in nm, negative inside, 1e6 where far off, and that to the nearest membrane
    has no sign.
    """

    cell: Indices
    neighbour: Indices
    membrane: Distances
    organelles: dict[str, Near]


class Tissue:
    """The tissue in a box (nm), known at any point of it; `cells` are the ids of its cells.

    A point belongs to the cell to whose balls it is nearest, measured from their surfaces (an additively
    weighted Voronoi diagram): so neurites keep their calibre and no space is left over.  A grid of nodes
    holds the ball nearest to each, found by a distance transform; a point then decides exactly between the
    balls of the nodes around it.

    Mitochondria and vesicles keep `gap` nm from membranes.  Of `ORGANELLES`, those in `wanted` are made.
    """

    def __init__(
        self,
        neurites: Neurites,
        low: Points,
        high: Points,
        *,
        density: Density,
        gap: float,
        wanted: Collection[str] = ORGANELLES,
    ) -> None:
        self._pitch = neurites.diameter / 12
        start = np.floor(low / self._pitch).astype(int) - _SPARE
        self._low = start * self._pitch
        self._shape = np.ceil(high / self._pitch).astype(int) + _SPARE - start
        high = self._low + self._shape * self._pitch
        halo, rim = 11, organelles.margin(neurites, gap)
        if "synapse" in wanted:
            rim = max(rim, synapses.reach(neurites) + synapses.LARGEST)
        while True:
            rim = max(rim, halo * self._pitch + THICKEST * neurites.diameter)
            balls, places = neurites.balls(self._low - rim, high + rim)
            bodies = neurites.bodies(self._low - rim, high + rim)
            balls = Balls.joined(balls, bodies)
            places = np.concatenate([places, np.full((len(bodies), 4), -1.0)])
            nodes, furthest = self._nearest(balls, halo, THINNEST * neurites.diameter)
            # a node whose ball is nearer than the end of the halo has none nearer beyond it
            if furthest <= halo * self._pitch:
                break
            halo *= 2
        self._keep(balls, nodes)
        self._bundles = bundles(neurites, balls, places, density.microtubules)
        self._hold(neurites, balls, places, bodies, density, gap, wanted)

    def _hold(
        self,
        neurites: Neurites,
        balls: Balls,
        places: Points,
        bodies: Balls,
        density: Density,
        gap: float,
        wanted: Collection[str],
    ) -> None:
        made: dict[str, Balls] = {}
        spare = 2 * self._pitch  # how far around them organelles are drawn
        box = (self._low - spare, self._low + self._shape * self._pitch + spare)
        if {"mitochondrion", "vesicle", "cloud"} & set(wanted):
            made["mitochondrion"] = organelles.mitochondria(neurites, balls, places, density.mitochondria, gap, *box)
        held, home = organelles.clusters(neurites, balls, places, density.vesicles, gap)
        if {"vesicle", "cloud"} & set(wanted):
            made["vesicle"], made["cloud"] = organelles.vesicles(
                neurites, balls, held, home, gap, made["mitochondrion"], *box
            )
        if "synapse" in wanted:
            self.synapses = synapses.synapses(neurites, balls, held, density.synapses, *box)
            s = self.synapses
            made["synapse"] = Balls(s.positions, s.radii, s.presynaptic, s.ids)
            pedestals = np.full(len(s), synapses.PEDESTAL)
            made["pedestal"] = Balls(s.positions + s.into * synapses.PEDESTAL, pedestals, s.presynaptic, s.ids)
        if "nucleus" in wanted:
            made["nucleus"] = organelles.nuclei(bodies)
        self.instances = {name: found.instances for name, found in made.items()}
        self._organelles = {name: self._near(found) for name, found in made.items() if len(found) and name in wanted}

    def _keep(self, balls: Balls, nodes: Indices) -> None:
        from scipy.ndimage import maximum_filter, minimum_filter

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
        nearest = self._nearest_nodes(point)
        cell = self._cells_of_nodes.take(nearest)
        neighbour, membrane = cell.copy(), np.full(cell.shape, _FAR)
        border = np.flatnonzero(self._border.take(nearest))
        cell[border], neighbour[border], membrane[border] = self._decide(
            tuple(p[border] for p in point), nearest[border]
        )
        found = {}
        for name, (lookup, nodes) in self._organelles.items():
            ball = nodes.take(nearest)
            distance = np.full(cell.shape, _FAR)
            some = np.flatnonzero(ball >= 0)
            measure = lookup.centre if name == "synapse" else lookup.surface
            distance[some] = measure(ball[some], *(p[some] for p in point))
            found[name] = Near(distance, ball)
        absent = Near(np.full(cell.shape, _FAR), np.full(cell.shape, -1, np.int32))
        found |= dict.fromkeys(ORGANELLES - found.keys(), absent)
        return Sample(cell, neighbour, membrane, found)

    def microtubules(self, cell: Indices, z: Distances, y: Distances, x: Distances) -> Distances:
        """Return how far (nm) points of known cells, given as for `sample`, are from a microtubule's middle."""
        nearest = self._nearest_nodes((z, y, x))
        ball = self._nodes.take(nearest)
        distance = np.full(ball.shape, _FAR)
        some = np.flatnonzero((self._bundles.filled.take(ball) > 0) & (self._cells_of_nodes.take(nearest) == cell))
        ball = ball[some]
        distance[some] = self._bundles.distance(ball, self._balls.offset(ball, z[some], y[some], x[some]))
        return distance

    def _nearest_nodes(self, point: tuple[Distances, ...]) -> NDArray[np.int64]:
        z, y, x = self._nodes_beside(point, 0)
        return np.asarray(z + y + x)

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

    def _decide(self, point: tuple[Distances, ...], nearest: NDArray[np.int64]) -> tuple[Indices, Indices, Distances]:
        """Return the cell at points near a border, the one beyond it, and how far (nm) the border is."""
        sides = zip(*(self._nodes_beside(point, side) for side in (-_CORNERS, _CORNERS)), strict=True)
        nodes = np.stack([nearest, *(z + y + x for z, y, x in product(*sides))])
        cells = self._cells_of_nodes.take(nodes)
        cell, membrane = cells[0].copy(), np.full(cells.shape[1], _FAR)
        neighbour = cell.copy()
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
        cell[contested], neighbour[contested] = own, cells[second, columns]
        membrane[contested] = (surface[second, columns] - nearest_surface) / steepness
        return cell, neighbour, membrane

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

    def offset(self, ball: Indices, z: Distances, y: Distances, x: Distances) -> tuple[Distances, ...]:
        """Return where points lie, counted from the centre of their ball."""
        return z - self._z.take(ball), y - self._y.take(ball), x - self._x.take(ball)

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
    large = size > _LARGE
    pad = int(size[~large].max(initial=0))
    padded = shape + 2 * pad
    grid = np.full(int(np.prod(padded)), far)
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    centre = np.rint((balls.centres - low) / pitch).astype(np.int64)
    rest = (balls.centres - low - centre * pitch).astype(np.float32)
    centre += pad
    # whole or not at all: what is left out reaches no node that is returned
    whole = ((centre >= size[:, None]) & (centre < padded - size[:, None])).all(1) & ~large
    for n in np.unique(size[whole]):
        cube = np.stack(np.meshgrid(*[np.arange(-n, n + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
        stencil = cube[(cube**2).sum(1) <= (n + 0.9) ** 2]
        offsets = (stencil * pitch).astype(np.float32).T
        members = np.flatnonzero(whole & (size == n))
        for chunk in np.array_split(members, -(-len(members) * len(stencil) // 200_000)):
            squared = (rest[chunk] ** 2).sum(1)[:, None] + (offsets**2).sum(0) - 2 * rest[chunk] @ offsets
            distance = np.sqrt(np.maximum(squared, 0))
            rank = _rank(distance - balls.radii[chunk, None], chunk[:, None])
            node = (centre[chunk] @ strides)[:, None] + stencil @ strides
            hit = distance <= extent[chunk, None]
            np.minimum.at(grid, node[hit], rank[hit])
    inner = grid.reshape(padded)[tuple(slice(pad, pad + n) for n in shape)]
    for ball in np.flatnonzero(large):
        offsets = [(np.arange(n) * pitch + a - c) ** 2 for n, a, c in zip(shape, low, balls.centres[ball], strict=True)]
        distance = np.sqrt(offsets[0][:, None, None] + offsets[1][:, None] + offsets[2])
        rank = np.where(distance <= extent[ball], _rank(distance - balls.radii[ball], ball), far)
        np.minimum(inner, rank, out=inner)
    return np.where(inner == far, -1, inner & 0xFFFFFFFF).astype(np.int32)


def _rank(surface: NDArray[np.floating], ball: NDArray[np.int64] | np.signedinteger) -> NDArray[np.int64]:
    """Return a number that sorts balls by how far (nm) their surface is, and then by their index."""
    return np.asarray(((surface + 65536) * 64).astype(np.int64) << 32 | ball)
