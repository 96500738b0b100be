"""Filters of the image, as 8-bit channels on which edges can be measured beside boundary maps.

    gaussian    the image, smoothed
    gradient    how steep it is: large at the borders of what is dark or bright
    laplacian   128 where it is flat, more in dark blobs and sheets, less in bright ones
    hessian     the largest second derivative: 128 where flat, more on dark sheets, as membranes

Widths are in nm; where sections are thick each is filtered alone.  Derivatives are scaled by the width, so that
features of different scales compare (Lindeberg, Int. J. Computer Vision 30:79, 1998), and rounded to whole numbers.
"""

from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..blocks import Box, Vector
from ..volumes.volume import Nanometres
from .base import Length

_RADIUS = 3.5
"""Deviations after which filters end."""


class Filter(BaseModel):
    """A filter of the image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filter: Literal["gaussian", "gradient", "laplacian", "hessian"]
    width: Length = Field(description="deviation of the smoothing, in nm")

    @property
    def name(self) -> str:
        """What the channel is called."""
        return f"{self.filter}-{self.width:g}".replace(".", "_")


def filter_halo(filters: Sequence[Filter], voxel_size: Nanometres, *, flat: bool) -> Vector:
    """Return the voxels (z, y, x) around a box that filters read."""
    widest = max((f.width for f in filters), default=0.0)
    z, y, x = (ceil(_RADIUS * widest / v) + 1 if widest else 0 for v in voxel_size)
    return 0 if flat else z, y, x


def filtered(
    image: NDArray[np.uint8], inner: Box, voxel_size: Nanometres, chosen: Filter, *, flat: bool
) -> NDArray[np.uint8]:
    """Return the filter of an image (z, y, x) within its box `inner`, 0 to 255."""
    if flat:
        z, y, x = inner.slices
        return np.stack([_filtered(image[k], voxel_size[1:], chosen)[y, x] for k in range(z.start, z.stop)])
    return np.ascontiguousarray(_filtered(image, voxel_size, chosen)[inner.slices])


def _filtered(image: NDArray[np.uint8], voxel_size: tuple[float, ...], chosen: Filter) -> NDArray[np.uint8]:
    from bioimage_cpp import filters

    values: NDArray[np.float32] = image.astype(np.float32)
    sigma = tuple(max(chosen.width / v, 0.5) for v in voxel_size)
    scale = min(sigma)
    match chosen.filter:
        case "gaussian":
            found = filters.gaussian_smoothing(values, sigma, window_size=_RADIUS)
        case "gradient":
            found = filters.gaussian_gradient_magnitude(values, sigma, window_size=_RADIUS) * np.float32(2 * scale)
        case "laplacian":
            found = filters.laplacian_of_gaussian(values, sigma, window_size=_RADIUS) * np.float32(scale**2) + 128
        case "hessian":
            eigenvalues = filters.hessian_of_gaussian_eigenvalues(values, sigma, window_size=_RADIUS)
            found = eigenvalues[..., 0] * np.float32(2 * scale**2) + 128
    values = np.rint(np.clip(found, 0, 255))
    return values.astype(np.uint8)
