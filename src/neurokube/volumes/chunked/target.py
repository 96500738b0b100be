"""A volume in the making: arrays that are written block by block, and metadata that makes a volume of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from ...blocks import Box, Vector
from ...errors import UsageError, surroundings
from ..commit import write_box
from ..pyramids import downsample
from ..store import Store
from ..volume import VolumeSpec

Documents = Mapping[str, Any]
"""Metadata: JSON values by their keys, in the order in which they are written; the last one makes a volume of it."""


@dataclass
class Target:
    """Where an export goes: `arrays` are its resolutions, shape ([c,] z, y, x).

    `leads` tells for each resolution how many voxels of the next finer one its first voxel lacks, along
    (z, y, x): those of formats whose resolutions all lie on one grid need not start at one of its lines.
    `at_once` says that a box is written in a transaction: without one tensorstore writes a shard of precomputed
    again and again, each time with a few chunks more.
    """

    url: str
    spec: VolumeSpec
    factors: Sequence[Vector]
    arrays: Sequence[Any]
    documents: Documents
    leads: Sequence[Vector] = field(default=())
    remarks: tuple[str, ...] = ()
    at_once: bool = False

    def shape(self, level: int) -> Vector:
        """Return the shape (z, y, x) of a resolution."""
        z, y, x = self.arrays[level].shape[-3:]
        return int(z), int(y), int(x)

    def cell(self, level: int) -> Vector:
        """Return the shape (z, y, x) of what is written whole: a shard, or a chunk."""
        z, y, x = self.arrays[level].chunk_layout.write_chunk.shape[-3:]
        return int(z), int(y), int(x)

    def copies(self, level: int) -> bool:
        """Whether a resolution has the voxels that one of another volume has, where the finest ones agree."""
        return not any(any(lead) for lead in self.leads[: level + 1])

    def write(self, level: int, box: Box, data: NDArray[Any]) -> None:
        """Write a box, a union of whole cells; durable when it returns."""
        try:
            if "://" in self.url:
                write_box(self.url, self.arrays[level], box, data)
            else:
                self.put(level, box, data)
        except (ValueError, OSError) as error:
            raise surroundings(error, self.url) or error from None

    def put(self, level: int, box: Box, voxels: Any) -> None:
        """Write a box in a folder, of an array or of what is stored elsewhere; errors are those of tensorstore."""
        array = self.arrays[level]
        if not self.at_once:
            array[(..., *box.slices)].write(voxels).result()
            return
        with ts.Transaction() as transaction:
            array.with_transaction(transaction)[(..., *box.slices)].write(voxels).result()

    def fill(self, level: int, box: Box) -> None:
        """Compute a box of a resolution (at least 1) from the next finer one, which is complete."""
        step, lead, fine = self._beneath(level, box)
        data = self.arrays[level - 1][(..., *fine.slices)].read().result()
        first = tuple(a if start == 0 else 0 for a, start in zip(lead, box.start, strict=True))
        self.write(level, box, _downsample(data, step, first, self.spec))

    def _beneath(self, level: int, box: Box) -> tuple[Vector, Vector, Box]:
        """Return the step from the next finer resolution, the lead, and the voxels of that one below a box."""
        z, y, x = (b // a for a, b in zip(self.factors[level - 1], self.factors[level], strict=True))
        lead = self.leads[level] if self.leads else (0, 0, 0)
        start, stop = (tuple(k * n for k, n in zip(p, (z, y, x), strict=True)) for p in (box.start, box.stop))
        fine = Box(start, stop).relative_to(lead).clip(Box.of(self.shape(level - 1)))  # type: ignore[arg-type]
        return (z, y, x), lead, fine

    def finish(self) -> None:
        """Write the metadata."""
        store = Store(self.url)
        for key, value in self.documents.items():
            store.write_json(key, value, indent=2)


def _downsample(data: NDArray[Any], step: Vector, lead: Sequence[int], spec: VolumeSpec) -> NDArray[Any]:
    """Downsample where the first voxel of each axis covers `lead` voxels fewer than the others."""
    for axis, (n, missing) in enumerate(zip(step, lead, strict=True), start=data.ndim - 3):
        if missing and data.shape[axis] > n - missing:
            first, rest = np.split(data, [n - missing], axis)
            later = tuple(0 if k == axis else v for k, v in enumerate(lead, start=data.ndim - 3))
            parts = [_downsample(part, step, later, spec) for part in (first, rest)]
            return np.concatenate(parts, axis)
    return downsample(data, step, spec.kind)


Maker = Callable[[str, VolumeSpec, Sequence[Vector], "Options"], Target]
"""Begins a volume at a URL: its specification, the cumulative downsampling of its resolutions, and options."""


@dataclass(frozen=True)
class Options:
    """How a volume is written: `name` is what it is called, `compression` a codec as `zstd` or `gzip:6`."""

    name: str
    compression: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def codec(self, levels: Mapping[str, int | None]) -> tuple[str, int | None]:
        """Return the codec and its level; `levels` has the usual ones, the first stands where none is asked for.

        Raises:
            UsageError: where the format has no such codec, or the codec no such level.
        """
        name, _, level = (self.compression or next(iter(levels))).partition(":")
        if name not in levels or (level and not (levels[name] is not None and level.isdigit())):
            known = ", ".join(f"{k}:LEVEL" if v is not None else k for k, v in levels.items())
            raise UsageError(f"--compression {self.compression}: this format has {known}")
        if level and int(level) > _MOST[name]:
            raise UsageError(f"--compression {self.compression}: {name} has levels up to {_MOST[name]}")
        return name, int(level) if level else levels[name]


_MOST = {"zstd": 22, "blosc": 9, "gzip": 9, "xz": 9, "bzip2": 9}
"""The highest level of each codec."""


def steps(factors: Sequence[Vector]) -> list[Vector]:
    """Return by how much each resolution is coarser than the one before it; (1, 1, 1) for the first."""
    result: list[Vector] = [(1, 1, 1)]
    for fine, coarse in pairwise(factors):
        z, y, x = (b // a for a, b in zip(fine, coarse, strict=True))
        result.append((z, y, x))
    return result


def xyz(values: Sequence[Any]) -> list[Any]:
    """Return values of (z, y, x) in the order (x, y, z), which some formats have."""
    return list(values[::-1])


def turned(array: Any) -> Any:
    """Return an array with its axes in the opposite order, counting from 0."""
    array = array[ts.d[:].translate_to[0]]
    return array[ts.d[:].transpose[::-1]]


def no_channels(spec: VolumeSpec, name: str) -> None:
    """Refuse a volume of several channels where a format holds one.

    Raises:
        UsageError: where there are several.
    """
    if spec.channels is not None:
        raise UsageError(f"{name} holds one channel a volume: choose one of the {spec.channels} with --channel N")


def refuse_types(spec: VolumeSpec, name: str, known: Sequence[str]) -> None:
    """Refuse a volume of a type that a format does not have.

    Raises:
        UsageError: where it has not.
    """
    if spec.dtype not in known:
        raise UsageError(f"{name} has no {spec.dtype} values, only {', '.join(known)}; choose another format")


def near_cube(chunk: Vector, itemsize: int, limit: int) -> Vector:
    """Return the largest union of chunks, each side doubled in turn, of at most `limit` bytes."""
    shape = chunk
    while 2 * prod(shape) * itemsize <= limit:
        shortest = min(range(3), key=lambda k: (shape[k], -k))
        z, y, x = (2 * n if k == shortest else n for k, n in enumerate(shape))
        shape = (z, y, x)
    return shape


OPENED_BLIND: Mapping[str, Any] = {"open": True, "assume_metadata": True}
"""Options that open an array by the metadata given, which is not written: it makes a volume of the data, last."""
