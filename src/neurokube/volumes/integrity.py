"""Integrity: whether all that a volume stores can be read and is what was written."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from ..blocks import Box, Grid, Vector
from ..errors import DataError
from ..progress import progress
from .pyramids import downsample
from .store import faults
from .summary import has_checksums, objects
from .volume import Volume

PIECE_BYTES = 1 << 26
"""Most memory for what a thread reads at a time, where a chunk is not larger."""

SLAB_BYTES = 1 << 30
"""Most memory for the sections that are digested at a time."""

SPARSE = 100
"""A resolution of many more shards than this many times those that are stored is not gone through shard by shard."""

MANY = 100_000
"""What many shards are."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Damage:
    """Something stored that is not as it was written: which voxels of which resolution, and what ails them."""

    level: int
    box: Box
    what: str

    def __str__(self) -> str:
        return f"level {self.level}, voxels {self.box}: {self.what}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"level": self.level, "voxels": str(self.box), "what": self.what}


D_co = TypeVar("D_co", bound=Damage, covariant=True)


@dataclass(frozen=True)
class Checked(Generic[D_co]):
    """What was found: damage, the bytes that were read, decoded, and what could not be told."""

    damage: tuple[D_co, ...]
    bytes: int
    remarks: tuple[str, ...] = ()


def check_volume(volume: Volume, *, workers: int = 2, quiet: bool = False) -> Checked[Damage]:
    """Read all that a volume stores, in bounded memory, and return what cannot be read or is not there.

    An object that is absent stands for zeros; it is missing where the next coarser resolution is not zero there, or,
    in a volume of ours, the next finer one is not.  Where chunks carry no checksum, or something is absent, and an
    import left a digest of the content, the content is compared with it.

    Raises:
        TryAgainError: where the store fails.
    """
    damage: list[Damage] = []
    remarks: list[str] = []
    read = absent = 0
    with progress(quiet=quiet) as bars:
        for level in range(len(volume.arrays)):
            grid, keys = _grid(volume, level), objects(volume, level)
            if (vast := _vast(volume, level, grid, keys)) is not None:
                damage.append(vast)
                continue
            damage += _contradiction(volume, level)
            bar = bars.add_task(f"level {level}", total=len(grid), unit="shards")
            look = _Look(volume, level, listed=keys is not None)
            for found in parallel(look.shard, (grid.box(k) for k in range(len(grid))), workers):
                damage += found.damage
                read += found.bytes
                absent += found.absent and level == 0
                bars.advance(bar)
            if not has_checksums(volume.arrays[level]):
                remarks.append(f"level {level}: chunks carry no checksums; what still decodes is taken for whole")
        if not damage and (absent or not has_checksums(volume.arrays[0])):
            damage += _compare(volume, bars)
    return Checked(tuple(damage), read, tuple(remarks))


