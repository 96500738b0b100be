"""Import: an image stack becomes a volume, slab by slab, in bounded memory, and goes on after a kill."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..blocks import Box, Grid, Vector
from ..errors import DataError, TryAgainError, UsageError, surroundings
from ..progress import log, progress
from . import folders
from .inspection import Finding, inspect_volume
from .pyramids import fill_level
from .sources import Source, open_source
from .space import check_space, expected_bytes
from .store import Store, folder_of
from .volume import Kind, Nanometres, VolumeSpec, create, exists, layout, open_volume, pyramid_factors

SLAB_BYTES = 1 << 30
"""Most memory for the two slabs, one decoded and one written, that are held at a time."""

BATCH_BYTES = 1 << 24
"""Most memory for the sections that a thread decodes at a time, where one is not larger."""

Range = tuple[float, float]


@dataclass(frozen=True)
class ImportReport:
    """What was imported: `shape` and `voxel_size` (nm) are (z, y, x), `fingerprint` digests the content.

    `gray_range` is the range of values that became 0 to 255, None where values were kept; `remarks` says
    what the source passed over, `findings` what the data looks like.  `megavoxels_per_second` leaves out what an
    earlier call had written.
    """

    shape: Vector
    voxel_size: Nanometres
    dtype: str
    seconds: float
    megavoxels_per_second: float
    fingerprint: str
    gray_range: Range | None = None
    findings: list[Finding] = field(default_factory=list)
    remarks: tuple[str, ...] = ()
    resumed: bool = False


def import_volume(
    source: str,
    destination: str,
    *,
    voxel_size: Nanometres | None,
    kind: Kind = "image",
    dataset: str | None = None,
    to_8bit: Range | Literal["auto"] | None = None,
    overwrite: bool = False,
    offset: Nanometres | None = None,
    allow_gaps: bool = False,
    channel: int | None = None,
    quiet: bool = False,
    workers: int = 2,
) -> ImportReport:
    """Import an image stack (see `open_source`) as a multiscale volume, and check what was written.

    `voxel_size` and `offset` are (z, y, x) in nm; what the source says itself may be left out.  Of a TIFF with several
    channels one is imported.
    Images are stored as uint8: `to_8bit` gives the range of values that becomes 0 to 255, "auto" takes the
    0.1 and 99.9 percentiles of a sample of sections.  Labels are stored as uint64, uint8 masks as uint8.

    A folder appears under its name only when it is complete; what `overwrite` replaces stays until then.
    At a URL the metadata that makes a volume of the data is written last.  What was stopped goes on where it was when
    it is asked for again, unless the source or the options have changed.

    Raises:
        DataError: where the source is damaged or not what `kind` says.
        UsageError: where the options do not fit, or the destination exists.
        TryAgainError: where the disk is full or cannot be written.
    """
    began = time.monotonic()
    labels = kind == "labels"
    with open_source(source, dataset, allow_gaps=allow_gaps, channel=channel, labels=labels) as stack:
        size = _voxel_size(stack, voxel_size)
        gray_range = _gray_range(stack, kind, to_8bit)
        place = offset or stack.offset or (0.0, 0.0, 0.0)
        spec = VolumeSpec(stack.shape, _stored_dtype(stack, kind), size, place, kind)
        convert = _conversion(stack, spec, gray_range)
        provenance = {"path": source, "description": stack.description, "gray_range": gray_range}
        plan = [__version__, source, _stamp(source), dataset, asdict(spec), gray_range, stack.description]
        token = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        with _destination(destination, source, spec, overwrite, token) as work:
            writing = _Writing(stack, convert, spec, work, workers, token)
            fingerprint = writing.run(quiet)
            writing.check()
            writing.announce({"fingerprint": fingerprint, "source": provenance})
        remarks = stack.remarks
        if offset is None and any(place):
            shown = ",".join(f"{o:g}" for o in place)
            remarks += (f"its first voxel is at {shown} nm, as it says itself; --offset 0,0,0 puts it at 0",)
    findings = inspect_volume(open_volume(destination))
    seconds = time.monotonic() - began
    rate = (spec.shape[0] - writing.known) * prod(spec.shape[1:]) / seconds / 1e6
    return ImportReport(
        spec.shape, size, spec.dtype, seconds, rate, fingerprint, gray_range, findings, remarks, writing.known > 0
    )


# What is asked for


def _voxel_size(stack: Source, given: Nanometres | None) -> Nanometres:
    size = given or stack.voxel_size
    if size is None:
        why = f" ({'; '.join(stack.remarks)})" if stack.remarks else ""
        raise UsageError(f"{stack.path}: says no voxel size{why}; give it in nm with --voxel-size Z,Y,X, as 50,4,4")
    if len(size) != 3 or not all(isfinite(s) and s > 0 for s in size):
        shown = ",".join(f"{s:g}" for s in size)
        raise UsageError(f"voxel size {shown}: --voxel-size needs three positive numbers Z,Y,X in nm, as 50,4,4")
    z, y, x = (float(s) for s in size)
    return z, y, x


def _gray_range(stack: Source, kind: Kind, asked: Range | Literal["auto"] | None) -> Range | None:
    """Return the range of values that becomes 0 to 255; None keeps values as they are."""
    if kind == "labels":
        if asked is not None:
            raise UsageError("--to-8bit is for images: labels keep their values; leave it out")
        return None
    if asked is None or (asked == "auto" and stack.dtype == np.uint8):
        if stack.dtype != np.uint8:
            raise DataError(
                f"{stack.path}: holds {stack.dtype} values, an image is stored as uint8; import it with "
                "--to-8bit auto, or --to-8bit LOW,HIGH to choose the range (or --labels, where they are labels)"
            )
        return None
    low, high = _percentiles(stack) if asked == "auto" else asked
    if not (isfinite(low) and isfinite(high) and low < high):
        raise UsageError(f"--to-8bit {low:g},{high:g}: give a range LOW,HIGH with LOW below HIGH")
    log.info("%s: gray values %g to %g become 0 to 255", stack.path, low, high)
    return float(low), float(high)


def _percentiles(stack: Source) -> Range:
    """Return the 0.1 and 99.9 percentiles of at most 16 sections; the same for the same source."""
    return percentiles(stack.shape[0], lambda z: _finite(stack, stack.read(z, z + 1), z))


def percentiles(sections: int, read: Callable[[int], NDArray[Any]]) -> Range:
    """Return the 0.1 and 99.9 percentiles of at most 16 sections; `read` returns one by its number, (1, y, x)."""
    samples = []
    for z in np.unique(np.linspace(0, sections - 1, 16).round().astype(int)):
        section = read(int(z))
        step = max(1, round((section.size / 1e6) ** 0.5))
        samples.append(section[:, ::step, ::step].ravel())
    low, high = (float(v) for v in np.percentile(np.concatenate(samples), (0.1, 99.9)))
    return (low, high) if high > low else (low, low + 1)


def _finite(stack: Source, data: NDArray[Any], start: int) -> NDArray[Any]:
    if data.dtype.kind == "f":
        bad = ~np.isfinite(data).all((1, 2))
        if bad.any():
            section = start + int(bad.argmax())
            raise DataError(f"{stack.path}: section {section} holds NaN or infinite values; replace them first")
    return data


Conversion = Callable[[NDArray[Any], int], NDArray[Any]]
"""Turns sections of the source, the first one's number given, into what is stored."""


