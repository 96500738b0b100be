"""Zero mean and unit deviation, measured on the volume: what makes one model fit differently exposed images."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..blocks import Box, Grid
from ..blocks.blending import Array
from ..errors import DataError
from ..volumes import Volume

_CUBES = 64
_SIDE = (16, 128, 128)


class Normalization(BaseModel):
    """Grey values become (value - mean) / deviation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float = Field(allow_inf_nan=False)
    deviation: float = Field(gt=0, allow_inf_nan=False)

    @classmethod
    def of(cls, volume: Volume) -> Self:
        """Measure a volume on at most 64 boxes spread over it, always the same; 0, the padding, does not count.

        Raises:
            DataError: where all that was looked at has one value.
        """
        histogram = np.zeros(256, np.int64)
        for box in _boxes(volume):
            histogram += np.bincount(volume.read(box).ravel(), minlength=256)
        return cls.of_histogram(histogram, volume.url)

    @classmethod
    def of_further(cls, volume: Volume) -> Self:
        """Measure a further channel; one that does not reach here, and is 0 all over, says nothing: it stays 0."""
        try:
            return cls.of(volume)
        except DataError:
            if any(volume.read(box).any() for box in _boxes(volume)):
                raise
            return cls(mean=0.0, deviation=1.0)

    @classmethod
    def of_histogram(cls, histogram: NDArray[np.int64], name: str) -> Self:
        """Return mean and deviation of grey values counted from 0 to 255, 0 left out."""
        counts, values = histogram[1:].astype(np.float64), np.arange(1, 256)
        total = counts.sum()
        mean = float((counts * values).sum() / total) if total else 0.0
        deviation = float(np.sqrt((counts * (values - mean) ** 2).sum() / total)) if total else 0.0
        if deviation == 0:
            raise DataError(f"{name}: the image has a single grey value; name an image with content")
        return cls(mean=round(mean, 3), deviation=round(deviation, 3))

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return normalized grey values, float32, of the same shape."""
        return (image.astype(np.float32) - np.float32(self.mean)) / np.float32(self.deviation)

    def on(self, device: Any, images: Array) -> Array:
        """Return what `apply` makes of grey values, of the same bits, for a tensor on a PyTorch device."""
        mean, deviation = _constants(device, self.mean, self.deviation)
        return (images - mean).div_(deviation)

    def grey(self, values: Array) -> Array:
        """Return normalized values as grey values, the inverse of `apply`; 1 to 255, since 0 is empty."""
        if not isinstance(values, np.ndarray):
            return values.mul(self.deviation).add_(self.mean).round_().clip_(1, 255).byte()
        grey = values * np.float32(self.deviation) + np.float32(self.mean)
        return np.asarray(np.clip(np.rint(grey, out=grey), 1, 255), np.uint8)


def _boxes(volume: Volume) -> Iterator[Box]:
    """Yield at most 64 boxes spread over a volume, always the same."""
    grid = Grid(volume.spec.shape, _SIDE)
    count = min(_CUBES, len(grid))
    for k in range(count):
        # steps of the golden ratio spread over all axes, where even steps could follow one
        yield grid.box(k if count == len(grid) else int((k * 0.6180339887498949 % 1) * len(grid)))


@dataclass(frozen=True)
class ChannelNormalization:
    """Each image channel normalized by its own mean and deviation."""

    channels: tuple[Normalization, ...]

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return normalized grey values, float32, of an image (channel, z, y, x)."""
        return np.stack([each.apply(values) for each, values in zip(self.channels, image, strict=True)])

    def on(self, device: Any, images: Array) -> Array:
        """Return what `apply` makes of images, of the same bits, for a tensor (n, channel, z, y, x) on a device."""
        import torch

        return torch.stack([each.on(device, images[:, k]) for k, each in enumerate(self.channels)], 1)


@lru_cache(maxsize=16)
def _constants(device: Any, mean: float, deviation: float) -> tuple[Array, Array]:
    """Return both as float32 on a device, where a division by a plain number would multiply by its inverse."""
    import torch

    return torch.tensor(mean, device=device), torch.tensor(deviation, device=device)
