"""Export: a volume becomes one of another format, block by block, in bounded memory, and goes on after a kill."""

import hashlib
import json
import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..blocks import Blocks, Box, Grid, Vector
from ..errors import DataError, TryAgainError, UsageError, surroundings
from ..progress import progress
from . import folders
from .space import check_space, expected_bytes
from .store import Store, folder_of, join
from .volume import Nanometres, Volume, VolumeSpec, coarser, open_volume, pyramid_factors

if TYPE_CHECKING:
    from .chunked import Target

TASK_BYTES = 1 << 24
"""Voxels that a thread takes at a time, where a shard is not larger."""

MOST_BYTES = 1 << 27
"""Most voxels that a thread takes at a time to take chunks of the source whole, where a shard is not larger."""

MEMORY = 1 << 29
"""Most voxels that all threads together take at a time, where a shard is not larger."""

EVERY = 1.0
"""Seconds of work that a kill costs at most, besides the blocks that were begun."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported: `url` is what to open, `shape` and `voxel_size` (nm) are (z, y, x).

    `megabytes_per_second` counts voxels before compression, those that an earlier call had written left out;
    `remarks` says what the format does not keep.
    """

    url: str
    format: str
    shape: Vector
    voxel_size: Nanometres
    dtype: str
    resolutions: int
    seconds: float
    megabytes_per_second: float
    resumed: bool = False
    remarks: tuple[str, ...] = ()


def export_volume(
    source: str,
    destination: str,
    *,
    format: str,
    scale: int = 0,
    levels: int | None = None,
    region: Box | None = None,
    channel: int | None = None,
    labels: bool = False,
    compression: str | None = None,
    relabel: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    quiet: bool = False,
) -> ExportReport:
    """Export a volume in a format of `chunked.MAKERS` or `files.WRITERS`.

    `scale` is the resolution of the source that becomes the finest one; `levels` is how many are written, by
    default all that viewers need; those that the source has are copied, the others made.  `region` is in
    voxels of that resolution.  `labels` says that a source which does not say so itself holds labels.

    A folder appears under its name only when it is complete, and what `overwrite` replaces stays until then; at
    a URL the metadata that makes a volume of the data is written last.  What was stopped goes on where it was
    when it is asked for again.

    Raises:
        DataError: where the source is damaged.
        UsageError: where the options do not fit, or the destination exists.
        TryAgainError: where the disk is full or cannot be written.
    """
    from .chunked import MAKERS

    began = time.monotonic()
    view = View.of(open_volume(source, still=True), scale, region, channel, labels)
    chosen = {"region": str(region), "scale": scale, "channel": channel, "compression": compression, "relabel": relabel}
    plan = {
        "version": __version__,
        "source": [source, _stamp(source), view.fingerprint],
        "spec": asdict(view.spec),
        "format": format,
        **chosen,
    }
    if format not in MAKERS:
        if compression is not None:
            raise UsageError(f"--compression {compression}: {format} leaves no choice; leave it out")
        return _to_file(view, destination, format, _digest(plan), relabel, overwrite, quiet, began)
    place = _Place.of(destination, format, view.spec)
    factors = view.factors(levels)
    token = _digest({**plan, "factors": factors})
    place.check(source, token, overwrite)
    from .chunked.target import Options

    whole = region is None and scale == 0 and channel is None
    kept = {"fingerprint": view.fingerprint} if whole and view.fingerprint else {}
    options = Options(place.name, compression, kept)
    # what the format does not take is refused before anything is touched
    MAKERS[format](f"memory://{token}", view.spec, factors, options)
    with place.held(token, overwrite) as work:
        target = MAKERS[format](work, view.spec, factors, options)
        _check_space(place, target, view.spec)
        writing = _Writing(view, target, token, workers)
        resumed = writing.ledger.resumed
        written = writing.run(quiet)
        target.finish()
        writing.check(join(work, place.readable) if place.readable else work)
    seconds = time.monotonic() - began
    spec = view.spec
    rate = written / seconds / 1e6
    return ExportReport(
        place.url, format, spec.shape, spec.voxel_size, spec.dtype, len(factors), seconds, rate, resumed, target.remarks
    )