def parallel(task: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield what a task makes of items, in order, by threads, with a bounded number begun."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        begun: deque[Future[R]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(task, item))
                if len(begun) > 2 * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def _grid(volume: Volume, level: int) -> Grid:
    """Return the grid of shards of a resolution: of chunks where there are no shards."""
    shape = volume.level_shape(level)
    z, y, x = (
        min(n, s) or n for n, s in zip(shape, volume.arrays[level].chunk_layout.write_chunk.shape[-3:], strict=True)
    )
    return Grid(shape, (z, y, x))


def _vast(volume: Volume, level: int, grid: Grid, keys: list[str] | None) -> Damage | None:
    count = math.prod(grid.counts)
    if count <= MANY or (keys is not None and count <= SPARSE * len(keys)):
        return None
    if keys is None:
        raise DataError(
            f"{volume.url}: level {level} has {count:,} shards, and a web server does not tell which are there; "
            "check it where it is stored"
        )
    what = f"its shape asks for {count:,} objects, and {len(keys):,} are stored: correct the shape in its metadata"
    return Damage(level, Box.of(volume.level_shape(level)), what)


def _contradiction(volume: Volume, level: int) -> list[Damage]:
    """Return that a resolution has not the shape which its voxel size makes of the finest, if so."""
    if not volume.voxel_sizes or level == 0:
        return []
    shape, finest = volume.level_shape(level), volume.level_shape(0)
    scale = np.divide(volume.voxel_sizes[level], volume.voxel_sizes[0])
    expected = np.divide(finest, scale)
    # a voxel at either face may be kept, or left out, that the finest has only a part of
    if (np.abs(expected - shape) <= np.maximum(2, 0.01 * expected)).all():
        return []
    made = " x ".join(f"{n:.4g}" for n in expected)
    what = f"voxels of {' x '.join(f'{f:g}' for f in scale)} of the finest would make {made}: correct the metadata"
    return [Damage(level, Box.of(shape), what)]


@dataclass(frozen=True)
class _Found:
    damage: tuple[Damage, ...]
    bytes: int
    absent: bool


@dataclass(frozen=True)
class _Look:
    """A look at the shards of one resolution."""

    volume: Volume
    level: int
    listed: bool

    def shard(self, box: Box) -> _Found:
        """Read a shard, piece by piece, and return what is wrong with it."""
        broken, count, empty, why = 0, 0, True, ""
        pieces = list(self._pieces(box, PIECE_BYTES))
        for piece in pieces:
            try:
                empty &= not self.volume.read(piece, self.level).any()
            except DataError as error:
                why = why or _reason(error)
                bad, among = self._chunks(piece)
                broken, count, empty = broken + bad, count + among, False
        size = box.size * np.dtype(self.volume.spec.dtype).itemsize * (self.volume.spec.channels or 1)
        if why:
            whole = len(pieces) == 1 and broken == count
            what = why if whole else f"{broken} of its chunks: {why}"
            return _Found((Damage(self.level, box, what),), size, False)
        if empty and self.listed and self._absent(box):
            lost = self._lost(box)
            return _Found((Damage(self.level, box, lost),) if lost else (), size, True)
        return _Found((), size, False)

    def _pieces(self, box: Box, most: int) -> Iterator[Box]:
        """Cut a shard into pieces of whole chunks that take `most` bytes, or one chunk."""
        spec = self.volume.spec
        chunk = self.volume.arrays[self.level].chunk_layout.read_chunk.shape[-3:]
        step = [min(c, n) or n for c, n in zip(chunk, box.shape, strict=True)]
        item = np.dtype(spec.dtype).itemsize * (spec.channels or 1)
        for axis in (2, 1, 0):
            others = math.prod(s for k, s in enumerate(step) if k != axis)
            fits = most // (others * item) // step[axis] * step[axis]
            step[axis] = max(step[axis], min(box.shape[axis], fits))
        for z, y, x in product(*(range(a, b, s) for a, b, s in zip(box.start, box.stop, step, strict=True))):
            yield Box((z, y, x), (z + step[0], y + step[1], x + step[2])).clip(box)

    def _chunks(self, piece: Box) -> tuple[int, int]:
        """Return how many chunks of a piece cannot be read, and how many it has."""
        broken = count = 0
        for chunk in self._pieces(piece, 1):
            count += 1
            if count > 4096:
                break
            try:
                self.volume.read(chunk, self.level)
            except DataError:
                broken += 1
        return broken, count

    def _absent(self, box: Box) -> bool:
        view = self.volume.arrays[self.level][(..., *box.slices)]
        with faults(self.volume.url):
            return bool(view.storage_statistics(query_not_stored=True).result().not_stored)

    def _lost(self, box: Box) -> str:
        """Return why an absent shard, which stands for zeros, cannot be meant so; "" where it can."""
        try:
            coarse = self._scaled(box, self.level + 1)
            if coarse is not None and coarse.any():
                return f"missing: level {self.level + 1} is not empty there"
            fine = self._scaled(box, self.level - 1)
        except DataError:
            # the other resolution is damaged, and says so itself
            return ""
        if fine is not None and self.volume.attributes:
            factor = self._factor(self.level - 1, self.level)
            if downsample(fine, factor, self.volume.spec.kind).any():
                return f"missing: level {self.level - 1} is not empty there"
        return ""

    def _factor(self, fine: int, coarse: int) -> Vector:
        shapes = self.volume.level_shape(fine), self.volume.level_shape(coarse)
        z, y, x = (-(-n // m) for n, m in zip(*shapes, strict=True))
        return z, y, x

    def _scaled(self, box: Box, other: int) -> NDArray[Any] | None:
        """Return the voxels of another resolution below, or above, a box; None where there is none."""
        if not 0 <= other < len(self.volume.arrays):
            return None
        whole = Box.of(self.volume.level_shape(other))
        if other < self.level:
            factor = self._factor(other, self.level)
            scaled = [(a * f, b * f) for a, b, f in zip(box.start, box.stop, factor, strict=True)]
        else:
            factor = self._factor(self.level, other)
            # only voxels that lie within the box altogether
            scaled = [
                (-(-a // f), max(-(-a // f), b // f)) for a, b, f in zip(box.start, box.stop, factor, strict=True)
            ]
        (z, zs), (y, ys), (x, xs) = scaled
        part = Box((z, y, x), (zs, ys, xs)).clip(whole)
        item = np.dtype(self.volume.spec.dtype).itemsize * (self.volume.spec.channels or 1)
        return None if part.size == 0 or part.size * item > SLAB_BYTES else self.volume.read(part, other)


def _reason(error: DataError) -> str:
    """Return what is wrong, without what to do and where, which the caller knows better."""
    return str(error).partition(": cannot read voxels ")[2].partition(": ")[2].partition("; restore")[0] or str(error)


def _compare(volume: Volume, bars: Progress) -> list[Damage]:
    """Compare the finest resolution with the digest that an import left, if it did and slabs are small enough."""
    depth, *_ = _grid(volume, 0).cell
    sections, *plane = volume.spec.shape
    section = math.prod(plane) * np.dtype(volume.spec.dtype).itemsize
    if "source" not in volume.attributes or len(volume.fingerprint or "") != 64 or depth * section > SLAB_BYTES:
        return []
    digest = hashlib.sha256(f"{volume.spec.dtype} {volume.spec.shape}".encode())
    bar = bars.add_task("content", total=sections, unit="sections")
    for z in range(0, sections, depth):
        stop = min(z + depth, sections)
        digest.update(np.ascontiguousarray(volume.read(Box((z, 0, 0), (stop, plane[0], plane[1])))).data)
        bars.update(bar, completed=stop)
    if digest.hexdigest() == volume.fingerprint:
        return []
    return [Damage(0, volume.spec.box, "is not what was imported: something of it is missing or was changed")]
