"""Boundaries: a boundary map from the image alone, without training.

Membranes are dark sheets.  Where a sheet runs, the second derivative across it is large and positive,
and along it small: the largest eigenvalue of the Hessian of Gaussian, over several scales, tells a
membrane from the blob of a vesicle and from flat cytosol (after Frangi et al., MICCAI 1998, and Sato et
al., Medical Image Analysis 1998).  Any user gets a first result from it; a trained network is better.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Box, Vector
from ..errors import ConfigurationError
from ..volumes.volume import Nanometres
from .base import Data, Length, Source, Step, Target, TiledStage, looked_at, over_cells, pyramid_steps


class Boundaries(TiledStage):
    """Ridge filter on the image; 0 is inside a cell, 255 on a membrane."""

    kind: ClassVar[str] = "boundaries"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("image",)

    image: str = Field("image", description="the image volume")
    scales: tuple[Length, ...] = Field(
        (14.0, 24.0), min_length=1, description="widths of the filter in nm: half the thickness of a membrane"
    )
    sections: Literal["auto", "one by one", "together"] = Field(
        "auto", description="filter each section alone (coarse z) or in 3D"
    )
    contrast: float = Field(1.0, gt=0, description="larger: weaker edges count as membranes")
    invert: bool = Field(False, description="membranes are bright")

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan one pass over tiles, and the pyramid."""
        image = sources["image"].spec
        if not image.is_grey:
            raise ConfigurationError(
                f"image: '{sources['image'].name}' holds {image.dtype} {image.kind}; an 8-bit gray image is needed: "
                "import it as one, with --to-8bit where it has 16"
            )
        spec = replace(image, dtype="uint8", kind="image")
        output = self.output("boundaries", spec, pyramid=True)
        flat = image.is_coarse if self.sections == "auto" else self.sections == "one by one"
        halo = filter_halo(self.scales, image.voxel_size, flat=flat)

        def compute(cell: int, box: Box, data: Data) -> None:
            outer = box.grow(halo).clip(image.box)
            voxels = data.volume("image").read(outer)
            ridges = ridge_filter(
                255 - voxels if self.invert else voxels,
                box.relative_to(outer.start),
                image.voxel_size,
                scales=self.scales,
                flat=flat,
                contrast=self.contrast,
            )
            data.write("boundaries", box, ridges)

        grid = output.grid()
        return [
            Step("boundaries", grid, (Target(output),), over_cells(grid, compute), effort=looked_at(grid, halo)),
            *pyramid_steps(output),
        ]


_NEIGHBOURHOOD = 120.0
"""Width in nm of the surroundings against whose mean and deviation the image is measured."""

_NOISE, _MEMBRANE = 0.1, 0.9
"""Strengths of a sheet, in local deviations, that count as no membrane and as certainly one."""


def filter_halo(scales: tuple[float, ...], voxel_size: Nanometres, *, flat: bool) -> Vector:
    """Return the voxels (z, y, x) around a tile that the filter reads."""
    reach = max(4.5 * max(scales), 2 * _NEIGHBOURHOOD)
    z, y, x = (int(np.ceil(reach / v)) for v in voxel_size)
    return (0 if flat else z, y, x)


def ridge_filter(
    image: NDArray[np.uint8],
    inner: Box,
    voxel_size: Nanometres,
    *,
    scales: tuple[float, ...],
    flat: bool,
    contrast: float = 1.0,
) -> NDArray[np.uint8]:
    """Return the strength of dark sheets, 0 to 255, within the box `inner` of an image (z, y, x).

    What lies around the box is context; `flat` filters each section alone.
    """
    if flat:
        z, y, x = inner.slices
        sections = range(z.start, z.stop)
        return np.stack([_ridges(image[k], (y, x), voxel_size[1:], scales, contrast) for k in sections])
    return _ridges(image, inner.slices, voxel_size, scales, contrast)


def _ridges(
    image: NDArray[np.uint8],
    inner: tuple[slice, ...],
    voxel_size: tuple[float, ...],
    scales: tuple[float, ...],
    contrast: float,
) -> NDArray[np.uint8]:
    from bioimage_cpp.filters import hessian_of_gaussian_eigenvalues

    near = tuple(
        slice(
            max(0, s.start - int(np.ceil(4.5 * max(scales) / v))),
            s.stop + int(np.ceil(4.5 * max(scales) / v)),
        )
        for s, v in zip(inner, voxel_size, strict=True)
    )
    values = _normalized(image, near, voxel_size)
    within = tuple(slice(s.start - n.start, s.stop - n.start) for s, n in zip(inner, near, strict=True))
    best = np.zeros([s.stop - s.start for s in inner], np.float32)
    for scale in scales:
        sigma = tuple(max(scale / v, 0.7) for v in voxel_size)
        eigenvalues = hessian_of_gaussian_eigenvalues(values, sigma)[within]
        sheet = eigenvalues[..., 0] - np.abs(eigenvalues[..., 1]) * np.float32(0.5)
        np.maximum(best, sheet * np.float32(min(sigma) ** 2), out=best)
    # a ramp uses exact arithmetic only, so the same bits come out on every processor
    strength = (best - np.float32(_NOISE)) * np.float32(255 * contrast / (_MEMBRANE - _NOISE))
    ridges: NDArray[np.uint8] = (np.clip(strength, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return ridges


def _normalized(
    image: NDArray[np.uint8], near: tuple[slice, ...], voxel_size: tuple[float, ...]
) -> NDArray[np.float32]:
    """Return the part `near` of the image less its local mean, over its local deviation.

    Both are smooth, so they are measured on a coarser image, at a fraction of the cost.
    """
    from bioimage_cpp.filters import gaussian_smoothing

    factor = [max(1, int(_NEIGHBOURHOOD / 3 / v)) for v in voxel_size]
    padded = np.pad(image, [(0, -n % f) for n, f in zip(image.shape, factor, strict=True)], mode="edge")
    cells = padded.reshape([k for n, f in zip(padded.shape, factor, strict=True) for k in (n // f, f)])
    axes, count = tuple(range(1, 2 * image.ndim, 2)), np.float32(np.prod(factor))
    wide = tuple(_NEIGHBOURHOOD / v / f for v, f in zip(voxel_size, factor, strict=True))
    mean = gaussian_smoothing(cells.sum(axes, dtype=np.uint32).astype(np.float32) / count, wide)
    squares = np.square(cells, dtype=np.uint16).sum(axes, dtype=np.uint32).astype(np.float32)
    # a floor on the deviation keeps noise in blank padding from looking like membranes
    deviation = np.sqrt(np.maximum(gaussian_smoothing(squares / count, wide) - mean * mean, np.float32(16)))
    values = image[near].astype(np.float32)
    values -= _magnified(mean, near, image.shape, factor)
    values /= _magnified(deviation, near, image.shape, factor)
    return values


def _magnified(
    coarse: NDArray[np.float32], near: tuple[slice, ...], shape: tuple[int, ...], factor: list[int]
) -> NDArray[np.float32]:
    """Return the part `near` of a coarse array brought back to `shape` by linear interpolation."""
    for axis, (part, size, f) in enumerate(zip(near, shape, factor, strict=True)):
        position = np.clip((np.arange(*part.indices(size)) + 0.5) / f - 0.5, 0, coarse.shape[axis] - 1)
        low = position.astype(np.intp)
        high = np.minimum(low + 1, coarse.shape[axis] - 1)
        weight = (position - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(coarse.ndim)])
        start = coarse.take(low, axis)
        coarse = start + (coarse.take(high, axis) - start) * weight
    return coarse
