"""Skeletons of neurites that fill space, branch, and never meet, each known from the hash of its own place.

Neurites run along the rods of a cubic rod packing: three families of parallel lines, along x, y and z,
so arranged that no two intersect and every line passes its neighbours of the two other families at half
a lattice constant.  The packing is turned, and bent by smooth noise, so that nothing of it is left to see.

A rod is cut into segments a few micrometres long.  At its start, a segment may grow out of one of the
rods that pass there, as a branch, or continue the segment before it.  A segment has a random level and only
grows out of one of a lower level; so it is a matter of a few steps to find the cell it belongs to, and a
cell never reaches further than a few segments.

        ───────────┬──────────────  level 0
                   │   ┌──────────  level 2     one cell
                   └───┴──────────  level 1

Here and there a cell has a body, a large ball on one of its rods.  All rods around are pushed outward, so
that they pass it by and none is cut in two.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from .randomness import SmoothNoise, hashed, stream, uniform

Points = NDArray[np.float64]
Segments = NDArray[np.int64]
"""Shape (4, n): family (direction) of a rod, its two places across, number of the segment along it."""

THINNEST, THICKEST = 0.12, 0.75
"""Bounds of the radius of a neurite's core, in mean diameters."""

_PACKING = 0.72  # mean diameter of a neurite in lattice constants
_SEGMENT = 7  # length of a segment, and the next four, in lattice constants
_STEP = 1 / 12
_GAP = 0.15
_BENDS = ((4.0, 2.6), (1.4, 0.45))  # spacing and scale of the displacement
_BEND_LIMIT = 0.5  # of the noise, 2.5 standard deviations
_REACH = np.sqrt(3) * _BEND_LIMIT * sum(scale for _, scale in _BENDS)
_LEVELS = (0.3, 0.6, 0.85)  # cumulative share of the levels below the highest
_MISSING = 0.3
# by 0.5, 0.7 and 0.3 about z, y and x, so that no rod runs along an axis of the image
_TURN = np.array(
    [
        [0.6712121661589572, -0.3666848775860825, 0.6442176872376908],
        [0.6250863033449454, 0.7471139240255881, -0.22602632124962288],
        [-0.3984235703001899, 0.5544032693597384, 0.730681649935512],
    ]
)
_OFFSET = 1 << 16

AXON, DENDRITE, GLIA = 1, 2, 3
"""Classes of cells."""

_CLASSES = (0.52, 0.87)  # cumulative share of axons, and of dendrites
_CALIBRE = np.array([0, 0.85, 1.35, 0.75])  # of a class, relative
_UNEVEN = np.array([0, 1.0, 0.6, 1.8])  # how much the calibre of a class varies along a neurite

_SOMA_EVERY = 20  # lattice constants between sites of cell bodies
_SOMA_RADIUS = (3.6, 5.0)  # in mean diameters
_PUSHED = 1.75  # how far around a cell body neurites are pushed aside, in radii of it
_SQUEEZED = 1 - 1 / _PUSHED


