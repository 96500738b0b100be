"""How a plane of fine pixels looks once it was cut into thick sections.

In an xy plane y is taken for z (Weigert et al., "Isotropic reconstruction of 3D fluorescence microscopy images
using convolutional neural networks", MICCAI 2017): its rows become thin sections as they should be, and thick ones
as the microscope gave them.

    pixels          | | | | | | | | | | | | |      `step` of them to a thin section
    thin sections   |   |   |   |   |   |   |
    thick sections  |           |           |      `factor` thin ones from each to the next
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv3d, pad


@dataclass(frozen=True)
class Degradation:
    """From rows of pixels to thin sections, `step` pixels apart, and to thick ones, `factor` thin ones apart.

    Thick section k lies at thin section factor * k.  It is that one alone, or, if `average`, the mean over its
    whole thickness.
    """

    factor: int
    step: float
    average: bool

    def thin(self, sections: int) -> int:
        """Return how many thin sections there are from the first to the last of some thick ones."""
        return self.factor * (sections - 1) + 1

    def rows(self, sections: int) -> int:
        """Return how many rows of pixels some thick sections need."""
        return ceil((self.thin(sections) - 1) * self.step - 1e-6) + 1 + 2 * self._margin

    def most(self, rows: int) -> int:
        """Return how many thick sections some rows of pixels suffice for."""
        count = 0
        while self.rows(count + 1) <= rows:
            count += 1
        return count

    def to_thin(self, pixels: NDArray[np.float32], sections: int) -> NDArray[np.float32]:
        """Return the thin sections, shape (thin, ...), of pixels (rows, ...)."""
        return self._cut(pixels, np.arange(self.thin(sections)), 1)

    def to_thick(self, pixels: NDArray[np.float32], sections: int) -> NDArray[np.float32]:
        """Return the thick sections, shape (sections, ...), of pixels (rows, ...)."""
        return self._cut(pixels, np.arange(sections) * self.factor, self.factor)

    def thickened(self, thin: Tensor) -> Tensor:
        """Return the thick sections (n, 1, z, y, x) of thin ones (n, 1, factor * (z - 1) + 1, y, x)."""
        if not self.average:
            return thin[:, :, :: self.factor]
        weights = _overlaps(np.array([self.factor // 2 + 0.0]), self.factor, 2 * (self.factor // 2) + 1)
        kernel = torch.from_numpy(weights).to(thin).reshape(1, 1, -1, 1, 1)
        half = kernel.shape[2] // 2
        return conv3d(pad(thin, (0, 0, 0, 0, half, half), mode="replicate"), kernel, stride=(self.factor, 1, 1))

    @property
    def _margin(self) -> int:
        return ceil(self.factor * self.step / 2) if self.average else 0

    def _cut(self, pixels: NDArray[np.float32], at: NDArray[np.int64], thickness: int) -> NDArray[np.float32]:
        middles = np.asarray(self._margin + at * self.step, np.float64)
        if self.average:
            weights = _overlaps(middles, thickness * self.step, len(pixels))
        else:
            # linear interpolation
            weights = np.maximum(0, 1 - np.abs(np.arange(len(pixels)) - middles[:, None])).astype(np.float32)
        return np.asarray(np.tensordot(weights, pixels, 1), np.float32)


def _overlaps(middles: NDArray[np.float64], thickness: float, rows: int) -> NDArray[np.float32]:
    """Return the share of each of the rows in sections of some thickness around middles, shape (middles, rows)."""
    row, low, high = np.arange(rows), middles[:, None] - thickness / 2, middles[:, None] + thickness / 2
    shared = np.minimum(row + 0.5, high) - np.maximum(row - 0.5, low)
    return np.asarray(np.maximum(0, shared) / thickness, np.float32)
