"""Objects: a channel of probabilities becomes instances, as mitochondria, synapses, vesicle clouds or nuclei.

An object is what is connected among the voxels that reach a threshold.  With a `core`, a higher threshold,
it is what is connected among those, grown over the voxels that reach the lower one: each goes to the nearest
core, measured along steps between neighbours and at most `reach` nm far.  Objects that touch stay apart
where their cores do, and what has no core is left out (hysteresis, Canny, IEEE PAMI 8:679, 1986).

    probability  ▂▂▅▇▇▅▅▇▇▂▂▅▅▂      threshold ▅, core ▇
    components     1 1 1 1 1 1     2 2
    with a core    1 1 1 2 2 2

A voxel's owner, the nearest voxel of a core, depends on nothing beyond `reach`, so a tile with that much
around finds what the whole volume would.  A tile numbers its pieces, and sees one voxel of its neighbours
on the upper faces: pieces that two tiles see in one voxel are one object (union-find, as Rosenfeld & Pfaltz,
J. ACM 13:471, 1966).  Objects count from 1 in the order of their first voxels, so labels do not depend on
tiles at all.

    tables of a tile
      runs     (m, 2)  uint32   the pieces of all that it sees, run by run along x: first voxel, piece or 0
      pieces   (n, 2)  uint64   first voxel within the volume and number of voxels of piece 1, 2, ...
      links    (k, 3)  uint64   a piece, and the tile and the piece in it that are the same object
      numbers  (n,)    uint64   the object of piece 1, 2, ..., or 0 for one that is left out
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import product
from math import ceil, hypot, prod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from ..blocks import Box, Grid, Vector
from ..errors import ConfigurationError
from ..volumes import VolumeSpec
from ..volumes.volume import Nanometres
from .base import (
    SINGLE,
    Block,
    Data,
    Extent,
    Length,
    Source,
    Step,
    TableOutput,
    Target,
    TiledStage,
    VolumeOutput,
    looked_at,
    over_cells,
    pyramid_steps,
)

Connectivity = Literal[6, 26]
Labels = NDArray[np.uint64]

_UNITS = 10
"""Distances are whole numbers of a tenth of a nanometre, so that they are the same in every tile."""

_MOST = 2**26
"""Voxels of a tile with all around that it sees, from which on memory would not be bounded by the tile."""


class Objects(TiledStage):
    """Instances in a probability channel: uint64 labels, consecutive from 1, with a pyramid."""

    kind: ClassVar[str] = "objects"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("semantics",)

    semantics: str = Field(description="the channel of probabilities, 0 to 255, as semantics.mitochondria")
    threshold: float = Field(0.5, gt=0, le=1, description="probability from which a voxel can be of an object")
    core: float | None = Field(
        None,
        gt=0,
        le=1,
        description="a higher probability, from which voxels are of a core: objects that touch are parted where their "
        "cores are, and without a core there is none [default: what is connected is an object]",
    )
    reach: Length = Field(200.0, description="nm that an object grows beyond its core, within the threshold")
    connectivity: Connectivity = Field(
        6, description="voxels are connected across faces (6), or across edges and corners too (26)"
    )
    smallest_volume: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="objects of less than this volume in um^3 are left out"
    )
    tile: Extent | None = Field(None, description="voxels (z, y, x) of a tile; the labels do not depend on it")

    @field_validator("core")
    @classmethod
    def _above_threshold(cls, core: float | None, info: ValidationInfo) -> float | None:
        threshold = info.data.get("threshold")
        if core is not None and threshold is not None and core <= threshold:
            raise ValueError(f"must be above the threshold of {threshold:g}: raise it, or leave it out")
        return core

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan the pieces of tiles, what links them, their numbers, the labels, and the pyramid."""
        spec = channel(self.semantics, sources["semantics"])
        output = self.output("objects", replace(spec, dtype="uint64", kind="labels"), pyramid=True)
        tiles = _Tiles(self, spec, output.grid())
        tables = {name: TableOutput(name, tiles.grid) for name in ("runs", "pieces", "links", "numbers")}

        def step(name: str, *targets: VolumeOutput | TableOutput) -> Step:
            return Step(
                name, tiles.grid, tuple(Target(t) for t in targets), over_cells(tiles.grid, getattr(tiles, name))
            )

        pieces = step("pieces", tables["runs"], tables["pieces"])
        return [
            replace(pieces, effort=looked_at(tiles.grid, tiles.halo)),
            step("links", tables["links"]),
            Step("numbers", SINGLE, (Target(tables["numbers"]),), tiles.numbers),
            step("objects", output),
            *pyramid_steps(output),
        ]


