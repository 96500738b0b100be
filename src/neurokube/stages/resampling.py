"""Resampling: another volume on the voxels of the image, where an affine transformation puts it.

Each voxel of the image is looked up in the volume: by linear interpolation, or, of labels, where it lies.  Where the
volume is the finer one, its resolution nearest to the image's is read, and what is still too fine is smoothed away, so
that nothing aliases.  A tile reads what it needs around it and is computed by itself, so that no block changes a bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from ..blocks import Box, Vector
from ..errors import ConfigurationError
from ..volumes import Volume, VolumeSpec
from ..volumes.affine import HERE, apart, between, covered, within
from .base import SINGLE, Block, Data, Source, Step, TableOutput, Target, TiledStage, over_cells, pyramid_steps

_TRUNCATE = 4.0
"""Deviations at which a Gaussian ends."""
Value = Annotated[float, Field(allow_inf_nan=False)]


class Resampling(TiledStage):
    """Another volume, as one of light microscopy, on the voxels of the image; 0 outside of it."""

    kind: ClassVar[str] = "resampling"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("volume", "like")
    transformed: ClassVar[tuple[str, ...]] = ("volume",)

    volume: str = Field(description="the volume that is resampled, an image or labels")
    like: str = Field("image", description="the volume on whose voxels")
    channel: NonNegativeInt = Field(0, description="which one, of several")
    interpolation: Literal["linear", "nearest"] | None = Field(
        None, description="between voxels [default: linear, of labels nearest]"
    )
    window: tuple[Value, Value] | None = Field(
        None, description="values that become 1 to 255 [default: 8 bits stay; of 16, the 0.1 and 99.9 percentiles]"
    )

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say how much of the other volume is covered."""
        lookup = self._lookup(sources)
        share = covered(lookup.matrix, lookup.source, lookup.target)
        name, other = sources["volume"].name, sources["like"].name
        if apart(lookup.matrix, lookup.source, lookup.target):
            return [f"'{name}' lies nowhere in '{other}' as it is here: all is 0"]
        what = f"'{name}' covers {_percent(share)} of '{other}'"
        hint = "it is 0 elsewhere; if that is less than it should be, check axes, unit and direction of its affine"
        return [f"{what}; {hint}" if share < 1 else what]

    def findings(self, sources: Mapping[str, Source], data: Data) -> list[str]:
        """Say which values became 1 to 255, where they were measured."""
        if not self._measures(sources["volume"].spec):
            return []
        low, high = data.table("window", 0).tolist()
        return [f"values {low:g} to {high:g} became 1 to 255; 'window: [{low:g}, {high:g}]' keeps them"]

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan the window of values, where it is measured, one pass over tiles, and the pyramid."""
        lookup = self._lookup(sources)
        source, target = lookup.source, lookup.target
        labels = source.kind == "labels"
        spec = replace(target, dtype=source.dtype if labels else "uint8", kind=source.kind, channels=None)
        output = self.output(self.kind, spec, pyramid=True)

        def compute(cell: int, box: Box, data: Data) -> None:
            data.write(self.kind, box, self._tile(box, lookup, data))

        measured = []
        if self._measures(source):
            target_table = Target(TableOutput("window", SINGLE))
            measured = [Step("window", SINGLE, (target_table,), self._measure)]
        step = Step(self.kind, output.grid(), (Target(output),), over_cells(output.grid(), compute))
        return [*measured, step, *pyramid_steps(output)]

    def _measures(self, source: VolumeSpec) -> bool:
        return source.kind == "image" and self.window is None and source.dtype != "uint8"

    def _lookup(self, sources: Mapping[str, Source]) -> "_Lookup":
        found, other = sources["volume"], sources["like"]
        source, target = found.spec, other.spec
        self._check(found.name, source)
        affine = HERE if found.affine is None else np.array(found.affine)
        matrix = between(affine, source, target)
        nearest = (self.interpolation or ("nearest" if source.kind == "labels" else "linear")) == "nearest"
        return _Lookup(source, target, matrix, nearest)

    def _check(self, name: str, source: VolumeSpec) -> None:
        if self.channel >= (source.channels or 1):
            raise ConfigurationError(
                f"channel: '{name}' has {source.channels or 1}, counted from 0; there is no {self.channel}"
            )
        if source.kind == "labels":
            if self.window is not None:
                raise ConfigurationError(f"window: '{name}' holds labels, which keep their values; leave it out")
            if self.interpolation == "linear":
                raise ConfigurationError(f"interpolation: '{name}' holds labels; leave it out")
        elif source.dtype not in ("uint8", "uint16"):
            raise ConfigurationError(f"volume: '{name}' holds {source.dtype}; import it with --to-8bit auto")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ConfigurationError("window: its first value must be below the second")

    def _measure(self, block: Block, data: Data) -> None:
        from ..volumes.importing import percentiles

        volume = self._opened(data)
        z, y, x = volume.spec.shape
        data.put("window", 0, np.array(percentiles(z, lambda k: volume.read(Box((k, 0, 0), (k + 1, y, x))))))

    def _opened(self, data: Data) -> Volume:
        """Return the volume with a single channel."""
        volume = data.volume("volume")
        if volume.spec.channels is None:
            return volume
        arrays = tuple(array[self.channel] for array in volume.arrays)
        return replace(volume, arrays=arrays, spec=replace(volume.spec, channels=None))

    def _tile(self, box: Box, lookup: "_Lookup", data: Data) -> NDArray[Any]:
        volume = self._opened(data)
        at = [np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)]
        inside = np.broadcast_to(within(lookup.matrix, at, lookup.source.shape), box.shape)
        if not inside.any():
            return np.zeros(box.shape, lookup.source.dtype if lookup.source.kind == "labels" else np.uint8)
        values = lookup.nearest_of(volume, box) if lookup.nearest else lookup.linear_of(volume, box)
        if lookup.source.kind == "image":
            window = self.window
            if self._measures(lookup.source):
                low, high = data.table("window", 0).tolist()
                window = (low, high)
            values = _grey(values, window)
        return np.where(inside, values, values.dtype.type(0))


def _percent(share: float) -> str:
    return "all" if share == 1 else f"about {100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def _grey(values: NDArray[Any], window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Return values as 1 to 255, since 0 is what is outside."""
    if window is not None:
        low, high = window
        values = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.asarray(np.clip(np.rint(values), 1, 255), np.uint8)


