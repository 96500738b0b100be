"""A boundary map as a network would predict it: blurred, with noise, and with gaps where membranes are faint.

It stands in for a network where reconstruction is to be tried on more tissue than there is time to predict.
"""

import numpy as np
from numpy.typing import NDArray

from .randomness import SmoothNoise, normal, stream
from .sections import EDGE, Plane, Sections

_BLUR = 12.0  # nm over which a boundary fades
_GAP = 150.0  # nm, size of the places where membranes are faint
_CLOUD = 45.0  # nm, size of what is taken for a boundary, or not, for no reason
_DEVIATION = 0.2  # of smooth noise


class Prediction:
    """Predicts boundaries in the sections of one tile."""

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        seed = sections.config.seed
        self._faint = SmoothNoise(stream(seed, "faint"), (_GAP,) * 3)
        self._clouds = SmoothNoise(stream(seed, "clouds"), (_CLOUD,) * 3)

    def picture(self, z: int, plane: Plane) -> NDArray[np.uint8]:
        """Return the boundary map of section `z`, (y, x), without the edge, from the plane in its middle."""
        from scipy.special import erf

        config, at = self._sections.config, self._sections.places(z)
        half = np.float32(config.membrane_thickness / 2) + plane.cleft
        near = np.clip((half + np.float32(_BLUR) - plane.sample.membrane) / np.float32(_BLUR), 0, 1)
        # the share of a field below it, so that as much of the membranes is faint as is asked for
        rank = (1 + erf(self._faint.on_axes(*at)[0] / (_DEVIATION * np.sqrt(2)))) / 2
        strength = np.clip((rank - config.boundary_gaps) * 8 + 0.5, 0, 1) if config.boundary_gaps else 1
        rows, columns = self._sections.rows, self._sections.columns
        grain = normal(stream(config.seed, "boundary grain"), z, rows[:, None], columns[None, :])
        clouds = self._clouds.on_axes(*at)[0] / _DEVIATION
        value = 0.9 * near.reshape(self._sections.shape) * strength + 0.05
        value += config.boundary_noise * (0.8 * clouds + 0.3 * grain)
        inner = value[EDGE:-EDGE, EDGE:-EDGE]
        return np.asarray(np.rint(255 * np.clip(inner, 0, 1)), np.uint8)