def channel(name: str, source: Source) -> VolumeSpec:
    """Return the description of the channel that the role `semantics` names.

    Raises:
        ConfigurationError: where it is no channel of probabilities, or the name leaves open which.
    """
    volumes = [o.name for o in source.outputs.values() if isinstance(o, VolumeOutput)]
    if source.kind == "semantics" and len(volumes) > 1 and "." not in name:
        raise ConfigurationError(
            f"semantics: '{name}' has several channels; name one: {', '.join(f'{name}.{v}' for v in volumes)}"
        )
    spec = source.spec
    if not spec.is_grey:
        raise ConfigurationError(
            f"semantics: '{name}' holds {spec.dtype} {spec.kind}; probabilities from 0 to 255 are needed: "
            "name a channel of a semantics stage, or import one as an 8-bit image"
        )
    return spec


@dataclass(frozen=True)
class _Tiles:
    """The passes of the stage, each a function of one tile but for `numbers`."""

    stage: Objects
    spec: VolumeSpec
    grid: Grid

    def __post_init__(self) -> None:
        sides = [c + 2 * h + 2 for c, h in zip(self.grid.cell, self.halo, strict=True)]
        if prod(sides) > _MOST:
            raise ConfigurationError(
                f"reach: {self.stage.reach:g} nm around a tile of {self.grid.cell} voxels make {sides} voxels, which "
                "take too much memory: set a shorter reach, or a smaller tile"
            )

    @property
    def _reach(self) -> int:
        return 0 if self.stage.core is None else round(self.stage.reach * _UNITS)

    @property
    def halo(self) -> Vector:
        """The voxels (z, y, x) around a tile that it looks at."""
        z, y, x = (self._reach // max(1, _cost((v,))) for v in self.spec.voxel_size)
        return z, y, x

    def _seen(self, box: Box) -> Box:
        """Return a tile with one voxel more on its upper faces: any two that touch are seen together by some tile."""
        return Box(box.start, box.grow((1, 1, 1)).stop).clip(self.spec.box)

    def pieces(self, cell: int, box: Box, data: Data) -> None:
        """Number the pieces that a tile sees."""
        seen = self._seen(box)
        outer = seen.grow(self.halo).clip(self.spec.box)
        values = data.volume("semantics").read(outer)
        labels = find_objects(
            values,
            _level(self.stage.threshold),
            None if self.stage.core is None else _level(self.stage.core),
            reach=self._reach,
            steps=steps_between_neighbours(self.spec.voxel_size, self.stage.connectivity),
        )
        labels = _dense(labels[seen.relative_to(outer.start).slices])
        own = labels[box.relative_to(seen.start).slices]
        first, sizes = _first_voxels(own, int(labels.max(initial=0)))
        there = np.unravel_index(first, box.shape)
        z, y, x = (i + s for i, s in zip(there, box.start, strict=True))
        place = np.ravel_multi_index((z, y, x), self.spec.shape)
        data.put("runs", cell, _runs(labels))
        data.put("pieces", cell, np.stack([place, sizes], axis=1).astype(np.uint64))

    def _labels(self, cell: int, data: Data) -> tuple[Labels, Box]:
        """Return what a tile numbered, and where that lies."""
        seen = self._seen(self.grid.box(cell))
        return _from_runs(data.table("runs", cell), seen), seen

    def links(self, cell: int, box: Box, data: Data) -> None:
        """Find which pieces of its neighbours on the upper faces a tile sees."""
        from bioimage_cpp.utils import segmentation_overlap

        labels, seen = self._labels(cell, data)
        here, found = self.grid.coordinate(cell), [np.empty((0, 3), np.uint64)]
        for direction in directions(self.stage.connectivity):
            z, y, x = (a + b for a, b in zip(here, direction, strict=True))
            if min(direction) < 0 or any(k >= n for k, n in zip((z, y, x), self.grid.counts, strict=True)):
                continue
            other = self.grid.index((z, y, x))
            common = seen.clip(self.grid.box(other))
            mine = labels[common.relative_to(seen.start).slices]
            if not mine.any():
                continue
            theirs, where = self._labels(other, data)
            theirs = theirs[common.relative_to(where.start).slices]
            pairs = segmentation_overlap(np.ascontiguousarray(mine), np.ascontiguousarray(theirs)).overlap_table()
            pairs = np.sort(pairs[pairs["label_a"] != 0], order=("label_a", "label_b"))
            tile = np.full(len(pairs), other, np.uint64)
            found.append(np.stack([pairs["label_a"], tile, pairs["label_b"]], axis=1))
        data.put("links", cell, np.concatenate(found))

    def numbers(self, block: Block, data: Data) -> None:
        """Join all pieces that are one object, leave out the small, and number the others."""
        cells = range(len(self.grid))
        pieces = list(data.tables("pieces", cells))
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.uint64)
        pairs = []
        for cell, links in enumerate(data.tables("links", cells)):
            mine, tile, theirs = links.T
            one = np.uint64(1)
            pairs.append(np.stack([offsets[cell] + mine - one, offsets[tile] + theirs - one], axis=1))
        first, sizes = np.concatenate(pieces).T
        volume = prod(self.spec.voxel_size) / 1e9
        # what is given as a round number of voxels shall not miss one by rounding
        fewest = max(1, ceil(self.stage.smallest_volume / volume * (1 - 1e-12)))
        numbers = numbered(first, sizes, np.concatenate(pairs), fewest)
        for cell in cells:
            data.put("numbers", cell, numbers[int(offsets[cell]) : int(offsets[cell + 1])])

    def objects(self, cell: int, box: Box, data: Data) -> None:
        """Write the objects of a tile."""
        labels, seen = self._labels(cell, data)
        numbers = np.concatenate([np.zeros(1, np.uint64), data.table("numbers", cell)])
        data.write("objects", box, numbers[labels[box.relative_to(seen.start).slices]])