@dataclass(frozen=True)
class _Lookup:
    """Where the voxels of one volume, the target, lie in another, the source: `matrix` (3, 4), in voxels (z, y, x)."""

    source: VolumeSpec
    target: VolumeSpec
    matrix: NDArray[np.float64]
    nearest: bool

    @property
    def _reach(self) -> NDArray[np.float64]:
        """How many voxels of the source one of the target spans, along each axis of the source."""
        return np.asarray(np.linalg.norm(self.matrix[:, :3], axis=1))

    def linear_of(self, volume: Volume, box: Box) -> NDArray[np.float32]:
        """Return a box of the target's voxels, interpolated; outside of the source as at its face."""
        from scipy.ndimage import affine_transform, gaussian_filter

        level, factors = self._level(volume)
        # a coarser resolution begins at the same corner, half a voxel before the middle of the first
        linear = self.matrix[:, :3] / factors[:, None]
        shift = (self.matrix[:, 3] + 0.5) / factors - 0.5
        # as scikit-image smooths before it makes smaller
        sigma = np.maximum(0, (self._reach / factors - 1) / 2)
        halo = [int(_TRUNCATE * s + 0.5) + 1 for s in sigma]
        crop = _needed(linear, shift, box, halo, volume.level_shape(level))
        values = volume.read(crop, level).astype(np.float32)
        if sigma.any():
            values = gaussian_filter(values, sigma, mode="nearest", truncate=_TRUNCATE)
        return np.asarray(
            affine_transform(
                values,
                linear,
                linear @ box.start + shift - crop.start,
                output_shape=box.shape,
                output=np.float32,
                order=1,
                mode="nearest",
                prefilter=False,
            )
        )

    def nearest_of(self, volume: Volume, box: Box) -> NDArray[Any]:
        """Return a box of the target's voxels, each the source's in whose extent its middle lies; labels are exact."""
        linear, shift = self.matrix[:, :3], self.matrix[:, 3]
        crop = _needed(linear, shift, box, [1, 1, 1], volume.level_shape(0))
        values = volume.read(crop)
        y, x = np.ix_(*(np.arange(a, b) for a, b in zip(box.start[1:], box.stop[1:], strict=True)))
        out = np.empty(box.shape, values.dtype)
        for k, z in enumerate(range(box.start[0], box.stop[0])):
            # section by section: three indices a voxel take more memory than the voxel
            index = []
            for row, first, n in zip(self.matrix, crop.start, crop.shape, strict=True):
                place = np.floor(row[0] * z + row[1] * y + row[2] * x + row[3] + 0.5).astype(np.int64)
                index.append(np.clip(place - first, 0, n - 1))
            out[k] = values[tuple(index)]
        return out

    def _level(self, volume: Volume) -> tuple[int, NDArray[np.float64]]:
        """Return the coarsest resolution that is nowhere coarser than the target, and its factors."""
        chosen, finest = 0, np.array(volume.voxel_sizes[0] if volume.voxel_sizes else self.source.voxel_size)
        factors = np.ones(3)
        for level, size in enumerate(volume.voxel_sizes):
            coarser = np.array(size) / finest
            if (coarser <= self._reach * 1.001).all():
                chosen, factors = level, coarser
        return chosen, factors


def _needed(
    linear: NDArray[np.float64], shift: NDArray[np.float64], box: Box, halo: Sequence[int], shape: Vector
) -> Box:
    """Return the source's voxels between which the middles of a box lie, with a halo; at least one along each axis."""
    ends = np.array([box.start, np.array(box.stop) - 1])
    products = linear[None] * ends[:, None]
    low, high = products.min(0).sum(1) + shift, products.max(0).sum(1) + shift
    spans = []
    for a, b, h, n in zip(low.tolist(), high.tolist(), halo, shape, strict=True):
        start = min(max(0, floor(a) - h), n - 1)
        spans.append((start, max(start + 1, min(n, ceil(b) + h + 1))))
    (z0, z1), (y0, y1), (x0, x1) = spans
    return Box((z0, y0, x0), (z1, y1, x1))
