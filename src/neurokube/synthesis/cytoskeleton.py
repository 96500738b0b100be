"""Microtubules: thin tubes that run along neurites, side by side, each at its place across the skeleton."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .neurites import AXON, DENDRITE, Balls, Neurites, Points
from .randomness import stream, uniform

Distances = NDArray[np.float32]

MICROTUBULE_RADIUS = 12.0
"""In nm."""

_SPACING = 64.0  # nm between the middles of the places
_SCATTER = _SPACING / 2 - MICROTUBULE_RADIUS - 2
_FILLED = {AXON: 0.4, DENDRITE: 1.0}  # share of the places, of those asked for
_FAR = np.float32(1e6)


@dataclass(frozen=True)
class Bundles:
    """For each ball of a skeleton two directions across it, (n, 3), its bundle's key, and how full that is.

    Balls of one rod share a key, and their directions turn smoothly, so a place across the skeleton, in
    units of the lattice spanned by the two directions, is a tube along the rod.
    """

    across: tuple[Points, Points]
    key: NDArray[np.uint32]
    filled: NDArray[np.float32]

    def distance(self, ball: NDArray[np.int32], offset: tuple[Distances, ...]) -> Distances:
        """Return how far (nm) points are from the middle of the nearest microtubule of their bundle.

        `offset` are the three coordinates of the points less those of the ball each belongs to.
        """
        z, y, x = offset
        place = []
        for direction in self.across:
            d = direction.take(ball, 0)
            place.append((d[:, 0] * z + d[:, 1] * y + d[:, 2] * x) * np.float32(1 / _SPACING))
        cell = [np.floor(p) for p in place]
        bits = self.key.take(ball)
        for c in cell:
            bits = _mixed(bits ^ c.astype(np.int32).view(np.uint32))
        squared = np.zeros(len(ball), np.float32)
        for n, (p, c) in enumerate(zip(place, cell, strict=True)):
            scatter = ((bits >> np.uint32(8 * n)) & np.uint32(255)).astype(np.float32) / 255 - np.float32(0.5)
            squared += ((p - c - np.float32(0.5)) * np.float32(_SPACING) - np.float32(2 * _SCATTER) * scatter) ** 2
        there = (bits >> np.uint32(16)).astype(np.float32) < self.filled.take(ball) * 65536
        return np.where(there, np.sqrt(squared), _FAR)


def bundles(neurites: Neurites, balls: Balls, places: Points, density: float) -> Bundles:
    """Return the bundles of microtubules in balls, `places` being those on the rods; `density` from 0 to 1."""
    rod = places[:, :3].astype(np.int64)
    joined = (rod[1:] == rod[:-1]).all(1) & (np.abs(np.diff(places[:, 3])) < 0.5) & (rod[1:, 0] >= 0)
    step = np.where(joined[:, None], np.diff(balls.centres, axis=0), 0)
    # from the ball before to the one after; a lonely one has no microtubules
    tangent = np.zeros((len(balls), 3))
    tangent[:-1] += step
    tangent[1:] += step
    length = np.sqrt((tangent**2).sum(1))
    tangent /= np.maximum(length, 1e-9)[:, None]
    aside = neurites.axis((rod[:, 0] + 1) % 3)
    first = aside - (aside * tangent).sum(1)[:, None] * tangent
    first /= np.maximum(np.sqrt((first**2).sum(1)), 1e-3)[:, None]
    second = np.cross(tangent, first)
    cell_kind = neurites.classes(balls.cells)
    share = np.select([cell_kind == kind for kind in _FILLED], list(_FILLED.values()), 0.0)
    # neurites differ: some are full, some nearly empty
    fullness = share * (0.5 + 0.5 * uniform(stream(neurites.seed, "bundle"), balls.cells))
    key = (uniform(stream(neurites.seed, "microtubules"), *rod.T, balls.cells) * 2**32).astype(np.uint32)
    filled = np.where((length > 0) & (rod[:, 0] >= 0), density * fullness, 0)
    return Bundles((first.astype(np.float32), second.astype(np.float32)), key, filled.astype(np.float32))


def _mixed(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The finalizer of MurmurHash3 (Appleby, 2011), which is cheap."""
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))