def _level(probability: float) -> int:
    """Return the lowest value, of 0 to 255, of a probability above 0."""
    return next(v for v in range(1, 256) if v / 255 >= probability)


def directions(connectivity: Connectivity) -> list[Vector]:
    """Return the steps (z, y, x) to the neighbours that come after a voxel: one of each two opposite steps."""
    steps = [(z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if (z, y, x) > (0, 0, 0)]
    return [s for s in steps if connectivity == 26 or sum(map(abs, s)) == 1]


def _cost(step: Sequence[float]) -> int:
    return round(hypot(*step) * _UNITS)


def steps_between_neighbours(voxel_size: Nanometres, connectivity: Connectivity) -> list[tuple[Vector, int]]:
    """Return the steps (z, y, x) to all neighbours, and the length of each in tenths of a nanometre, at least 1."""
    found = []
    for z, y, x in directions(connectivity):
        length = max(1, _cost([n * v for n, v in zip((z, y, x), voxel_size, strict=True)]))
        found += [((z, y, x), length), ((-z, -y, -x), length)]
    return found


def find_objects(
    values: NDArray[np.uint8],
    threshold: int,
    core: int | None,
    *,
    reach: int,
    steps: Sequence[tuple[Vector, int]],
) -> Labels:
    """Return the objects of a channel (z, y, x), numbered 1, 2, ... in the order of what they start from.

    That are the connected voxels of at least `threshold`; with a `core`, those of at least that, each grown
    as `grow` has it.
    """
    from bioimage_cpp.segmentation import label

    connectivity = 1 if len(steps) == 6 else 3
    mask = values >= threshold
    if core is None:
        components: Labels = label(mask, connectivity=connectivity)
        return components
    return grow(label(values >= core, connectivity=connectivity), mask, reach=reach, steps=steps)


def grow(labels: Labels, mask: NDArray[np.bool_], *, reach: int, steps: Sequence[tuple[Vector, int]]) -> Labels:
    """Return labels (z, y, x) grown over a mask: each of its voxels takes the label of the nearest labelled one.

    Near is what the fewest steps reach, which are vectors with their lengths, from one voxel of the mask to
    another, `reach` at most in all; of several as near as each other that which comes first, in z, then y,
    then x.  Beyond it stays 0.  (Dijkstra's algorithm with all voxels of one distance at a time.)
    """
    grown = np.pad(labels, 1).ravel()
    free = np.pad(mask & (labels == 0), 1).ravel()
    _, ny, nx = (n + 2 for n in mask.shape)
    ways = [((z * ny + y) * nx + x, length) for (z, y, x), length in steps]
    first = np.flatnonzero(grown)
    found = {0: [(first, first)]}
    distances = [0]
    while distances:
        distance = heappop(distances)
        voxels, owners = (np.concatenate(parts) for parts in zip(*found.pop(distance), strict=True))
        if distance:
            still = free[voxels]
            voxels, owners = voxels[still], owners[still]
            order = np.lexsort((owners, voxels))
            voxels, owners = voxels[order], owners[order]
            is_first = np.diff(voxels, prepend=-1) != 0
            voxels, owners = voxels[is_first], owners[is_first]
            free[voxels] = False
            grown[voxels] = grown[owners]
        for way, length in ways:
            if distance + length > reach:
                continue
            ahead = voxels + way
            still = free[ahead]
            if still.any():
                if distance + length not in found:
                    heappush(distances, distance + length)
                found.setdefault(distance + length, []).append((ahead[still], owners[still]))
    return grown.reshape([n + 2 for n in mask.shape])[1:-1, 1:-1, 1:-1]


def numbered(first: Labels, sizes: Labels, same: Labels, fewest: int) -> Labels:
    """Return the objects of pieces: consecutive from 1 in the order of their first voxels, or 0 if left out.

    `first` and `sizes` (n,) are the first voxel and the number of voxels of each piece, `same` (m, 2) pairs
    of pieces, counted from 0, that are one object.  One of under `fewest` voxels, at least 1, is left out.
    """
    from bioimage_cpp.utils import UnionFind

    if first.size == 0:
        return np.zeros(0, np.uint64)
    union = UnionFind(first.size)
    union.merge(np.ascontiguousarray(same))
    root: Labels = union.element_labeling()
    size, lowest = np.zeros(first.size, np.uint64), np.full(first.size, np.iinfo(np.uint64).max)
    np.add.at(size, root, sizes)
    held = sizes > 0
    np.minimum.at(lowest, root[held], first[held])
    kept = np.flatnonzero(size >= fewest)
    number = np.zeros(first.size, np.uint64)
    number[kept[np.argsort(lowest[kept])]] = np.arange(1, kept.size + 1)
    return number[root]


def _dense(labels: Labels) -> Labels:
    """Return labels numbered 1, 2, ... without a gap, in the same order."""
    there = np.zeros(int(labels.max(initial=0)) + 1, bool)
    there[labels.ravel()] = True
    there[0] = False
    numbers: Labels = np.cumsum(there, dtype=np.uint64)
    return numbers[labels]


def _first_voxels(labels: Labels, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first voxel, in the raveled array, and the number of voxels of the labels 1 to `count`."""
    flat = labels.ravel()
    inside = np.flatnonzero(flat)
    first = np.zeros(count + 1, np.intp)
    # written backwards, so that of an object's voxels the first one stays
    first[flat[inside][::-1]] = inside[::-1]
    return first[1:], np.bincount(flat[inside].astype(np.intp), minlength=count + 1)[1:]


def _runs(labels: Labels) -> NDArray[np.uint32]:
    flat = labels.ravel()
    start = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    return np.stack([start, flat[start]], axis=1).astype(np.uint32)


def _from_runs(runs: NDArray[np.uint32], box: Box) -> Labels:
    start, label = runs.T
    return np.repeat(label.astype(np.uint64), np.diff(start, append=box.size)).reshape(box.shape)