def _stored_dtype(stack: Source, kind: Kind) -> str:
    return "uint8" if kind == "image" or stack.dtype in (np.uint8, np.bool_) else "uint64"


def _conversion(stack: Source, spec: VolumeSpec, gray_range: Range | None) -> Conversion:
    if spec.kind == "labels":
        if stack.dtype.kind == "f":
            raise DataError(f"{stack.path}: holds {stack.dtype} values; convert labels to integers first")
        if stack.lossy:
            raise DataError(f"{stack.path}: JPEG alters labels; export them as TIFF or PNG")
        return partial(_labels, stack, spec.dtype)
    return (lambda data, _: data) if gray_range is None else partial(_to_8bit, stack, gray_range)


def _labels(stack: Source, dtype: str, data: NDArray[Any], start: int) -> NDArray[Any]:
    if data.dtype.kind == "i" and (negative := (data < 0).any((1, 2))).any():
        section = start + int(negative.argmax())
        raise DataError(f"{stack.path}: section {section} holds negative labels; renumber them from 0 up")
    return data.astype(dtype)


def _to_8bit(stack: Source, gray_range: Range, data: NDArray[Any], start: int) -> NDArray[Any]:
    if data.dtype.itemsize > 2 or data.dtype.kind == "f":
        return _scaled(_finite(stack, data, start), gray_range)
    index = np.dtype(f"u{data.dtype.itemsize}")
    every_value = np.arange(2 ** (8 * index.itemsize)).astype(index).view(data.dtype)
    return np.asarray(_scaled(every_value, gray_range)[data.view(index)])


