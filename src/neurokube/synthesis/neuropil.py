"""Synthetic neuropil as an electron microscope shows it, with its ground truth."""

from functools import lru_cache
from itertools import product
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..blocks import Box, Vector
from ..errors import ConfigurationError
from .neurites import Neurites
from .randomness import SmoothNoise, normal, stream, uniform
from .tissue import Sample, Tissue

VoxelSize = tuple[float, float, float]
Row = NDArray[np.float64]
Plane = NDArray[np.float32]

_TYPES = {"image": "uint8", "labels": "uint64", "membranes": "uint8", "mitochondria": "uint8", "vesicles": "uint8"}
_CYTOSOL, _MEMBRANE, _MATRIX, _RIM, _VESICLE = 174.0, 54.0, 114.0, 72.0, 78.0
_RUFFLE, _RUFFLE_SPACING, _RUFFLE_LIMIT = 0.4, 0.8, 0.2  # of the surfaces of cells, in mean diameters
_BLUR = np.array([0.01, 0.19, 0.6, 0.19, 0.01], np.float32)  # the microscope's, in pixels
_EDGE = len(_BLUR) // 2


class Neuropil(BaseModel):
    """What synthetic neuropil is like; lengths in nm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**31, description="another seed, another tissue")
    neurite_diameter: float = Field(320, ge=100, le=2000, description="mean diameter of a neurite")
    membrane_thickness: float = Field(22, gt=0, description="of the membranes between two cells, together")
    mitochondria: float = Field(0.5, ge=0, le=1, description="share of the sites in wide neurites that hold one")
    vesicles: float = Field(0.15, ge=0, le=1, description="share of the sites along neurites that hold a cluster")
    noise: float = Field(11, ge=0, description="deviation of the noise in grey values, at mid-grey")
    contrast: float = Field(
        0.06, ge=0, le=0.5, description="deviation of gain and brightness between sections of 40 nm"
    )
    shift: float = Field(0.15, ge=0, le=1, description="deviation of a section's place in xy, in section thicknesses")

    @model_validator(mode="after")
    def _thin_membranes(self) -> Self:
        if self.membrane_thickness > self.neurite_diameter / 12:
            raise ValueError("membrane_thickness: at most a twelfth of neurite_diameter")
        return self


def synthesize(config: Neuropil, voxel_size: VoxelSize, box: Box) -> dict[str, NDArray[Any]]:
    """Return a cut of unbounded tissue and its truth, each an array (z, y, x) of the shape of `box`.

        image         uint8    light cytosol, dark membranes
        labels        uint64   the id of the cell, from 1 to 2^53; every voxel belongs to one
        membranes     uint8    1 within half a membrane's thickness of another cell
        mitochondria  uint8    1 inside
        vesicles      uint8    1 inside

    `voxel_size` is (z, y, x) in nm; the middle of voxel (0, 0, 0) lies half a voxel from the tissue's
    origin.  Each voxel is a function of the configuration, the voxel size and its own coordinates: what is
    generated block by block is the same, bit for bit, as what is generated at once.  Truth is that of the
    middle of a section; the image is an average over its thickness.  A section's shift moves both.

    Tissue extends 30 mm from the origin, in both directions, at the default diameter.

    Raises:
        ConfigurationError: where a voxel size is not positive.
    """
    if min(voxel_size) <= 0:
        raise ConfigurationError(f"voxel_size {voxel_size}: each axis needs a length above 0 nm")
    arrays: dict[str, NDArray[Any]] = {name: np.empty(box.shape, dtype) for name, dtype in _TYPES.items()}
    tile = tile_shape(voxel_size)
    spans = [range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, tile, strict=True)]
    for z, y, x in product(*spans) if box.size else ():
        here = Box.of(tile).shift((z * tile[0], y * tile[1], x * tile[2]))
        common = here.clip(box)
        for name, values in _tile(config, voxel_size, here).items():
            arrays[name][common.relative_to(box.start).slices] = values[common.relative_to(here.start).slices]
    return arrays


def tile_shape(voxel_size: VoxelSize) -> Vector:
    """Return the shape of the canonical tiles, the pieces in which tissue is generated."""
    z, y, x = (_power_of_two(limit / v) for v, limit in zip(voxel_size, (700, 2100, 2100), strict=True))
    across = 256 if z <= 16 else 128
    return min(z, 64), min(y, across), min(x, across)


def _power_of_two(limit: float) -> int:
    return int(2 ** max(0, np.floor(np.log2(limit))))


@lru_cache(maxsize=8)
def _tile(config: Neuropil, voxel_size: VoxelSize, box: Box) -> dict[str, NDArray[Any]]:
    microscope = _Microscope(config, voxel_size, box)
    sections = [microscope.section(z) for z in range(box.start[0], box.stop[0])]
    return {name: np.stack([s[name] for s in sections]).astype(dtype) for name, dtype in _TYPES.items()}


class _Microscope:
    """Takes the sections of one tile."""

    def __init__(self, config: Neuropil, voxel_size: VoxelSize, box: Box) -> None:
        self._config, self._voxel_size = config, voxel_size
        self._rows, self._columns = (np.arange(box.start[axis] - _EDGE, box.stop[axis] + _EDGE) for axis in (1, 2))
        spacing = (_RUFFLE_SPACING * config.neurite_diameter,) * 3
        self._ruffle = [SmoothNoise(stream(config.seed, f"ruffle {axis}"), spacing) for axis in range(3)]
        self._grain = SmoothNoise(stream(config.seed, "grain"), (45.0,) * 3)
        thickness = voxel_size[0]
        self._light = [SmoothNoise(stream(config.seed, f"light {n}"), (thickness, 2500.0, 2500.0)) for n in range(2)]
        size = np.array(voxel_size)
        aside = np.array([0, 3.5, 3.5]) * config.shift * thickness + _RUFFLE_LIMIT * config.neurite_diameter
        edge = np.array([0, _EDGE, _EDGE])
        self._tissue = Tissue(
            Neurites(config.seed, config.neurite_diameter),
            (np.array(box.start) - edge) * size - aside,
            (np.array(box.stop) + edge) * size + aside,
            mitochondria=config.mitochondria,
            vesicles=config.vesicles,
            gap=config.membrane_thickness / 2 + 12,
        )
        cells = self._tissue.cells
        shade = 7 * normal(stream(config.seed, "shade"), cells)
        shade -= np.where(uniform(stream(config.seed, "dark"), cells) < 0.06, 28, 0)
        self._shade = shade.astype(np.float32)

    def section(self, z: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of section `z`, each (y, x)."""
        thickness = self._voxel_size[0]
        count = 3 if thickness >= 25 else 1
        planes = [self._plane(z, (z + (n + 0.5) / count) * thickness) for n in range(count)]
        middle = planes[count // 2]
        exposed = np.mean([self._expose(plane) for plane in planes], axis=0, dtype=np.float32)
        inner = (slice(_EDGE, -_EDGE), slice(_EDGE, -_EDGE))
        truth = {
            "labels": self._tissue.cells[middle.cell],
            "membranes": middle.membrane < self._config.membrane_thickness / 2,
            "mitochondria": middle.mitochondrion < 0,
            "vesicles": middle.vesicle < 0,
        }
        shape = (len(self._rows), len(self._columns))
        return {name: flat.reshape(shape)[inner] for name, flat in truth.items()} | {
            "image": self._develop(z, exposed.reshape(shape))
        }

    def _plane(self, z: int, height: float) -> Sample:
        """Return what a plane at a height (nm) of section `z` cuts through."""
        _, y, x = self._places(z)
        at = np.array([height])
        diameter = self._config.neurite_diameter
        ruffled = [
            diameter * np.clip(_RUFFLE * noise.on_axes(at, y, x)[0], -_RUFFLE_LIMIT, _RUFFLE_LIMIT)
            for noise in self._ruffle
        ]
        origin = self._tissue.origin
        straight = (height - origin[0], (y - origin[1])[:, None], (x - origin[2])[None, :])
        point = [(r + np.asarray(p, np.float32)).ravel() for r, p in zip(ruffled, straight, strict=True)]
        return self._tissue.sample(*point)

    def _places(self, z: int) -> tuple[Row, Row, Row]:
        """Return where (nm) section `z`, its rows and its columns lie in the tissue."""
        thickness, height, width = self._voxel_size
        shift = self._config.shift * thickness * normal(stream(self._config.seed, "shift"), z, np.arange(2))
        rows = (self._rows + 0.5) * height + shift[0]
        return np.array([(z + 0.5) * thickness]), rows, (self._columns + 0.5) * width + shift[1]

    def _expose(self, plane: Sample) -> Plane:
        """Return the grey values of a plane, shape (n,)."""
        pixel = max(self._voxel_size[1:])
        level = _CYTOSOL + self._shade[plane.cell]
        level = np.where(plane.mitochondrion < 0, np.float32(_MATRIX), level)
        for distance, half, dark in (
            (plane.mitochondrion, 5, _RIM),
            (plane.vesicle + 5, 5, _VESICLE),
            (plane.membrane, self._config.membrane_thickness / 2, _MEMBRANE),
        ):
            cover = np.clip((half - np.abs(distance)) / np.float32(pixel) + np.float32(0.5), 0, 1)
            level += cover * (np.float32(dark) - level)
        return level

    def _develop(self, z: int, exposed: Plane) -> Plane:
        """Return the grey values (0 to 255) of a section: blurred, with grain, noise and uneven light."""
        config = self._config
        at, y, x = self._places(z)
        grain = 55 * self._grain.on_axes(at, y, x)[0]
        noise = normal(stream(config.seed, "noise"), z, self._rows[:, None], self._columns[None, :])
        clean, noise = _blur(exposed + grain), _blur(noise) / float((_BLUR**2).sum())
        gain, offset = (
            normal(stream(config.seed, f"exposure {n}"), z) + 3 * light.on_axes(at, y, x)[0, _EDGE:-_EDGE, _EDGE:-_EDGE]
            for n, light in enumerate(self._light)
        )
        # shot noise grows with the square root of what is counted
        noise *= config.noise * np.sqrt(np.clip(clean, 16, None) / 128)
        # block faces, imaged in place, are steadier than sections cut and collected one by one
        contrast = config.contrast * min(1, self._voxel_size[0] / 40)
        grey = 128 + (clean - 128) * np.exp(contrast * gain) + 60 * contrast * offset + noise
        return np.asarray(np.clip(np.rint(grey), 0, 255), np.float32)


def _blur(plane: Plane) -> Plane:
    """Return a plane blurred, its edge of two pixels removed."""
    height, width = (n - 2 * _EDGE for n in plane.shape)
    down = sum(w * plane[n : n + height] for n, w in enumerate(_BLUR))
    return np.asarray(sum(w * down[:, n : n + width] for n, w in enumerate(_BLUR)))
