"""Synapses: where a vesicle cluster of an axon lies nearest to a dendrite, on the membrane between the two."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .neurites import DENDRITE, GLIA, THICKEST, Balls, Neurites, Points
from .randomness import stream, uniform

_OTHERS = 0.1  # share of synapses that end on whatever neurite is nearest
_STEPS = 12  # of bisection, to a tenth of a nanometre
_ALONE = 30.0  # how much further (nm) than the two the surface of any third cell must be
_PATCH = (95.0, 170.0)  # radius of the patch in nm
LARGEST = _PATCH[1]
"""Of the radii of patches, in nm."""


PEDESTAL = 34.0
"""Radius in nm of the dense body (the T-bar of insects) on the presynaptic side."""


@dataclass(frozen=True)
class Synapses:
    """Synapses, in order of their ids, each array of shape (n,) but `positions`, (n, 3), in nm (z, y, x).

    A synapse has the id of the vesicle cloud it belongs to.  `radii` (nm) are those of the patch of
    membrane; `into` is the direction, of length 1, from the postsynaptic to the presynaptic cell.
    """

    ids: NDArray[np.int64]
    positions: Points
    presynaptic: NDArray[np.int64]
    postsynaptic: NDArray[np.int64]
    radii: Points
    into: Points

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> "Synapses":
        return Synapses(*(values[index] for values in vars(self).values()))


def reach(neurites: Neurites) -> float:
    """Return how far (nm) around a synapse the neurites must be known."""
    return 2.2 * _span(neurites)


def _span(neurites: Neurites) -> float:
    return 2 * THICKEST * neurites.diameter


def synapses(neurites: Neurites, balls: Balls, held: Balls, density: float, low: Points, high: Points) -> Synapses:
    """Return the synapses of a share `density` of the vesicle clusters given by the balls that hold them.

    All that reach into a box from `low` to `high` are there.

    A point of the membrane is found by bisection on the line from the middle of the cluster to the nearest
    ball of a dendrite (or, seldom, of any neurite), and taken if no third cell is near.
    """
    from scipy.spatial import cKDTree

    ids, first = np.unique(held.instances, return_index=True)
    chance, any_kind, size = (uniform(stream(neurites.seed, f"synapse {n}"), ids) for n in range(3))
    middle = first + (np.bincount(np.searchsorted(ids, held.instances), minlength=len(ids)) - 1) // 2
    around = 1.1 * _span(neurites) + LARGEST + PEDESTAL
    near_box = held[middle].inside(low - around, high + around)
    tree = cKDTree(balls.centres)
    kinds = neurites.classes(balls.cells)
    rows = []
    for n in np.flatnonzero((chance < density) & near_box):
        start, cell = held.centres[middle[n]], held.cells[middle[n]]
        near = np.sort(np.array(tree.query_ball_point(start, 1.1 * _span(neurites)), np.int64))
        fits = (balls.cells[near] != cell) & (balls.radii[near] <= THICKEST * neurites.diameter)
        fits &= (kinds[near] != GLIA) if any_kind[n] < _OTHERS else (kinds[near] == DENDRITE)
        if not fits.any():
            continue
        lead = np.sqrt(((balls.centres[near] - start) ** 2).sum(1)) - balls.radii[near]
        target = near[np.where(fits, lead, np.inf).argmin()]
        point = _border(start, balls.centres[target], cell, balls.cells[target], balls[near])
        if point is not None:
            radius = _PATCH[0] + (_PATCH[1] - _PATCH[0]) * size[n]
            direction = start - balls.centres[target]
            rows.append((ids[n], point, cell, balls.cells[target], radius, direction / np.linalg.norm(direction)))
    columns = list(zip(*rows, strict=True)) or [()] * 6
    shapes = ((-1,), (-1, 3), (-1,), (-1,), (-1,), (-1, 3))
    types = (np.int64, float, np.int64, np.int64, float, float)
    return Synapses(*(np.array(c, t).reshape(s) for c, t, s in zip(columns, types, shapes, strict=True)))


def _border(start: Points, stop: Points, cell: np.int64, other: np.int64, balls: Balls) -> Points | None:
    """Return where the line from a point to another leaves a cell for the other, None if to a third."""
    ours, theirs = balls.cells == cell, balls.cells == other

    def surfaces(part: float) -> tuple[float, float, float]:
        point = start + part * (stop - start)
        distance = np.sqrt(((balls.centres - point) ** 2).sum(1)) - balls.radii
        own, its, third = (float(distance[m].min(initial=np.inf)) for m in (ours, theirs, ~(ours | theirs)))
        return own, its, third

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        half = (low + high) / 2
        own, its, _third = surfaces(half)
        low, high = (half, high) if own < its else (low, half)
    own, its, third = surfaces(low)
    crosses = abs(own - its) < 2 and third > max(own, its) + _ALONE
    return np.asarray(start + low * (stop - start)) if crosses else None
