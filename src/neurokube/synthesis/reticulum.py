"""Endoplasmic reticulum: ribbons, from tubes to sheets, along the curves where two smooth random fields vanish."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .neurites import Neurites
from .randomness import Floats, SmoothNoise, stream, uniform

_SPACING = 260.0  # nm between the knots of the fields
_HALF = (16.0, 42.0)  # of the thickness in nm, in the leanest and the fullest of cells
_WIDEST = 160.0  # half of the width of a sheet in nm
_LEVEL = 0.12  # by which cells differ, so that nothing goes on across a membrane
_FLATTEST = 3e-4  # least slope a nm, so that no ribbon swells where a field is flat


@dataclass(frozen=True)
class Reticulum:
    """The endoplasmic reticulum of cells, by index: how wide its ribbons are and which levels they follow."""

    fields: tuple[SmoothNoise, SmoothNoise]
    width: NDArray[np.float32]
    half: NDArray[np.float32]
    level: tuple[NDArray[np.float32], NDArray[np.float32]]

    def distance(self, z: Floats, y: Floats, x: Floats, cell: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return how far (nm) the points of a plane, shape (y * x,), are from its surface, negative inside."""
        thin, wide = (
            self._from_level(field, level.take(cell), z, y, x)
            for field, level in zip(self.fields, self.level, strict=True)
        )
        beside = np.maximum(wide - self.width.take(cell), 0)
        return np.asarray(np.sqrt(thin**2 + beside**2) - self.half.take(cell), np.float32)

    @staticmethod
    def _from_level(
        field: SmoothNoise, level: NDArray[np.float32], z: Floats, y: Floats, x: Floats
    ) -> NDArray[np.float32]:
        value, slope = field.with_slope(z, y, x)
        flat = np.abs(value.ravel() - level)
        return np.asarray(flat / np.maximum(slope.ravel(), np.float32(_FLATTEST)), np.float32)


def reticulum(neurites: Neurites, cells: NDArray[np.int64], extent: float) -> Reticulum:
    """Return the endoplasmic reticulum of cells; `extent` is from 0, none, to 1, plenty."""
    first, second = (SmoothNoise(stream(neurites.seed, f"reticulum {n}"), (_SPACING,) * 3) for n in range(2))
    share = uniform(stream(neurites.seed, "reticulum width"), cells)
    size = uniform(stream(neurites.seed, "reticulum size"), cells)
    half = np.where(share < extent, _HALF[0] + (_HALF[1] - _HALF[0]) * size**2, -1e6).astype(np.float32)
    width = (extent * _WIDEST * (1 - size) ** 2).astype(np.float32)
    one, other = (
        (_LEVEL * (2 * uniform(stream(neurites.seed, f"reticulum level {n}"), cells) - 1)).astype(np.float32)
        for n in range(2)
    )
    return Reticulum((first, second), width, half, (one, other))
