"""Sections through a piece of tissue: what each voxel's middle lies in, and in what shade it is to be drawn."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box
from .cytoskeleton import MICROTUBULE_RADIUS
from .randomness import SmoothNoise, normal, stream
from .reticulum import reticulum
from .settings import Neuropil
from .tissue import ORGANELLES, Distances, Sample, Tissue

VoxelSize = tuple[float, float, float]
Row = NDArray[np.float64]
Truth = NDArray[Any]

EDGE = 2
"""Pixels around a tile that are drawn as well, for the microscope to blur."""

_RUFFLES = ((0.8, 0.4, 0.2), (0.25, 0.11, 0.04))  # of the surfaces of cells: spacing, scale, limit in diameters
_DENSITY = 24.0  # half the thickness (nm) of the dense membranes of a synapse
_CLEAR = 12.0  # nm between organelles

_NEEDS: dict[str, frozenset[str]] = {
    "image": ORGANELLES,
    "mitochondria": frozenset({"mitochondrion"}),
    "mitochondria_labels": frozenset({"mitochondrion"}),
    "vesicles": frozenset({"mitochondrion", "vesicle"}),
    "vesicle_clouds": frozenset({"mitochondrion", "cloud"}),
    "vesicle_cloud_labels": frozenset({"mitochondrion", "cloud"}),
    "synapses": frozenset({"synapse", "pedestal"}),
    "synapse_labels": frozenset({"synapse", "pedestal"}),
    "nuclei": frozenset({"nucleus"}),
    "nucleus_labels": frozenset({"nucleus"}),
    "er": ORGANELLES - {"synapse", "pedestal"},
    "cytoskeleton": ORGANELLES - {"synapse", "pedestal"},
    "cytosol": ORGANELLES,
}
_WITH_RETICULUM = {"image", "er", "cytoskeleton", "cytosol"}
_WITH_MICROTUBULES = {"image", "cytoskeleton", "cytosol"}


@dataclass(frozen=True)
class Plane:
    """A plane through tissue: what a sample of it holds, and distances (nm) that are 1e6 where not asked for.

    `reticulum` is from the surface, negative inside; `microtubule` from the middle of one; `cleft` is half
    the width of the space between cells; `synapse` the index of the synapse a point is part of, -1 for none.
    """

    sample: Sample
    reticulum: Distances
    microtubule: Distances
    cleft: Distances
    synapse: NDArray[np.int32]

    def distance(self, organelle: str) -> Distances:
        """Return how far points are from an organelle's surface."""
        return self.sample.organelles[organelle].distance