def _scaled(data: NDArray[Any], gray_range: Range) -> NDArray[Any]:
    low, high = gray_range
    gray = np.clip(data.astype(np.float64), low, high)
    return np.asarray(np.rint((gray - low) * (255 / (high - low))), np.uint8)


# Where it goes


_LEDGER = ".neurokube-import"
"""Says, beside the data, whose it is and how many sections of each resolution are written."""


def _stamp(source: str) -> list[Any]:
    """Return what changes when files of a source do: their names, sizes and times."""
    path = Path(source).expanduser()
    if not path.exists():  # a dataset of a file
        path = Path(source.rpartition(":")[0]).expanduser()
    # what is only the header of an NRRD file has its data in another
    folder = path if path.is_dir() else path.parent if path.suffix == ".nhdr" else None
    files = [path] if folder is None else folder.iterdir()
    return sorted([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file())


@contextmanager
def _destination(destination: str, source: str, spec: VolumeSpec, overwrite: bool, token: str = "") -> Iterator[str]:
    """Yield where to write; what is complete when the block ends then stands at the destination.

    What an earlier call with the same token has left there stays.
    """
    folder = folder_of(destination)
    if folder is None:
        _clear_url(destination, overwrite, token)
        yield destination
        return
    _check_folder(folder, source, overwrite)
    work = folder.with_name(folder.name + ".partial")
    try:
        with _locked(work, token):
            try:
                if not (work / _LEDGER).exists():
                    check_space(str(folder.parent), expected_bytes(spec))
                yield str(work)
                folders.swap(work, folder)
            except BaseException as error:
                stopped = isinstance(error, (KeyboardInterrupt, TryAgainError, OSError))
                if not (stopped and (work / _LEDGER).exists()):
                    shutil.rmtree(work, ignore_errors=True)
                raise
    except OSError as error:
        remedy = f"{destination}: cannot be written ({error.strerror}); choose another destination"
        raise surroundings(error, destination) or UsageError(remedy) from None


def _check_folder(folder: Path, source: str, overwrite: bool) -> None:
    origin = Path(source).expanduser().absolute()
    if folder == origin or folder in origin.parents:
        raise UsageError(f"{folder}: is or holds the source; choose another destination")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder.is_dir() and (folder / "zarr.json").exists()):
        raise UsageError(f"{folder}: exists and is not a volume; choose another destination")
    if not overwrite:
        raise UsageError(f"{folder}: exists; choose another destination, or replace it with --overwrite")


def _clear_url(url: str, overwrite: bool, token: str) -> None:
    if exists(url) and not overwrite:
        raise UsageError(f"{url}: exists; choose another destination, or replace it with --overwrite")
    store = Store(url)
    if _is_of(store, token):
        return
    # arrays without group metadata are what an interrupted import left
    keys = store.keys()
    if any(not _OURS.match(key) for key in keys):
        raise UsageError(f"{url}: holds other objects; choose a destination that is empty")
    # the ledger goes first: nobody must go on with a part of what it speaks of if a kill strikes meanwhile
    store.delete(_LEDGER)
    store.delete_all()


