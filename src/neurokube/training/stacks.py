"""Images in memory, on the voxel grid that a network sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector, parse_region
from ..errors import DataError
from ..networks import Normalization
from ..volumes import Volume, open_volume
from ..volumes.resampling import Resampling
from ..volumes.volume import Nanometres
from .config import ImageVolume

_SLAB = 16


@dataclass(frozen=True)
class Stack:
    """An image, array (z, y, x)."""

    name: str
    image: NDArray[np.uint8]
    normalization: Normalization
    voxel_size: Nanometres
    weight: float
    fingerprint: str | None = None

    @property
    def shape(self) -> Vector:
        """Extent in voxels (z, y, x)."""
        z, y, x = self.image.shape
        return z, y, x


def open_image(entry: ImageVolume) -> tuple[Volume, Box]:
    """Return an image, and the part of it to use.

    Raises:
        DataError: where it is no 8-bit image, or the part is not inside.
    """
    image = open_volume(entry.image)
    if not image.spec.is_grey:
        raise DataError(f"{entry.image}: not an 8-bit image of one channel; import one with --to-8bit auto")
    region = Box.of(image.spec.shape) if entry.region is None else parse_region(entry.region)
    if not image.spec.box.contains(region):
        raise DataError(f"{entry.image}: region {region} is not inside the image {image.spec.box}; choose one that is")
    return image, region


def load_stack(entry: ImageVolume, voxel_size: Nanometres) -> Stack:
    """Read an image, resampled to `voxel_size`.

    Raises:
        DataError: where it cannot be used.
    """
    image, region = open_image(entry)
    resampling = Resampling.between(region.shape, image.spec.voxel_size, voxel_size)
    part = image.crop(region)
    array = np.empty(resampling.new_shape, np.uint8)
    depth, height, width = resampling.new_shape
    for z in range(0, depth, _SLAB):
        box = Box((z, 0, 0), (min(z + _SLAB, depth), height, width))
        grey = resampling.linear(part.read(resampling.needed(box)).astype(np.float32), box)
        array[box.slices] = np.clip(np.rint(grey), 0, 255)
    size = cast(Nanometres, tuple(v * s for v, s in zip(image.spec.voxel_size, resampling.scale, strict=True)))
    return Stack(entry.image, array, Normalization.of(image), size, entry.weight, image.fingerprint)


def told(
    name: str, fingerprint: str | None, shape: Sequence[int], voxel_size: Nanometres, normalization: Normalization
) -> dict[str, Any]:
    """Return what a card says of an image that was learned from."""
    return {
        # where it lay says little elsewhere, and is nobody's business
        "image": "/".join(name.rstrip("/").split("/")[-2:]),
        "fingerprint": fingerprint,
        "shape": list(shape),
        "voxel_size": list(voxel_size),
        "normalization": normalization.model_dump(),
    }


def told_of(stacks: Sequence[Stack], role: str) -> list[dict[str, Any]]:
    """Return what a card says of images that were learned from, and as what."""
    return [{"role": role, **told(s.name, s.fingerprint, s.shape, s.voxel_size, s.normalization)} for s in stacks]