class Sections:
    """The sections of one tile, and what is needed of them for the arrays `wanted`."""

    def __init__(self, config: Neuropil, voxel_size: VoxelSize, box: Box, wanted: Collection[str]) -> None:
        self.config, self.voxel_size, self._wanted = config, voxel_size, frozenset(wanted)
        self.rows, self.columns = (np.arange(box.start[axis] - EDGE, box.stop[axis] + EDGE) for axis in (1, 2))
        self._ruffle = Ruffle(config)
        aside = np.array([0, 3.5, 3.5]) * config.shift_deviation * voxel_size[0] + self._ruffle.largest
        edge, size = np.array([0, EDGE, EDGE]), np.array(voxel_size)
        self.tissue = Tissue(
            config.neurites,
            (np.array(box.start) - edge) * size - aside,
            (np.array(box.stop) + edge) * size + aside,
            density=config.density,
            gap=config.gap,
            wanted=frozenset().union(*(_NEEDS.get(name, frozenset()) for name in wanted)),
        )
        self.classes = config.neurites.classes(self.tissue.cells)
        self._reticulum = reticulum(config.neurites, self.tissue.cells, config.reticulum)
        self._cleft = SmoothNoise(stream(config.seed, "cleft"), (500.0,) * 3)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a plane, its edge included."""
        return len(self.rows), len(self.columns)

    def places(self, z: int) -> tuple[Row, Row, Row]:
        """Return where (nm) section `z`, its rows and its columns lie in the tissue."""
        thickness, height, width = self.voxel_size
        shift = section_shift(self.config, thickness, np.array([z]))[0]
        rows = (self.rows + 0.5) * height + shift[0]
        return np.array([(z + 0.5) * thickness]), rows, (self.columns + 0.5) * width + shift[1]

    def plane(self, z: int, height: float, *, middle: bool = True) -> Plane:
        """Return the plane at a height (nm) of section `z`; microtubules only of the one in the `middle`."""
        _, y, x = self.places(z)
        at = np.array([height])
        origin = self.tissue.origin
        straight = (height - origin[0], (y - origin[1])[:, None], (x - origin[2])[None, :])
        ruffled = self._ruffle.on_axes(at, y, x)
        point = [(r + np.asarray(p, np.float32)).ravel() for r, p in zip(ruffled, straight, strict=True)]
        sample = self.tissue.sample(*point)
        far = np.full(sample.cell.shape, np.float32(1e6))
        cleft = np.zeros(sample.cell.shape, np.float32)
        if self.config.cleft:
            cleft += self.config.cleft / 2 * np.clip(0.5 + 3 * self._cleft.on_axes(at, y, x).ravel(), 0, 1)
        er, microtubule = far, far
        if self._wanted & _WITH_RETICULUM and self.config.reticulum:
            er = self._inside(sample, self._reticulum.distance(at, y, x, sample.cell))
        if middle and self._wanted & _WITH_MICROTUBULES and self.config.microtubules:
            microtubule = self._inside(sample, self.tissue.microtubules(sample.cell, *point) - self._tube) + self._tube
            microtubule = np.where(er < _CLEAR, far, microtubule)
        return Plane(sample, er, microtubule, cleft, self._synapse(sample))

    @property
    def _tube(self) -> np.float32:
        """The radius (nm) of a microtubule, or that of a pixel where it is wider."""
        return np.float32(max(MICROTUBULE_RADIUS, max(self.voxel_size[1:]) / 2))

    def _inside(self, sample: Sample, distance: Distances) -> Distances:
        """Return the distance from what is left of a structure clear of membranes and other organelles."""
        left = np.maximum(distance, np.float32(self.config.gap) - sample.membrane)
        for name in ("mitochondrion", "cloud", "nucleus"):
            np.maximum(left, np.float32(_CLEAR) - sample.organelles[name].distance, out=left)
        return np.asarray(left, np.float32)

    def _synapse(self, sample: Sample) -> NDArray[np.int32]:
        """Return the index of the synapse that points are part of, -1 for none."""
        found = np.full(sample.cell.shape, -1, np.int32)
        if not {"synapse", "pedestal"} <= self.tissue.instances.keys() or not len(self.tissue.synapses):
            return found
        cells, synapses = self.tissue.cells, self.tissue.synapses
        body = np.flatnonzero(sample.organelles["pedestal"].distance < 0)
        index = sample.organelles["pedestal"].index[body]
        within = cells[sample.cell[body]] == synapses.presynaptic[index]
        found[body[within]] = index[within]
        near = sample.organelles["synapse"]
        patch = np.flatnonzero((near.index >= 0) & (sample.membrane < _DENSITY))
        index = near.index[patch]
        pair = np.sort(np.stack([cells[sample.cell[patch]], cells[sample.neighbour[patch]]]), 0)
        both = np.sort(np.stack([synapses.presynaptic[index], synapses.postsynaptic[index]]), 0)
        within = (pair == both).all(0) & (near.distance[patch] < synapses.radii[index])
        found[patch[within]] = index[within]
        return found

    def truth(self, plane: Plane) -> dict[str, Truth]:
        """Return the arrays wanted of a plane but the image, each of shape (y, x), without the edge."""
        sample, cells = plane.sample, self.tissue.cells
        inner = (slice(EDGE, -EDGE), slice(EDGE, -EDGE))
        masks = {
            "membranes": sample.membrane < np.float32(self.config.membrane_thickness / 2) + plane.cleft,
            "mitochondria": plane.distance("mitochondrion") < 0,
            "vesicles": plane.distance("vesicle") < 0,
            "vesicle_clouds": plane.distance("cloud") < 0,
            "synapses": plane.synapse >= 0,
            "nuclei": plane.distance("nucleus") < 0,
            "er": plane.reticulum < 0,
            "cytoskeleton": plane.microtubule < self._tube,
        }
        arrays: dict[str, Truth] = dict(masks)
        arrays["cytosol"] = ~np.logical_or.reduce(list(masks.values()))
        if "labels" in self._wanted:
            arrays["labels"] = cells[sample.cell]
        if "classes" in self._wanted:
            arrays["classes"] = self.classes[sample.cell]
        for name, organelle, mask in (
            ("mitochondria_labels", "mitochondrion", "mitochondria"),
            ("vesicle_cloud_labels", "cloud", "vesicle_clouds"),
            ("nucleus_labels", "nucleus", "nuclei"),
        ):
            if name in self._wanted:
                arrays[name] = self._instances(organelle, sample.organelles[organelle].index, masks[mask])
        if "synapse_labels" in self._wanted:
            arrays["synapse_labels"] = self._instances("synapse", plane.synapse, masks["synapses"])
        return {name: flat.reshape(self.shape)[inner] for name, flat in arrays.items() if name in self._wanted}

    def _instances(self, organelle: str, index: NDArray[np.int32], mask: NDArray[np.bool_]) -> Truth:
        labels = np.zeros(mask.shape, np.uint64)
        labels[mask] = self.tissue.instances[organelle][index[mask]]
        return labels


class Ruffle:
    """The displacement (nm) by which the surfaces of cells are uneven."""

    def __init__(self, config: Neuropil) -> None:
        diameter = config.neurite_diameter
        self.largest = diameter * sum(limit for _, _, limit in _RUFFLES)
        self._waves = [
            (
                [
                    SmoothNoise(stream(config.seed, f"ruffle {n} {axis}"), (diameter * spacing,) * 3)
                    for axis in range(3)
                ],
                diameter * scale,
                diameter * limit,
            )
            for n, (spacing, scale, limit) in enumerate(_RUFFLES)
        ]

    def on_axes(self, z: Row, y: Row, x: Row) -> list[NDArray[np.float32]]:
        """Return the three displacements on a plane, each of shape (y, x)."""
        return [
            np.asarray(
                sum(np.clip(scale * n[axis].on_axes(z, y, x)[0], -limit, limit) for n, scale, limit in self._waves),
                np.float32,
            )
            for axis in range(3)
        ]

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the displacements at scattered points, shape (n, 3)."""
        rows = [
            sum(np.clip(scale * n[axis].at(points), -limit, limit) for n, scale, limit in self._waves)
            for axis in range(3)
        ]
        return np.stack(rows, 1)


def section_shift(config: Neuropil, thickness: float, z: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return by how much (nm, along y and x) sections lie aside, shape (n, 2)."""
    chance = normal(stream(config.seed, "shift"), z[:, None], np.arange(2))
    return np.asarray(config.shift_deviation * thickness * chance, np.float64)