_OURS = re.compile(r"zarr\.json|\.neurokube-import|\d+(/|$)")


def _is_of(store: Store, token: str) -> bool:
    """Whether what is there was written by an earlier call with this token."""
    return bool(token) and _known(store).get("token") == token


def _known(store: Store) -> dict[str, Any]:
    try:
        return dict(json.loads(store.read(_LEDGER) or b"{}"))
    except (ValueError, TypeError):
        return {}


@contextmanager
def _locked(work: Path, token: str) -> Iterator[None]:
    """Hold a folder for this process alone; what another import, with another token, has left in it goes."""
    work.mkdir(parents=True, exist_ok=True)
    with folders.held(work, "import"):
        entries = sorted(work.iterdir(), key=lambda entry: entry.name != _LEDGER)
        if any(not _OURS.match(entry.name) for entry in entries):
            raise UsageError(f"{work}: is in the way and was not left by an import; move it")
        if not _is_of(Store(str(work)), token):
            for entry in entries:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield


# The work


def slab_layout(spec: VolumeSpec, section_bytes: int) -> tuple[Vector, Vector]:
    """Return (shard, chunk) shapes whose slabs, two at a time, keep to `SLAB_BYTES`.

    `section_bytes` is the memory that one section takes.  Shards of large sections become flatter, and
    wider in turn, so that their number does not grow.
    """
    shard, chunk = layout(spec)
    while shard[0] > 1 and 2 * shard[0] * section_bytes > SLAB_BYTES:
        shard = _flatter(shard)
        chunk = _flatter(chunk) if chunk[0] > shard[0] else chunk
    return shard, chunk


