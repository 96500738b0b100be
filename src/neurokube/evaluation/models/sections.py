"""Which part of a test volume shows a label best: found in the truth alone, before anything is predicted."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ...training.truth import Annotated

_SIDE = 384
"""Pixels of a picture's side, at most."""


@dataclass
class Section:
    """The part of one section, arrays (y, x), where a label is densest, with what models predict there."""

    label: str
    volume: int
    z: int
    place: tuple[slice, slice]
    voxels: int
    image: NDArray[np.uint8]
    positive: NDArray[np.bool_]
    known: NDArray[np.bool_]
    caption: str
    aspect: float
    predictions: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def keep(self, model: str, predicted: NDArray[np.uint8]) -> None:
        """Keep this part of a model's prediction of the volume, (z, y, x)."""
        self.predictions[model] = predicted[self.z][self.place].copy()


def section_of(volume: Annotated, label: str, bit: np.uint32, number: int, first: int) -> Section | None:
    """Return the section of test volume `number` that has most of a label; None where none has any.

    `first` is the number of the volume's first section in its image.
    """
    voxels = [int(np.count_nonzero(plane & bit)) for plane in volume.positive]
    z = int(np.argmax(voxels))
    if voxels[z] == 0:
        return None
    positive = (volume.positive[z] & bit) != 0
    place = _densest(positive)
    return Section(
        label=label,
        volume=number,
        z=z,
        place=place,
        voxels=voxels[z],
        image=volume.image[z][place].copy(),
        positive=positive[place].copy(),
        known=((volume.known[z] & bit) != 0)[place].copy(),
        caption=f"section {first + z} of {volume.name.rstrip('/').rsplit('/', 1)[-1]}",
        aspect=volume.voxel_size[1] / volume.voxel_size[2],
    )


def _densest(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    size = [min(_SIDE, n) for n in mask.shape]
    # smooth, so that a single spot comes to lie in the middle
    density = gaussian_filter(mask.astype(np.float32), _SIDE / 4, mode="constant")
    middle = np.unravel_index(int(density.argmax()), mask.shape)
    y, x = (min(max(0, int(m) - s // 2), n - s) for m, s, n in zip(middle, size, mask.shape, strict=True))
    return slice(y, y + size[0]), slice(x, x + size[1])