def _digest(plan: Mapping[str, Any]) -> str:
    """Return what tells one export from another: only the same one goes on with what is there."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


# What is exported


@dataclass(frozen=True)
class View:
    """What of a volume is exported: its arrays, ([c,] z, y, x), the finest first, and by how much each is coarser."""

    spec: VolumeSpec
    arrays: tuple[Any, ...]
    known: tuple[Vector, ...]
    fingerprint: str | None
    url: str

    @classmethod
    def of(cls, volume: Volume, scale: int, region: Box | None, channel: int | None, labels: bool) -> "View":
        """Choose a resolution, a cut-out and a channel.

        Raises:
            UsageError: where the volume has no such resolution or channel, or the region is not inside it.
        """
        spec = replace(volume.spec, kind="labels") if labels else volume.spec
        count = len(volume.arrays)
        if not 0 <= scale < count:
            raise UsageError(f"--scale {scale}: {volume.url} has the resolutions 0 to {count - 1}")
        factors = _whole(spec, volume, scale)
        spec = coarser(spec, factors[0])
        known = tuple(_divided(factor, factors[0]) for factor in factors)
        arrays = volume.arrays[scale : scale + len(known)]
        if channel is not None:
            if spec.channels is None or not 0 <= channel < spec.channels:
                raise UsageError(f"--channel {channel}: {volume.url} has {spec.channels or 'no'} channels")
            arrays, spec = tuple(array[channel] for array in arrays), replace(spec, channels=None)
        if region is not None:
            if not spec.box.contains(region):
                raise UsageError(f"--region {region}: is not inside {volume.url}, {spec.box}; choose one that is")
            cut = Volume(volume.url, spec, arrays[:1], voxel_sizes=(spec.voxel_size,)).crop(region)
            spec, arrays, known = cut.spec, cut.arrays, ((1, 1, 1),)
        return cls(spec, arrays, known, volume.fingerprint, volume.url)

    def factors(self, levels: int | None) -> list[Vector]:
        """Return the downsampling of the resolutions to write: those that are there, then more until one is small.

        Raises:
            UsageError: for an image of 64-bit integers, of which no mean is made.
        """
        last = self.known[-1]
        more = pyramid_factors(coarser(self.spec, last))
        factors = [*self.known, *(_product(last, factor) for factor in more[1:])][:levels]
        made = len(factors) > len(self.known)
        if made and self.spec.kind == "image" and self.spec.dtype in ("uint64", "int64"):
            raise UsageError(
                f"{self.url}: coarser resolutions of {self.spec.dtype} images are not made; export with --levels 1, "
                "or with --labels where they are labels"
            )
        return factors

    def read(self, box: Box, level: int = 0) -> NDArray[Any]:
        """Return the voxels of a box."""
        return Volume(self.url, self.spec, self.arrays).read(box, level)

    def has(self, level: int, factor: Vector) -> bool:
        """Whether a resolution is there."""
        return level < len(self.known) and self.known[level] == factor


def _whole(spec: VolumeSpec, volume: Volume, scale: int) -> list[Vector]:
    """Return the cumulative downsampling of the resolutions from `scale` on, as long as each is one of whole voxels."""
    factors: list[Vector] = []
    for size, array in list(zip(volume.voxel_sizes, volume.arrays, strict=True))[scale:]:
        exact = np.divide(size, spec.voxel_size)
        z, y, x = np.maximum(np.rint(exact), 1).astype(int).tolist()
        fits = np.allclose(exact, (z, y, x), rtol=1e-3) and coarser(spec, (z, y, x)).shape == tuple(array.shape[-3:])
        if factors:
            fits = fits and not any(b % a for a, b in zip(factors[-1], (z, y, x), strict=True))
        if not fits:
            if not factors:
                raise DataError(f"{volume.url}: resolution {scale} is none of whole voxels; export another --scale")
            break
        factors.append((z, y, x))
    return factors


def _divided(a: Vector, b: Vector) -> Vector:
    z, y, x = (p // q for p, q in zip(a, b, strict=True))
    return z, y, x


def _product(a: Vector, b: Vector) -> Vector:
    z, y, x = (p * q for p, q in zip(a, b, strict=True))
    return z, y, x


def _stamp(url: str) -> list[Any]:
    """Return what changes when a volume in a folder is written anew: the times of its metadata."""
    folder = folder_of(url)
    if folder is None:
        return []
    names = ("zarr.json", ".zattrs", "attributes.json", "info")
    files = [folder] if folder.is_file() else [folder / name for name in names]
    return [[file.name, file.stat().st_mtime_ns] for file in files if file.is_file()]


# Where it goes

_LEDGER = ".neurokube-export"
_NOBODY = ""


@dataclass(frozen=True)
class _Place:
    """A destination: `url` is what is opened later, `data` is written, `readable` is the volume below it."""

    url: str
    data: str
    readable: str = ""
    xml: bytes | None = None

    @classmethod
    def of(cls, destination: str, format: str, spec: VolumeSpec) -> "_Place":
        destination = destination.rstrip("/")
        if format == "paintera":
            from .chunked.paintera import group_of

            destination = group_of(destination, spec)
        if format != "bdv-n5":
            return cls(destination, destination)
        from .chunked.bdv import xml_of

        stem = destination.removesuffix(".xml").removesuffix(".n5")
        data = f"{stem}.n5"
        return cls(f"{stem}.xml", data, "setup0/timepoint0", xml_of(spec, data.rpartition("/")[2]))

    @property
    def name(self) -> str:
        return self.data.rpartition("/")[2].rpartition(".")[0] or self.data.rpartition("/")[2]

    @property
    def folder(self) -> Path | None:
        return folder_of(self.data)

    def check(self, source: str, token: str, overwrite: bool) -> None:
        """Refuse a destination that cannot be, before any work.

        Raises:
            UsageError: where it holds something, or is the source.
        """
        here, origin = self.folder, folder_of(source)
        if here is None:
            if self.data == source.rstrip("/"):
                raise UsageError(f"{self.data}: is the source; choose another destination")
            return
        if origin is not None and (here == origin or here in origin.parents or origin in here.parents):
            raise UsageError(f"{here}: is, holds or lies in the source; choose another destination")
        if not here.exists() or (here.is_dir() and not any(here.iterdir())) or _is_of(here, token):
            return
        if not (here.is_dir() and _is_volume(here)):
            raise UsageError(f"{here}: exists and is not a volume; choose another destination")
        if not overwrite:
            raise UsageError(f"{here}: exists; choose another destination, or replace it with --overwrite")

    @contextmanager
    def held(self, token: str, overwrite: bool) -> Iterator[str]:
        """Yield where to write; what is complete when the block ends then stands at the destination."""
        here = self.folder
        if here is None:
            self._clear_url(token, overwrite)
            yield self.data
            self._announce()
            return
        # a kill may strike between the last two steps: then it stands already, and its ledger with it
        work = here if _is_of(here, token) else here.with_name(here.name + ".partial")
        try:
            work.mkdir(parents=True, exist_ok=True)
            with folders.held(work, "export"):
                _clear_folder(work, token)
                yield str(work)
                if work != here:
                    if self.xml is not None:
                        # what it says may not fit what comes
                        Store(self.url.rpartition("/")[0] or ".").delete(self.url.rpartition("/")[2])
                    folders.swap(work, here)
                self._announce()
        except OSError as error:
            told = f"{self.data}: cannot be written ({error.strerror}); choose another destination"
            raise surroundings(error, self.data) or UsageError(told) from None

    def _announce(self) -> None:
        if self.xml is not None:
            folder, _, name = self.url.rpartition("/")
            Store(folder or ".").write(name, self.xml)
        Store(self.data).delete(_LEDGER)

    def _clear_url(self, token: str, overwrite: bool) -> None:
        store = Store(self.data)
        left = store.read(_LEDGER)
        owner = None if left is None else _token(left)
        if owner == token:
            return
        complete = any(store.read(name) is not None for name in _MARKS)
        # what another export left unfinished may go, and what one was removing
        if owner != _NOBODY and (complete or (left is None and store.keys())):
            if not overwrite:
                remedy = "choose another destination, or replace it with --overwrite"
                raise UsageError(f"{self.data}: holds something; {remedy}")
            if not complete:
                raise UsageError(f"{self.data}: holds objects that are no volume; choose a destination that is empty")
        _disown(store)
        store.delete_all(but=_LEDGER)
        _begin(store, token)


_MARKS = ("zarr.json", ".zattrs", "attributes.json", "info")


def _is_volume(folder: Path) -> bool:
    """Whether a folder can be replaced: it is one volume, and no container of several."""
    if any((folder / name).exists() for name in ("zarr.json", ".zattrs", "info")):
        return True
    try:
        attributes = json.loads((folder / "attributes.json").read_text())
    except (OSError, ValueError):
        return False
    return bool({"dimensions", "multiscales", "painteraData", "neurokube"} & set(attributes))


def _is_of(folder: Path, token: str) -> bool:
    """Whether a folder holds what an export of this token has written, and not yet announced."""
    ledger = folder / _LEDGER
    return ledger.is_file() and _token(ledger.read_bytes()) == token


def _clear_folder(work: Path, token: str) -> None:
    """Leave what an earlier call with the same plan has written; remove what another one has."""
    if _is_of(work, token):
        return
    entries = list(work.iterdir())
    # a kill may strike while the ledger itself is written
    if not (work / _LEDGER).exists() and any(not entry.name.startswith(_LEDGER) for entry in entries):
        raise UsageError(f"{work}: is in the way and was not left by an export; move it")
    _disown(Store(str(work)))
    for entry in entries:
        if entry.name != _LEDGER:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    # before anything else: what has no ledger is nobody's
    _begin(Store(str(work)), token)


def _disown(store: Store) -> None:
    """Say that what is there is on its way out: nobody must go on with a part of it if a kill strikes meanwhile."""
    _begin(store, _NOBODY)


def _begin(store: Store, token: str) -> None:
    store.write_json(_LEDGER, {"token": token, "done": []})


def _check_space(place: _Place, target: "Target", spec: VolumeSpec) -> None:
    if place.folder is not None:
        shapes = [target.shape(level) for level in range(len(target.factors))]
        check_space(str(place.folder.parent), expected_bytes(spec, shapes))


# The work


class Ledger:
    """Which blocks are written, beside the data: an object that is rewritten whole, at most every `EVERY` seconds."""

    def __init__(self, store: Store, token: str, counts: Sequence[int]) -> None:
        self.store, self.token, self.lock = store, token, Lock()
        self.done = [np.zeros(count, bool) for count in counts]
        self.saved = time.monotonic()
        content = store.read(_LEDGER)
        self.resumed = content is not None and _token(content) == token and self._load(content)
        if not self.resumed:
            self.save()

    def _load(self, content: bytes) -> bool:
        bits = [np.frombuffer(b64decode(text), np.uint8) for text in json.loads(content)["done"]]
        if [len(b) for b in bits] != [-(-len(d) // 8) for d in self.done]:
            return False
        self.done = [np.unpackbits(b, count=len(d)).astype(bool) for b, d in zip(bits, self.done, strict=True)]
        return True

    def left(self, level: int) -> list[int]:
        """Return the blocks of a resolution that are not written."""
        return np.flatnonzero(~self.done[level]).tolist()

    def record(self, level: int, block: int) -> None:
        """Take down that a block is durable."""
        with self.lock:
            self.done[level][block] = True
            if time.monotonic() - self.saved > EVERY:
                self._save()

    def save(self) -> None:
        """Make what was recorded durable."""
        with self.lock:
            self._save()

    def _save(self) -> None:
        bits = [b64encode(np.packbits(done).tobytes()).decode() for done in self.done]
        self.store.write_json(_LEDGER, {"token": self.token, "done": bits})
        self.saved = time.monotonic()


def _token(content: bytes) -> str | None:
    try:
        return str(json.loads(content)["token"])
    except (ValueError, KeyError, TypeError):
        return None


class _Writing:
    """The copying of one view into one target."""

    def __init__(self, view: View, target: "Target", token: str, workers: int) -> None:
        self.view, self.target = view, target
        levels = range(len(target.factors))
        self.copied = [view.has(k, target.factors[k]) and target.copies(k) for k in levels]
        self.voxel_bytes = np.dtype(view.spec.dtype).itemsize * (view.spec.channels or 1)
        self.blocks = [self._blocks(level) for level in levels]
        most = max(self.blocks[level].box(0).size * self._read_bytes(level) for level in levels)
        self.workers = max(1, min(workers, MEMORY // most))
        self.ledger = Ledger(Store(target.url), token, [len(blocks) for blocks in self.blocks])

    def _read_bytes(self, level: int) -> int:
        """Return how many bytes are read for a voxel that is written."""
        if self.copied[level]:
            return self.voxel_bytes
        return self.voxel_bytes * prod(
            b // a for a, b in zip(self.target.factors[level - 1], self.target.factors[level], strict=True)
        )

    def _blocks(self, level: int) -> Blocks:
        shape, cell = self.target.shape(level), self.target.cell(level)
        chunk: Sequence[int] = cell
        if self.copied[level]:
            chunk = tuple(int(n) for n in self.view.arrays[level].chunk_layout.read_chunk.shape[-3:])
        return Blocks(Grid(shape, cell), block_cells(shape, cell, chunk, self._read_bytes(level)))

    def run(self, quiet: bool) -> int:
        """Write what is not yet written; return how many bytes of voxels that were."""
        left = [self.ledger.left(level) for level in range(len(self.blocks))]
        sizes = [sum(b.box(k).size for k in ks) * self.voxel_bytes for b, ks in zip(self.blocks, left, strict=True)]
        total = sum(prod(self.target.shape(k)) for k in range(len(left))) * self.voxel_bytes
        with progress(quiet=quiet) as bars:
            bar = bars.add_task("export", total=total / 1e6, unit="MB")
            bars.update(bar, completed=(total - sum(sizes)) / 1e6)
            try:
                for level, blocks in enumerate(left):

                    def one(block: int, level: int = level) -> None:
                        box = self.blocks[level].box(block)
                        if self.copied[level]:
                            self._copy(level, box)
                        else:
                            self.target.fill(level, box)
                        self.ledger.record(level, block)
                        bars.advance(bar, box.size * self.voxel_bytes / 1e6)

                    together(self.workers, blocks, one)
            finally:
                self.ledger.save()
        return sum(sizes)

    def _copy(self, level: int, box: Box) -> None:
        # an object that an earlier call left must be replaced whole: on some stores tensorstore would try for ever
        if self.target.arrays and "://" not in self.target.url:
            try:
                # chunk to chunk, without an array between
                self.target.put(level, box, self.view.arrays[level][(..., *box.slices)])
                return
            except (ValueError, OSError):
                # who is at fault shows when both are done apart
                pass
        self.target.write(level, box, self.view.read(box, level))

    def check(self, url: str) -> None:
        """Compare some shards or chunks, as they are read back, with the source.

        Raises:
            TryAgainError: where the store gives back something other than was written.
        """
        stored, grid = open_volume(url), self.blocks[0].grid
        for cell in np.unique(np.linspace(0, len(grid) - 1, 3).round().astype(int)).tolist():
            box = grid.box(cell)
            if not np.array_equal(stored.read(box), self.view.read(box)):
                raise TryAgainError(
                    f"{url}: voxels {box} were read back different from {self.view.url}; check the disk, and that "
                    "nothing changes the source, remove what was written and export again"
                )


def block_cells(shape: Vector, cell: Vector, chunk: Sequence[int], voxel_bytes: int) -> Vector:
    """Return how many cells (z, y, x) are taken at a time: as many as take chunks of the source whole, if possible."""
    box = list(cell)
    for axis in range(3):
        while box[axis] < min(chunk[axis], shape[axis]) and 2 * prod(box) * voxel_bytes <= MOST_BYTES:
            box[axis] *= 2
    while 2 * prod(box) * voxel_bytes <= TASK_BYTES:
        short = [axis for axis in range(3) if box[axis] < shape[axis]]
        if not short:
            break
        box[min(short, key=lambda axis: box[axis])] *= 2
    z, y, x = (b // c for b, c in zip(box, cell, strict=True))
    return z, y, x


def together(workers: int, items: Iterable[int], work: Callable[[int], None]) -> None:
    """Do the work for each item in threads, which after an error or Ctrl-C begin no other one."""
    remaining, lock, stop = iter(items), Lock(), Event()

    def drain() -> None:
        while not stop.is_set():
            with lock:
                item = next(remaining, None)
            if item is None:
                return
            work(item)

    pool = ThreadPoolExecutor(workers)
    try:
        for part in as_completed([pool.submit(drain) for _ in range(workers)]):
            part.result()
    finally:
        stop.set()
        pool.shutdown()


# Single files


def _to_file(
    view: View, destination: str, format: str, token: str, relabel: bool, overwrite: bool, quiet: bool, began: float
) -> ExportReport:
    from .chunked import MAKERS
    from .files import WRITERS, relabelled
    from .files.writing import check_replaced

    if format not in WRITERS:
        raise UsageError(f"--format {format}: choose one of {', '.join([*MAKERS, *WRITERS])}")
    path = folder_of(destination)
    if path is None:
        raise UsageError(f"{destination}: --format {format} writes a file; give a path, not a URL")
    writer, spec = WRITERS[format], view.spec
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; choose another destination, or replace it with --overwrite")
    check_replaced(path, writer.suffix)
    _, ny, nx = spec.shape
    if relabel:
        plain = lambda a, b: view.read(Box((a, 0, 0), (b, ny, nx)))  # noqa: E731
        new = relabelled(writer, spec, plain)
        spec = new.spec
    writer.check(spec)
    with progress(quiet=quiet) as bars:
        bar = bars.add_task("export", total=spec.shape[0], unit="sections")

        def sections(start: int, stop: int) -> NDArray[Any]:
            data = new.sections(start, stop) if relabel else view.read(Box((start, 0, 0), (stop, ny, nx)))
            bars.update(bar, completed=stop)
            return data

        remarks = writer.write(path, spec, sections, token=token)
        if relabel:
            new.write_table(path.with_name(path.name + ".labels.csv"))
    seconds = time.monotonic() - began
    size = prod(spec.shape) * np.dtype(spec.dtype).itemsize * (spec.channels or 1)
    return ExportReport(
        str(path), format, spec.shape, spec.voxel_size, spec.dtype, 1, seconds, size / seconds / 1e6, False, remarks
    )