def _flatter(shape: Vector) -> Vector:
    z, y, x = shape
    return (z // 2, y, 2 * x) if x <= y else (z // 2, 2 * y, x)


class _Writing:
    """The streaming of one source into one volume, of which an earlier call with the same token wrote `known` sections.

    `filled` is how many sections of each resolution are written.
    """

    def __init__(
        self, stack: Source, convert: Conversion, spec: VolumeSpec, url: str, workers: int, token: str = ""
    ) -> None:
        self.stack, self.convert, self.spec, self.workers = stack, convert, spec, workers
        section = prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
        self.shard, chunk = slab_layout(spec, section)
        self.create = partial(create, url, spec, shard=self.shard, chunk=chunk, factors=pyramid_factors(spec))
        self.volume = self.create(announce=False)
        self.filled = [0] * len(self.volume.arrays)
        self.known = 0
        self.store, self.token = Store(url), token

    def run(self, quiet: bool) -> str:
        """Write all resolutions and return the digest of the finest: of its type, shape and bytes."""
        depth, sections = self.shard[0], self.spec.shape[0]
        with (
            progress(quiet=quiet) as bars,
            _threads(self.workers) as readers,
            _threads(self.workers) as writers,
        ):
            bar = bars.add_task("import", total=sections, unit="sections")
            digest = self._take_up()
            bars.update(bar, completed=self.known)
            slabs = [(z, min(z + depth, sections)) for z in range(self.known, sections, depth)]
            coming = None
            for slab, following in zip(slabs, [*slabs[1:], None], strict=bool(slabs)):
                data = (coming or self._decode(readers, *slab))()
                coming = None if following is None else self._decode(readers, *following)
                hashing = writers.submit(digest.update, data.data)
                self._write(writers, slab, data)
                hashing.result()
                del data
                self._fill(writers)
                self._record()
                bars.update(bar, completed=slab[1])
        return digest.hexdigest()

    def _take_up(self) -> "hashlib._Hash":
        """Read what an earlier call wrote, note how far it came, and return its digest."""
        known, depth = _known(self.store), self.shard[0]
        digest = self._digest()
        if self.token and known.get("token") == self.token and len(known["filled"]) == len(self.filled):
            _, ny, nx = self.spec.shape
            try:
                for z in range(0, known["filled"][0], depth):
                    slab = Box((z, 0, 0), (min(z + depth, known["filled"][0]), ny, nx))
                    digest.update(np.ascontiguousarray(self.volume.read(slab)).data)
                self.filled, self.known = known["filled"], known["filled"][0]
            except DataError:
                # what can no longer be read is written anew
                digest = self._digest()
        self._record()
        return digest

    def _digest(self) -> "hashlib._Hash":
        return hashlib.sha256(f"{self.spec.dtype} {self.spec.shape}".encode())

    def _record(self) -> None:
        if self.token:
            self.store.write_json(_LEDGER, {"token": self.token, "filled": self.filled})

    def _decode(self, pool: ThreadPoolExecutor, start: int, stop: int) -> Callable[[], NDArray[Any]]:
        """Start to decode a slab; the result waits for it."""
        data = np.empty((stop - start, *self.spec.shape[1:]), self.spec.dtype)

        def decode(z: int) -> None:
            end = min(z + step, stop)
            data[z - start : end - start] = self.convert(self.stack.read(z, end), z)

        section = prod(self.spec.shape[1:]) * self.stack.dtype.itemsize
        fair = -(-(stop - start) // self.workers)
        step = max(1, min(self.stack.batch, fair, BATCH_BYTES // section))
        parts = [pool.submit(decode, z) for z in range(start, stop, step)]

        def result() -> NDArray[Any]:
            _wait(parts)
            return data

        return result

    def _write(self, pool: ThreadPoolExecutor, slab: tuple[int, int], data: NDArray[Any]) -> None:
        origin = (slab[0], 0, 0)
        boxes = self._shards(0, *slab)
        _wait([pool.submit(self.volume.write, box, data[box.relative_to(origin).slices]) for box in boxes])
        self.filled[0] = slab[1]

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        """Fill the shards of coarser resolutions below which the finer one is now complete."""
        depths = [self.volume.level_shape(level)[0] for level in range(len(self.filled))]
        for level in range(1, len(self.filled)):
            step = -(-depths[level - 1] // depths[level])
            ready = self.filled[level - 1] // step // self.shard[0] * self.shard[0]
            if self.filled[level - 1] == depths[level - 1]:
                ready = depths[level]
            boxes = self._shards(level, self.filled[level], ready)
            _wait([pool.submit(fill_level, self.volume, level, box) for box in boxes])
            self.filled[level] = ready

    def _shards(self, level: int, start: int, stop: int) -> Iterator[Box]:
        """Yield the boxes of the shards between two sections of a resolution."""
        _, ny, nx = self.volume.level_shape(level)
        grid = Grid((stop - start, ny, nx), self.shard)
        return (grid.box(k).shift((start, 0, 0)) for k in range(len(grid)))

    def check(self) -> None:
        """Compare some sections, the first and last among them, with the source.

        Raises:
            TryAgainError: where the store gives back something other than was written.
        """
        _, ny, nx = self.spec.shape
        for z in np.unique(np.linspace(0, self.spec.shape[0] - 1, 5).round().astype(int)).tolist():
            stored = self.volume.read(Box((z, 0, 0), (z + 1, ny, nx)))
            if not np.array_equal(stored, self.convert(self.stack.read(z, z + 1), z)):
                self.store.delete(_LEDGER)
                raise TryAgainError(
                    f"{self.volume.url}: section {z} was read back different from {self.stack.path}; "
                    "check the disk, and that nothing changes the source, and import again"
                )

    def announce(self, attributes: dict[str, Any]) -> None:
        """Write the metadata that makes a volume of the data."""
        self.create(attributes=attributes)
        self.store.delete(_LEDGER)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that, after an error, leave undone what they have not begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(parts: Iterable[Future[Any]]) -> None:
    for part in parts:
        part.result()
