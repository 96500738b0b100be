"""Mitochondria and vesicles inside neurites, known like these from the hash of their place."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .neurites import THICKEST, Balls, Neurites, Points
from .randomness import stream, uniform

_MITOCHONDRIA_EVERY = 2.5  # lattice constants along a rod
_WIDEST = 0.4  # radius of a mitochondrion in mean diameters of a neurite
_NARROWEST = 0.13
_CLUSTERS_EVERY = 1.5
_VESICLES_PER_BALL = 4
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


def mitochondria(neurites: Neurites, balls: Balls, places: Points, density: float, gap: float) -> Balls:
    """Return mitochondria, threaded on the skeletons, as balls that keep `gap` nm from their cell's surface.

    `density` is the share of the sites along a neurite that hold one, where it is wide enough.
    """
    rod, position = places[:, :3].astype(np.int64).T, places[:, 3]
    site = np.floor(position / _MITOCHONDRIA_EVERY).astype(np.int64)
    exists, middle, length = (uniform(stream(neurites.seed, f"mitochondria {n}"), *rod, site) for n in range(3))
    centre = (site + 0.35 + 0.3 * middle) * _MITOCHONDRIA_EVERY
    along = np.abs(position - centre) / (0.35 + 0.5 * length)
    wanted = np.minimum(0.9 * balls.radii, _WIDEST * neurites.diameter) * np.sqrt(np.clip(1 - along**4, 0, 1))
    narrowest = _NARROWEST * neurites.diameter
    held = (rod[0] >= 0) & (exists < density) & (wanted >= narrowest)
    chosen = balls[held]
    radii = np.minimum(wanted[held], clearance(chosen.centres, chosen.cells, balls, _reach(neurites, gap)) - gap)
    wide = radii >= narrowest
    return Balls(chosen.centres, radii, chosen.cells)[wide]


def vesicles(
    neurites: Neurites, balls: Balls, places: Points, density: float, gap: float, mitochondria: Balls
) -> Balls:
    """Return vesicles in clusters, `gap` nm from their cell's surface and clear of mitochondria."""
    rod, position = places[:, :3].astype(np.int64).T, places[:, 3]
    site = np.floor(position / _CLUSTERS_EVERY).astype(np.int64)
    held = (rod[0] >= 0) & (uniform(stream(neurites.seed, "vesicles"), *rod, site) < density)
    held &= balls.radii > 2 * VESICLE_RADIUS + gap
    home = np.repeat(np.flatnonzero(held), _VESICLES_PER_BALL)
    number = np.tile(np.arange(_VESICLES_PER_BALL), int(held.sum()))
    step = np.round(position * 1000).astype(np.int64)[home]
    offset = [uniform(stream(neurites.seed, f"vesicle {n}"), *rod[:, home], step, number) for n in range(3)]
    found = balls[home]
    centres = found.centres + found.radii[:, None] * (1.2 * np.stack(offset, 1) - 0.6)
    room = clearance(centres, found.cells, balls, _reach(neurites, gap)) >= VESICLE_RADIUS + gap
    if len(mitochondria):
        near, index = cKDTree(mitochondria.centres).query(centres, k=min(8, len(mitochondria)))
        near, index = near.reshape(len(centres), -1), index.reshape(len(centres), -1)
        room &= (near - mitochondria.radii[index]).min(1) > VESICLE_RADIUS + gap
    return Balls(centres, np.full(len(centres), VESICLE_RADIUS), found.cells)[room]


def clearance(points: Points, cells: NDArray[np.int64], balls: Balls, reach: float) -> Points:
    """Return a lower bound (nm) of the distance from points to the surface of the cells they should lie in.

    Half of how much nearer the point's own cell is than any other; negative in another cell.  Balls whose
    centres are further than `reach` are not looked at.
    """
    if len(points) == 0:
        return np.zeros(0)
    pairs = cKDTree(points).sparse_distance_matrix(cKDTree(balls.centres), reach, output_type="ndarray")
    distance = pairs["v"] - balls.radii[pairs["j"]]
    own = balls.cells[pairs["j"]] == cells[pairs["i"]]
    nearest = np.full((2, len(points)), reach)
    np.minimum.at(nearest, (own.astype(np.int64), pairs["i"]), distance)
    return np.asarray((nearest[0] - nearest[1]) / 2)