@dataclass(frozen=True)
class Balls:
    """Balls whose union is a structure: centres (n, 3) in nm, radii in nm, the cell each belongs to.

    `instances` are the ids of the organelles they make up, if any.
    """

    centres: Points
    radii: Points
    cells: NDArray[np.int64]
    instances: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.radii)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> "Balls":
        instances = self.instances[index] if len(self.instances) else self.instances
        return Balls(self.centres[index], self.radii[index], self.cells[index], instances)

    @classmethod
    def joined(cls, *parts: "Balls") -> "Balls":
        """Return the balls of several, without instances."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("centres", "radii", "cells")))

    def inside(self, low: Points, high: Points) -> NDArray[np.bool_]:
        """Return which centres lie in a box."""
        return np.asarray(((self.centres >= low) & (self.centres < high)).all(1), np.bool_)


@dataclass(frozen=True)
class Neurites:
    """The neurites of an unbounded tissue, of a mean `diameter` in nm.

    `somata` is the share of the sites, one a cube of 20 lattice constants, that hold a cell body.
    """

    seed: int
    diameter: float
    somata: float = 0.0

    @property
    def constant(self) -> float:
        """The lattice constant of the rod packing in nm."""
        return self.diameter / _PACKING

    def axis(self, family: NDArray[np.int64]) -> Points:
        """Return the directions (n, 3) in which the rods of families run, before they are bent."""
        return np.asarray(_TURN[family], np.float64)

    def balls(self, low: Points, high: Points) -> tuple[Balls, Points]:
        """Return the balls along the skeletons whose centres lie in a box (nm), and their places on the rods.

        A place, shape (n, 4), is (family, i, j, position along the rod in lattice constants); the family
        is -1 in the bridge between a branch and its parent.
        """
        bodies = self.bodies(low, high, _PUSHED)
        margin = _REACH * self.constant + bodies.radii.max(initial=0)
        segments = self._segments(low - margin, high + margin)
        parents, kinds = self._parents(segments)
        cells = self._cells(segments)
        axes, places = self._axes(segments, kinds, cells, low - margin, high + margin)
        bridges = self._bridges(segments, parents, kinds, cells)
        balls = Balls.joined(axes, bridges)
        places = np.concatenate([places, np.full((len(bridges), 4), -1.0)])
        balls = Balls(self._turn(self._bend(balls.centres)), balls.radii, balls.cells)
        if len(bodies):
            balls, places = self._push(*_finer(balls, places, bodies), bodies)
        inside = balls.inside(low, high)
        return balls[inside], places[inside]

    def classes(self, cells: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the classes of cells: `AXON`, `DENDRITE` or `GLIA`."""
        drawn = uniform(stream(self.seed, "class"), cells)
        return (1 + np.searchsorted(_CLASSES, drawn, side="right")).astype(np.uint8)

    def bodies(self, low: Points, high: Points, reach: float = 1.0) -> Balls:
        """Return the cell bodies that come, grown by a factor of `reach`, into a box (nm)."""
        largest = _SOMA_RADIUS[1] * self.diameter
        corners = np.array(list(product(*zip(low - reach * largest, high + reach * largest, strict=True))))
        corners = corners @ _TURN.T / self.constant
        # of a site, all bodies lie within one lattice constant and the bend
        start = np.floor((corners.min(0) - _REACH - 1) / _SOMA_EVERY).astype(int)
        stop = np.ceil((corners.max(0) + _REACH + 1) / _SOMA_EVERY).astype(int) + 1
        sites = np.stack([g.ravel() for g in np.meshgrid(*map(np.arange, start, stop), indexing="ij")])
        sites = sites[:, uniform(stream(self.seed, "soma"), *sites) < self.somata]
        x, y, z = sites * _SOMA_EVERY
        odd = (y + z) % 2 == 0
        rods = np.stack([np.zeros_like(x), y + odd, z, np.zeros_like(x)])
        position = x + np.round(2 * uniform(stream(self.seed, "soma place"), *sites) - 1)
        hosts = self._containing(rods[:3], position)
        size = uniform(stream(self.seed, "soma size"), *sites)
        radii = self.diameter * (_SOMA_RADIUS[0] + (_SOMA_RADIUS[1] - _SOMA_RADIUS[0]) * size)
        centres = self._turn(self._bend(_on_rod(hosts, position)))
        found = Balls(centres, radii, self._cells(hosts))
        nearest = np.clip(centres, low, high)
        return found[((centres - nearest) ** 2).sum(1) < (reach * radii) ** 2]

    def _push(self, balls: Balls, places: Points, bodies: Balls) -> tuple[Balls, Points]:
        """Return balls moved away from the middles of cell bodies, and made thinner where that crowds them."""
        centres, radii = balls.centres.copy(), balls.radii.copy()
        thinnest = THINNEST * self.diameter
        for middle, radius in zip(bodies.centres, bodies.radii, strict=True):
            offset = centres - middle
            distance = np.sqrt((offset**2).sum(1))
            near = np.flatnonzero(distance < _PUSHED * radius)
            scale = _SQUEEZED + radius / np.maximum(distance[near], 1)
            centres[near] = middle + offset[near] * scale[:, None]
            radii[near] = thinnest + _SQUEEZED * (radii[near] - thinnest)
        return Balls(centres, radii, balls.cells), places

    def _segments(self, low: Points, high: Points) -> Segments:
        """Return the segments that may touch a box of the tissue before it is bent."""
        corners = np.array(list(product(*zip(low, high, strict=True)))) @ _TURN.T / self.constant
        start, stop = np.floor(corners.min(0)).astype(int) - 1, np.ceil(corners.max(0)).astype(int) + 2
        found = []
        for a in range(3):
            b, c = (a + 1) % 3, (a + 2) % 3
            along = np.arange(start[a] // _SEGMENT - 1, stop[a] // _SEGMENT + 2)
            grid = np.meshgrid([a], np.arange(start[b], stop[b]), np.arange(start[c], stop[c]), along)
            found.append(np.stack([g.ravel() for g in grid]))
        segments = np.concatenate(found, 1)
        segments = segments[:, self._present(segments)]
        enter, leave = self._crossing(segments, low - self.constant, high + self.constant)
        longest = 1.6 * _SEGMENT
        nominal = _SEGMENT * segments[3]
        return segments[:, (enter < nominal + longest) & (leave > nominal - longest) & (enter < leave)]

    def _crossing(self, segments: Segments, low: Points, high: Points) -> tuple[Points, Points]:
        """Return the positions at which straight rods enter and leave a box of the tissue."""
        origin = self._turn(_on_rod(segments, np.zeros(segments.shape[1])))
        pace = self.constant * _TURN[segments[0]]
        one, other = (low - origin) / pace, (high - origin) / pace
        return np.minimum(one, other).max(1), np.maximum(one, other).min(1)

    def _present(self, segments: Segments) -> NDArray[np.bool_]:
        # where a segment is missing its neighbours swell; every second rod is whole, so that no void is large
        whole = (segments[1] + segments[2]) % 2 == 1
        return np.asarray(whole | (self._uniform("present", segments) >= _MISSING), np.bool_)

    def _level(self, segments: Segments) -> NDArray[np.int64]:
        return np.searchsorted(_LEVELS, self._uniform("level", segments)).astype(np.int64)

    def _cut(self, segments: Segments) -> Points:
        """Return where segments start: a multiple of one half, since there other rods pass."""
        jitter = 0.6 * self._uniform("cut", segments) - 0.3
        return np.asarray(np.round(2 * _SEGMENT * (segments[3] + jitter)) / 2)

    def _containing(self, rods: Segments, position: Points) -> Segments:
        """Return the segments of rods (3, n) at positions along them."""
        segments = np.concatenate([rods, np.round(position / _SEGMENT).astype(np.int64)[None]])
        segments[3] -= position < self._cut(segments)
        return segments

    def _parents(self, segments: Segments) -> tuple[Segments, NDArray[np.int64]]:
        """Return the segments these grow out of, and how: 0 or 1 as a branch, 2 straight on, -1 not at all."""
        family, i, j, k = segments
        start = self._cut(segments)
        half, n = start % 1 == 0.5, np.floor(start).astype(np.int64)
        candidates = []
        for side in (0, 1):
            rods = np.where(half, [(family + 1) % 3, j + side, n], [(family + 2) % 3, n, i - side])
            candidates.append(self._containing(rods, np.where(half, i, j + 0.5)))
        candidates.append(np.stack([family, i, j, k - 1]))
        level = self._level(segments)
        fits = np.stack([self._present(c) & (self._level(c) < level) for c in candidates])
        first = (hashed(stream(self.seed, "parent"), *segments) % np.uint64(3)).astype(np.int64)
        kinds = np.where(fits, (np.arange(3)[:, None] - first) % 3, 3).argmin(0)
        chosen = np.take_along_axis(np.stack(candidates), kinds[None, None], 0)[0]
        return chosen, np.where(fits.any(0), kinds, -1)

    def _cells(self, segments: Segments) -> NDArray[np.int64]:
        """Return the ids of the cells, made of the place of the segment each starts from: from 1 to 2^53."""
        roots = segments
        for _ in _LEVELS:
            parents, kinds = self._parents(roots)
            roots = np.where(kinds >= 0, parents, roots)
        family, i, j, k = roots
        packed = ((family << 17 | (i + _OFFSET)) << 17 | (j + _OFFSET)) << 17 | (k + _OFFSET)
        return np.asarray(packed + 1, np.int64)

    def _radius(self, segments: Segments, position: Points, cells: NDArray[np.int64]) -> Points:
        kind = self.classes(cells)
        base = 0.16 + 0.5 * self._uniform("calibre", segments) ** 2
        knot = np.floor(position).astype(np.int64)
        a, b = (uniform(stream(self.seed, "varicosity"), *segments[:3], knot + n) for n in (0, 1))
        swelling = a + (b - a) * (0.5 - 0.5 * np.cos(np.pi * (position - knot)))
        radius = _CALIBRE[kind] * base * (1.1 + _UNEVEN[kind] * (swelling - 0.5))
        return np.asarray(self.diameter * np.clip(radius, THINNEST, THICKEST))

    def _axes(
        self, segments: Segments, kinds: NDArray[np.int64], cells: NDArray[np.int64], low: Points, high: Points
    ) -> tuple[Balls, Points]:
        """Return the balls along the part of segments in a box, in lattice constants, and their places."""
        following = segments + np.array([[0], [0], [0], [1]])
        goes_on = (self._parents(following)[1] == 2) & self._present(following)
        start = self._cut(segments) + np.where(kinds == 2, 0, _GAP)
        stop = self._cut(following) - np.where(goes_on, 0, _GAP)
        enter, leave = self._crossing(segments, low, high)
        first = np.ceil(np.maximum(start, enter) / _STEP).astype(np.int64)
        count = np.maximum(np.ceil(np.minimum(stop, leave) / _STEP).astype(np.int64) - first, 0)
        owner = np.repeat(np.arange(len(count)), count)
        step = np.arange(len(owner)) - (np.cumsum(count) - count - first)[owner]
        position, own = step * _STEP, segments[:, owner]
        to_end = np.minimum(
            np.where(kinds == 2, np.inf, 1)[owner] * (position - start[owner] + 1e-9),
            np.where(goes_on, np.inf, 1)[owner] * (stop[owner] - position + 1e-9),
        )
        radii = self._radius(own, position, cells[owner]) * np.clip(0.5 + to_end / 0.6, 0, 1)
        radii = np.maximum(radii, THINNEST * self.diameter)
        # thick neurites need fewer balls to look smooth
        kept = step % np.searchsorted((0.0, 0.35, 0.55), radii / self.diameter) == 0
        places = np.concatenate([own[:3], position[None]]).T
        return Balls(_on_rod(own, position)[kept], radii[kept], cells[owner][kept]), places[kept]

    def _bridges(
        self, segments: Segments, parents: Segments, kinds: NDArray[np.int64], cells: NDArray[np.int64]
    ) -> Balls:
        """Return the balls from the start of each branch to the rod it grows out of, in lattice constants."""
        branches = (kinds == 0) | (kinds == 1)
        segments, parents, cells = segments[:, branches], parents[:, branches], cells[branches]
        start = self._cut(segments)
        near = _on_rod(segments, start)
        meeting = near[np.arange(len(near)), parents[0]]
        far = _on_rod(parents, meeting)
        t = np.linspace(0, 1, 8)
        centres = near[:, None] + (far - near)[:, None] * t[:, None]
        radii = np.maximum(0.8 * self._radius(segments, start, cells), THINNEST * self.diameter)
        return Balls(centres.reshape(-1, 3), np.repeat(radii, len(t)), np.repeat(cells, len(t)))

    def _bend(self, points: Points) -> Points:
        bent = points.copy()
        for n, (spacing, scale) in enumerate(_BENDS):
            for axis in range(3):
                noise = SmoothNoise(stream(self.seed, f"bend {n} {axis}"), (spacing,) * 3)
                bent[:, axis] += scale * np.clip(noise.at(points), -_BEND_LIMIT, _BEND_LIMIT)
        return bent

    def _turn(self, points: Points) -> Points:
        """Return where points of the lattice lie in the tissue, in nm."""
        return np.asarray(points @ _TURN * self.constant)

    def _uniform(self, name: str, segments: Segments) -> NDArray[np.float64]:
        return uniform(stream(self.seed, name), *segments)


def _finer(balls: Balls, places: Points, bodies: Balls) -> tuple[Balls, Points]:
    """Return balls with others between, as many as will close the gaps when they are pushed aside."""
    stretch = np.ones(len(balls))
    for middle, radius in zip(bodies.centres, bodies.radii, strict=True):
        distance = np.sqrt(((balls.centres - middle) ** 2).sum(1))
        pushed = _SQUEEZED + radius / np.maximum(distance, radius / 32)
        stretch = np.where(distance < _PUSHED * radius, np.maximum(stretch, pushed), stretch)
    along = (places[1:, :3] == places[:-1, :3]).all(1) & (np.abs(np.diff(places[:, 3])) < 0.5)
    followed = np.append(along & (places[1:, 0] >= 0) & (balls.cells[1:] == balls.cells[:-1]), False)
    count = np.where(followed, np.ceil(stretch), 1).astype(np.int64)
    source = np.repeat(np.arange(len(balls)), count)
    part = ((np.arange(len(source)) - (np.cumsum(count) - count)[source]) / count[source])[:, None]
    following = np.minimum(source + 1, len(balls) - 1)
    centres, places = (a[source] + part * (a[following] - a[source]) for a in (balls.centres, places))
    return Balls(centres, balls.radii[source], balls.cells[source]), places


def _on_rod(segments: Segments, position: Points) -> Points:
    """Return the points (n, 3) of the lattice at positions along rods."""
    family, i, j = segments[:3]
    points = np.empty((len(position), 3))
    rows = np.arange(len(position))
    points[rows, family], points[rows, (family + 1) % 3], points[rows, (family + 2) % 3] = position, i, j + 0.5
    return points
