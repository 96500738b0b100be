"""Mitochondria, vesicles and nuclei inside cells, known like these from the hash of their place."""

import numpy as np
from numpy.typing import NDArray

from .neurites import AXON, THICKEST, Balls, Neurites, Points
from .randomness import hashed, stream, uniform

_MITOCHONDRIA_EVERY = 2.5  # lattice constants along a rod
_WIDEST = 0.4  # radius of a mitochondrion in mean diameters of a neurite
_NARROWEST = 0.13
_CLUSTERS_EVERY = 1.5
_CLUSTER = 0.7  # half the length of a cluster, in lattice constants
_VESICLES_PER_BALL = 9
_SPREAD = 1.4  # edge of the cube a ball's vesicles lie in, in its radii
_NUCLEUS = 0.7  # radius in those of the cell body
_AROUND = 2.0  # mean diameters, of a box in which organelles are to be known
VESICLE_RADIUS = 21.0
"""In nm."""


def margin(neurites: Neurites, gap: float) -> float:
    """Return how far (nm) around a box the neurites must be known to know the organelles in it."""
    return _reach(neurites, gap) + _WIDEST * neurites.diameter


def _reach(neurites: Neurites, gap: float) -> float:
    """Return how far (nm) from the middle of an organelle there may be a ball that leaves it too little room.

    A mitochondrion of radius w in a neurite of radius r >= w / 0.9 has room if no surface is nearer than
    2 (w + gap) - r.
    """
    return (0.9 * _WIDEST + THICKEST) * neurites.diameter + 2 * gap


def mitochondria(
    neurites: Neurites, balls: Balls, places: Points, density: float, gap: float, low: Points, high: Points
) -> Balls:
    """Return mitochondria, threaded on the skeletons, as balls that keep `gap` nm from their cell's surface.

    They are those that matter to a box from `low` to `high`.  `density` is the share of the sites along a
    neurite that hold one, where it is wide enough.
    """
    rod, position = places[:, :3].astype(np.int64).T, places[:, 3]
    site = np.floor(position / _MITOCHONDRIA_EVERY).astype(np.int64)
    exists, middle, length = (uniform(stream(neurites.seed, f"mitochondria {n}"), *rod, site) for n in range(3))
    centre = (site + 0.35 + 0.3 * middle) * _MITOCHONDRIA_EVERY
    along = np.abs(position - centre) / (0.35 + 0.5 * length)
    wanted = np.minimum(0.9 * balls.radii, _WIDEST * neurites.diameter) * np.sqrt(np.clip(1 - along**4, 0, 1))
    narrowest = _NARROWEST * neurites.diameter
    held = (rod[0] >= 0) & (exists < density) & (wanted >= narrowest)
    # near enough to be in the box, or in the way of a vesicle there
    held &= balls.inside(low - _AROUND * neurites.diameter, high + _AROUND * neurites.diameter)
    chosen = balls[held]
    radii = np.minimum(wanted[held], clearance(chosen.centres, chosen.cells, balls, _reach(neurites, gap)) - gap)
    wide = radii >= narrowest
    return Balls(
        chosen.centres, radii, chosen.cells, _ids(neurites, "mitochondrion", rod[:, held], site[held], chosen.cells)
    )[wide]


