"""Synthetic neuropil as an electron microscope shows it, with its ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..blocks import Box, Vector
from ..errors import ConfigurationError
from . import organelles
from .microscope import Microscope
from .neurites import Balls
from .prediction import Prediction
from .sections import Ruffle, Sections, VoxelSize, section_shift
from .settings import Neuropil
from .synapses import Synapses, reach, synapses

Array = Literal[
    "image",
    "labels",
    "membranes",
    "mitochondria",
    "vesicles",
    "classes",
    "er",
    "cytoskeleton",
    "vesicle_clouds",
    "synapses",
    "nuclei",
    "cytosol",
    "mitochondria_labels",
    "vesicle_cloud_labels",
    "synapse_labels",
    "nucleus_labels",
    "boundaries",
]
"""What there is to know of a voxel."""

ARRAYS: tuple[Array, ...] = get_args(Array)
"""The names of all arrays, in order."""

BASIC: tuple[Array, ...] = ARRAYS[:5]
"""The names of the arrays that are made unless others are asked for."""

_AT_ONCE = 4000.0  # nm, edge of the pieces in which synapses are looked for


def dtype_of(name: Array) -> str:
    """Return the data type of an array: `uint64` of instance labels, else `uint8`."""
    return "uint64" if name.endswith("labels") else "uint8"


def synthesize(
    config: Neuropil, voxel_size: VoxelSize, box: Box, only: Sequence[Array] = BASIC
) -> dict[str, NDArray[Any]]:
    """Return a cut of unbounded tissue and its truth, each an array (z, y, x) of the shape of `box`.

        image                 uint8    light cytosol, dark membranes
        labels                uint64   the id of the cell, from 1 to 2^53; every voxel belongs to one
        classes               uint8    1 axon, 2 dendrite, 3 glia
        membranes             uint8    1 within half a membrane's thickness of another cell
        mitochondria          uint8    1 inside; mitochondria_labels, uint64, tells them apart
        er                    uint8    1 in endoplasmic reticulum, its membrane included
        cytoskeleton          uint8    1 in microtubules, drawn at least one pixel wide
        vesicles              uint8    1 in single vesicles
        vesicle_clouds        uint8    1 in the clusters they form; vesicle_cloud_labels, uint64
        synapses              uint8    1 in dense membranes and presynaptic body; synapse_labels, uint64
        nuclei                uint8    1 in nuclei; nucleus_labels, uint64, the id of the cell
        cytosol               uint8    1 in no membrane and none of these
        boundaries            uint8    0 to 255, a boundary map as a network would predict it

    `only` names those to return, and only what they need is computed.  `voxel_size` is (z, y, x) in nm; the
    middle of voxel (0, 0, 0) lies half a voxel from the tissue's origin.  Each voxel is a function of the
    configuration, the voxel size and its own coordinates: what is generated block by block is the same, bit
    for bit, as what is generated at once.  Truth is that of the middle of a section; the image is an average
    over its thickness.  A section's shift moves both.

    Tissue extends 30 mm from the origin, in both directions, at the default diameter.

    Raises:
        ConfigurationError: where a voxel size is not positive, or an array unknown.
    """
    _check(voxel_size)
    if unknown := [name for name in only if name not in ARRAYS]:
        raise ConfigurationError(f"only: no array is called '{unknown[0]}'; there are {', '.join(ARRAYS)}")
    arrays: dict[str, NDArray[Any]] = {name: np.empty(box.shape, dtype_of(name)) for name in only}
    wanted = tuple(name for name in ARRAYS if name in only)
    tile = tile_shape(voxel_size)
    spans = [range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, tile, strict=True)]
    for z, y, x in product(*spans) if box.size and only else ():
        here = Box.of(tile).shift((z * tile[0], y * tile[1], x * tile[2]))
        common = here.clip(box)
        for name, values in _tile(config, voxel_size, here, wanted).items():
            arrays[name][common.relative_to(box.start).slices] = values[common.relative_to(here.start).slices]
    return arrays


def _check(voxel_size: VoxelSize) -> None:
    if min(voxel_size) <= 0:
        raise ConfigurationError(f"voxel_size {voxel_size}: each axis needs a length above 0 nm")


def tile_shape(voxel_size: VoxelSize) -> Vector:
    """Return the shape of the canonical tiles, the pieces in which tissue is generated."""
    z, y, x = (_power_of_two(limit / v) for v, limit in zip(voxel_size, (700, 2100, 2100), strict=True))
    across = 256 if z <= 16 else 128
    return min(z, 64), min(y, across), min(x, across)


def _power_of_two(limit: float) -> int:
    return int(2 ** max(0, np.floor(np.log2(limit))))


@lru_cache(maxsize=8)
def _tile(config: Neuropil, voxel_size: VoxelSize, box: Box, wanted: tuple[Array, ...]) -> dict[str, NDArray[Any]]:
    sections = Sections(config, voxel_size, box, wanted)
    microscope = Microscope(sections) if "image" in wanted else None
    prediction = Prediction(sections) if "boundaries" in wanted else None
    thickness = voxel_size[0]
    count = config.seen_by.planes if microscope and thickness >= 25 else 1
    arrays: dict[str, NDArray[Any]] = {name: np.empty(box.shape, dtype_of(name)) for name in wanted}
    for row, z in enumerate(range(box.start[0], box.stop[0])):
        planes = [sections.plane(z, (z + (n + 0.5) / count) * thickness, middle=n == count // 2) for n in range(count)]
        for name, values in sections.truth(planes[count // 2]).items():
            arrays[name][row] = values
        if prediction:
            arrays["boundaries"][row] = prediction.picture(z, planes[count // 2])
        if microscope:
            arrays["image"][row] = microscope.picture(z, planes)
    return arrays


def cell_class(config: Neuropil, cells: ArrayLike) -> NDArray[np.uint8]:
    """Return the classes of cells, given by their ids: 1 axon, 2 dendrite, 3 glia."""
    return config.neurites.classes(np.asarray(cells).astype(np.int64))


@dataclass(frozen=True)
class SynapseTable:
    """Synapses of a cut, in order of their ids; arrays of shape (n,), `positions` (n, 3) in nm (z, y, x).

    `ids` are those in `synapse_labels`, `presynaptic` and `postsynaptic` those in `labels`.
    """

    ids: NDArray[np.uint64]
    positions: NDArray[np.float64]
    presynaptic: NDArray[np.uint64]
    postsynaptic: NDArray[np.uint64]


def synapse_table(config: Neuropil, voxel_size: VoxelSize, box: Box) -> SynapseTable:
    """Return the synapses of which the middle lies in a box of voxels.

    A position counts from the corner of voxel (0, 0, 0).

    Raises:
        ConfigurationError: where a voxel size is not positive.
    """
    _check(voxel_size)
    size, ruffle = np.array(voxel_size), Ruffle(config)
    low, high = np.array(box.start) * size, np.array(box.stop) * size
    aside = np.array([0, 3.5, 3.5]) * config.shift_deviation * voxel_size[0] + ruffle.largest
    start, stop = low - aside, high + aside
    counts = np.maximum(np.ceil((stop - start) / _AT_ONCE), 0).astype(int) if box.size else (0, 0, 0)
    pieces = []
    for place in product(*map(range, counts)):
        corner = start + np.array(place) * _AT_ONCE
        pieces.append(_synapses_in(config, corner, np.minimum(corner + _AT_ONCE, stop)))
    if not pieces:
        none = np.zeros(0, np.uint64)
        return SynapseTable(none, np.zeros((0, 3)), none, none)
    ids, positions, before, after = (
        np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("ids", "positions", "presynaptic", "postsynaptic")
    )
    positions = _as_seen(config, voxel_size[0], positions, ruffle)
    inside = ((positions >= low) & (positions < high)).all(1)
    order = np.flatnonzero(inside)[np.argsort(ids[inside])]
    ids, before, after = (a[order].astype(np.uint64) for a in (ids, before, after))
    return SynapseTable(ids, positions[order], before, after)


def _synapses_in(config: Neuropil, low: NDArray[np.float64], high: NDArray[np.float64]) -> Synapses:
    """Return the synapses in a box of the tissue."""
    neurites = config.neurites
    rim = reach(neurites)
    balls, places = neurites.balls(low - rim, high + rim)
    bodies = neurites.bodies(low - rim, high + rim)
    held, _ = organelles.clusters(neurites, balls, places, config.vesicles, config.gap)
    found = synapses(neurites, Balls.joined(balls, bodies), held, config.synapses, low, high)
    return found[np.flatnonzero(((found.positions >= low) & (found.positions < high)).all(1))]


def _as_seen(config: Neuropil, thickness: float, points: NDArray[np.float64], ruffle: Ruffle) -> NDArray[np.float64]:
    """Return where (nm) points of the tissue appear, whose surfaces are uneven and whose sections lie aside."""
    seen = points.copy()
    for _ in range(8):
        seen = points - ruffle.at(seen)
    seen[:, 1:] -= section_shift(config, thickness, np.floor(seen[:, 0] / thickness).astype(np.int64))
    return seen
