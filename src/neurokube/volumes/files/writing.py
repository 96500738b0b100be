"""What writes a file of another tool: a few sections at a time, and whole or not at all."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, surroundings
from ..folders import held, lock, swap
from ..volume import VolumeSpec

BATCH_BYTES = 1 << 25
"""Most memory for the sections that are asked for at a time, where one is not larger."""

EVERY_DTYPE = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)

Sections = Callable[[int, int], NDArray[Any]]
"""Returns the sections from one to another, the latter excluded, shape ([c,] z, y, x)."""


class Write(Protocol):
    """Writes a volume; see `Writer`."""

    def __call__(self, path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
        """Write it, and return what the format does not keep."""


@dataclass(frozen=True)
class Writer:
    """A format that can be written.

    `suffix` is what its files end in, "" for a folder; `dtypes` are what images, and `label_dtypes` what labels, may
    be, the narrowest first; `channels` says whether it holds several.

    `write(path, spec, sections)` asks for the sections in order, a few at a time, and returns remarks: what the
    format does not keep.  It writes to `path` + ".partial" and renames that last, replacing a file, or a folder
    of exported slices, at `path`.  A folder of slices goes on where an earlier call with the same `spec` and `token`
    was stopped: give the digest of the content as `token`, or it starts anew.
    """

    name: str
    suffix: str
    dtypes: tuple[str, ...]
    label_dtypes: tuple[str, ...]
    write: Write
    channels: bool = False

    def check(self, spec: VolumeSpec) -> None:
        """Refuse a volume that the format cannot hold.

        Raises:
            UsageError: in one line, with what to do.
        """
        if spec.channels is not None and not self.channels:
            raise UsageError(
                f"{self.name}: holds one channel and the volume has {spec.channels}; choose one with --channel, "
                "or use --format hdf5 or imagej"
            )
        allowed = self.label_dtypes if spec.kind == "labels" else self.dtypes
        if spec.dtype not in allowed:
            raise UsageError(f"{self.name}: holds no {spec.dtype} {self._remedy(spec, allowed)}")

    def _remedy(self, spec: VolumeSpec, allowed: tuple[str, ...]) -> str:
        unsigned = [d for d in allowed if d.startswith("uint") and np.dtype(d).itemsize < np.dtype(spec.dtype).itemsize]
        if spec.kind == "labels" and unsigned and spec.dtype.startswith("uint"):
            return f"labels; number them from 1 on with --relabel ({unsigned[-1]} at most), or use --format hdf5"
        kind = "labels" if spec.kind == "labels" else "images"
        return f"{kind}, they can be {', '.join(allowed)}; use --format hdf5"


def section_bytes(spec: VolumeSpec) -> int:
    """Return the memory of one section with all its channels."""
    return max(1, prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize * (spec.channels or 1))


def batches(spec: VolumeSpec, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yield from which section to which to ask for next; `multiple` of them at least, and multiples of it."""
    step = max(1, BATCH_BYTES // (section_bytes(spec) * multiple)) * multiple
    for start in range(0, spec.shape[0], step):
        yield start, min(start + step, spec.shape[0])


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file: it appears at `path` when the block ends, and is gone if that fails."""
    work = path.with_name(path.name + ".partial")
    with _faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(work, handle, "export")
            try:
                os.truncate(handle, 0)
                yield work
                os.fsync(handle)
                work.replace(path)
                _settle(path.parent)
            except BaseException:
                work.unlink(missing_ok=True)
                raise
        finally:
            os.close(handle)


_NOTE = "export.json"
"""Says, in a folder that is not complete, what it is to become."""

_SLICES = re.compile(r"s\d+\.(tif|png)|segments\.txt|export\.json")
"""What the folders that are written here hold."""


@contextmanager
def whole_folder(path: Path, spec: VolumeSpec, token: str) -> Iterator[Path]:
    """Yield a folder in which files written by `whole_slice` are kept for the next call if this one is stopped."""
    work = path.with_name(path.name + ".partial")
    with _faults(path):
        check_replaced(path, "")
        work.mkdir(parents=True, exist_ok=True)
        with held(work, "export"):
            _begin(work, json.dumps({"token": token, **asdict(spec)}) if token else "")
            yield work
            _settle(work)
            swap(work, path)
            (path / _NOTE).unlink(missing_ok=True)
            _settle(path.parent)


def check_replaced(path: Path, suffix: str) -> None:
    """Check that what is at `path` may be replaced, by a file of this suffix or, where it is "", a folder of slices.

    Raises:
        UsageError: where a folder is there that holds anything but slices as they are written here, or is asked
            to become a file, or the other way round.
    """
    if suffix:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder and would become a file; choose another destination, or remove it")
        return
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path}: is a file and would become a folder; choose another destination, or remove it")
    others = sorted(entry.name for entry in path.iterdir() if not _SLICES.fullmatch(entry.name))
    if others:
        raise UsageError(
            f"{path}: exists and holds more than exported slices ({others[0]}); choose another destination"
        )


def _begin(work: Path, note: str) -> None:
    """Keep what an earlier call left, if it was about the same; empty the folder if not."""
    entries = list(work.iterdir())
    known = work / _NOTE
    if note and known.exists() and known.read_text() == note:
        return
    if entries and not known.exists():
        raise UsageError(f"{work}: is in the way and was not left by an export; move it")
    for entry in sorted(entries, key=lambda e: e.name == _NOTE):  # the note goes last: it says whose folder it is
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    new = work / (_NOTE + ".new")
    new.write_text(note)
    new.replace(known)


@contextmanager
def whole_slice(file: Path) -> Iterator[Path]:
    """Yield where to write one file of a folder: it appears under its name when it is complete."""
    work = file.with_name(f".{file.name}.new")
    yield work
    with work.open("rb") as written:
        os.fsync(written.fileno())
    work.replace(file)


def _settle(folder: Path) -> None:
    """Make the names in a folder durable."""
    with suppress(OSError):  # some file systems know no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None and "requested and" in str(error):
            error.errno = errno.ENOSPC  # NumPy says of a full disk only that it wrote less than it should
        told = f"{path}: cannot be written ({error.strerror or error}); choose another destination"
        raise surroundings(error, str(path)) or UsageError(told) from None