def _ids(
    neurites: Neurites, kind: str, rod: NDArray[np.int64], site: NDArray[np.int64], cells: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the ids, from 1 to 2^53, of what sites along rods (3, n) hold; two cells can share a site."""
    bits = hashed(stream(neurites.seed, f"{kind} id"), *rod, site, cells)
    return np.asarray((bits >> np.uint64(11)).astype(np.int64) + 1)


def clusters(neurites: Neurites, balls: Balls, places: Points, density: float, gap: float) -> tuple[Balls, Points]:
    """Return the balls of axons in whose middle vesicles gather, and their places.

    `density` is the share of the sites along an axon that hold a cluster, where it is wide enough.  The
    instance of a ball is the id of its cluster.
    """
    rod, position = places[:, :3].astype(np.int64).T, places[:, 3]
    site = np.floor(position / _CLUSTERS_EVERY).astype(np.int64)
    held = (rod[0] >= 0) & (uniform(stream(neurites.seed, "vesicles"), *rod, site) < density)
    held &= np.abs(position - (site + 0.5) * _CLUSTERS_EVERY) < _CLUSTER
    held &= balls.radii > 2 * VESICLE_RADIUS + gap
    held &= neurites.classes(balls.cells) == AXON
    found = balls[held]
    return Balls(
        found.centres, found.radii, found.cells, _ids(neurites, "cluster", rod[:, held], site[held], found.cells)
    ), places[held]


def vesicles(
    neurites: Neurites,
    balls: Balls,
    held: Balls,
    places: Points,
    gap: float,
    mitochondria: Balls,
    low: Points,
    high: Points,
) -> tuple[Balls, Balls]:
    """Return the vesicles in clusters, and the clouds they form, as balls.

    `held` and `places` are those of `clusters`.  All vesicles in a box from `low` to `high` are there.  They
    keep `gap` nm from their cell's surface, and clear of mitochondria; a cloud is the union of balls somewhat
    larger than its vesicles, each with the cluster's id as its instance.
    """
    reach = _SPREAD * THICKEST * neurites.diameter + 4 * VESICLE_RADIUS
    near = held.inside(low - reach, high + reach)
    held, places = held[near], places[near]
    home = np.repeat(np.arange(len(held)), _VESICLES_PER_BALL)
    number = np.tile(np.arange(_VESICLES_PER_BALL), len(held))
    rod = places[:, :3].astype(np.int64).T[:, home]
    step = np.round(places[:, 3] * 1000).astype(np.int64)[home]
    offset = [uniform(stream(neurites.seed, f"vesicle {n}"), *rod, step, number) for n in range(3)]
    found = held[home]
    centres = found.centres + found.radii[:, None] * _SPREAD * (np.stack(offset, 1) - 0.5)
    free = clearance(centres, found.cells, balls, _reach(neurites, gap)) - gap
    if len(mitochondria):
        from scipy.spatial import cKDTree

        near, index = cKDTree(mitochondria.centres).query(centres, k=min(8, len(mitochondria)))
        near, index = near.reshape(len(centres), -1), index.reshape(len(centres), -1)
        free = np.minimum(free, (near - mitochondria.radii[index]).min(1) - gap)
    room = free >= VESICLE_RADIUS
    found, centres = found[room], centres[room]
    radius = np.full(len(centres), VESICLE_RADIUS)
    clouds = Balls(centres, np.minimum(free[room], 2.2 * VESICLE_RADIUS), found.cells, found.instances)
    return Balls(centres, radius, found.cells, found.instances), clouds


def nuclei(bodies: Balls) -> Balls:
    """Return the nuclei of cell bodies; the instance of one is the id of its cell."""
    return Balls(bodies.centres, _NUCLEUS * bodies.radii, bodies.cells, bodies.cells)


def clearance(points: Points, cells: NDArray[np.int64], balls: Balls, reach: float) -> Points:
    """Return a lower bound (nm) of the distance from points to the surface of the cells they should lie in.

    Half of how much nearer the point's own cell is than any other; negative in another cell.  Balls whose
    surfaces are further than `reach` less the largest neurite's radius are not looked at.
    """
    from scipy.spatial import cKDTree

    if len(points) == 0:
        return np.zeros(0)
    large = balls.radii > reach
    small, bodies = balls[~large], balls[large]
    pairs = cKDTree(points).sparse_distance_matrix(cKDTree(small.centres), reach, output_type="ndarray")
    distance = pairs["v"] - small.radii[pairs["j"]]
    own = small.cells[pairs["j"]] == cells[pairs["i"]]
    nearest = np.full((2, len(points)), reach)
    np.minimum.at(nearest, (own.astype(np.int64), pairs["i"]), distance)
    for n in range(len(bodies)):
        distance = np.sqrt(((points - bodies.centres[n]) ** 2).sum(1)) - bodies.radii[n]
        side = (bodies.cells[n] == cells).astype(np.int64), np.arange(len(points))
        nearest[side] = np.minimum(nearest[side], distance)
    return np.asarray((nearest[0] - nearest[1]) / 2)
