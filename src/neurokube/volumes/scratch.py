"""Scratch: what is read from slow or dear stores, kept on a fast disk as it is stored; what is written, sent behind.

    with staged("/scratch") as scratch:
        image = scratch.volume(open_volume("s3://bucket/image", still=True))
        image.read(box)          # each shard is asked for once, whole, beside the others of the box
        labels.write(box, ids)   # is on its way while the next block is computed; here when `wait` returns

Objects are copied when they are first read, and not before: what a block reads is decided where it is computed, halos,
masks and all, and to work it out a second time beforehand would be one more thing to get wrong.

What is written needs no disk: each object is encoded in memory and sent as it is in one request, which is only waited
for later, before it counts.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import tensorstore as ts
from numpy.typing import NDArray

from ..errors import ConfigurationError, NeuroKubeError, TryAgainError
from .store import folder_of, keeping
from .volume import Volume

FOLDER, BYTES = "NEUROKUBE_SCRATCH", "NEUROKUBE_SCRATCH_BYTES"
"""A folder on a fast disk, where workers shall use one, and how much of it each may fill [default: what is free]."""

_LARGEST = 64 << 20
"""Objects of more bytes, decoded, are read in parts from the store: they would be held in memory whole."""
_READING, _WRITING, _REQUESTS = 64 << 20, 32 << 20, 32
"""Bytes, and requests, that are on their way at a time."""
_PAGE = 4096
_Place = tuple[str, str]


class Scratch:
    """What is on scratch, in a folder of its own, `limit` bytes at the most; None where there is no room for any."""

    def __init__(self, folder: Path | None, limit: int | None = None) -> None:
        self._folder = folder
        self._limit = limit
        self._kept: OrderedDict[_Place, int | None] = OrderedDict()
        """The size of each object by store and key, None of one that is not stored; what was used last comes last."""
        self._near: dict[str, bool] = {}
        self._arrays: dict[str, Any] = {}
        self._folders: dict[str, Path] = {}
        self._largest: dict[str, int] = {}
        self._used = 0
        self._lock = threading.Lock()
        self._behind: deque[tuple[int, Callable[[], object]]] = deque()
        self._behind_bytes = 0
        self._writing = threading.Lock()
        self._failed: NeuroKubeError | None = None
        self.copied = 0
        """How many objects were copied from stores."""
        if folder is not None and self._room() <= 0:
            self._give_up("nothing is free")

    def volume(self, volume: Volume) -> Volume:
        """Return a volume that is read by way of scratch, and written behind; nobody else may write to it meanwhile.

        What lies on the same disk as scratch stays as it is.
        """
        url = volume.data or volume.url
        if url not in self._near:
            self._near[url] = self._is_near(url)
        return volume if self._near[url] else replace(volume, scratch=self)

    def _is_near(self, url: str) -> bool:
        folder = folder_of(url)
        if folder is None or self._folder is None:
            return folder is not None or url.startswith("memory:")
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return there.stat().st_dev == self._folder.stat().st_dev

    # Reading

    def read(self, view: Any) -> tuple[NDArray[Any], bool]:
        """Return the voxels of a view of an array, and whether it is known that all its objects are stored.

        Raises:
            ValueError: where they cannot be read, as tensorstore says it.
        """
        with self._lock:
            # the lock holds until all is decoded: nothing that is read may make room for something else
            if self._folder is not None and (cut := _Cut.of(view)) is not None and cut.bytes <= _LARGEST:
                keys = cut.keys(view.domain)
                if self._holds(view.kvstore, cut, keys):
                    near = self._array(cut)[cut.transform]
                    whole = all(self._kept[cut.place, key] is not None for key in keys)
                    return cast(NDArray[Any], near.read().result()), whole
        return cast(NDArray[Any], view.read().result()), False

    def forget_absent(self) -> None:
        """Ask anew for what was not found: the store was gone."""
        with self._lock:
            self._kept = OrderedDict((place, size) for place, size in self._kept.items() if size is not None)
            self._arrays.clear()

    def _array(self, cut: "_Cut") -> Any:
        """Return the array as it is here, which is kept open, and with it what was decoded."""
        if cut.place not in self._arrays:
            spec = {key: value for key, value in cut.spec.items() if key != "transform"} | {
                "kvstore": {"driver": "file", "path": f"{self._folders[cut.place]}/"},
                "recheck_cached_data": "open",
                "open": True,
                "assume_metadata": True,
            }
            self._arrays[cut.place] = ts.open(spec, context=keeping()).result()
        return self._arrays[cut.place]

    def _holds(self, store: Any, cut: "_Cut", keys: Sequence[str]) -> bool:
        """Whether objects are here, once those that were not have been copied: false where there is no room for all."""
        folder = self._folders.setdefault(cut.place, cast(Path, self._folder) / str(len(self._folders)))
        wanted = {(cut.place, key) for key in keys}
        missing = [key for key in keys if not self._has(folder, cut.place, key)]
        for found in wanted & self._kept.keys():
            self._kept.move_to_end(found)
        return self._fetch(store, folder, cut, missing, wanted)

    def _has(self, folder: Path, place: str, key: str) -> bool:
        """Whether an object is here, or known not to be stored; what somebody removed from scratch is not here."""
        if (place, key) not in self._kept:
            return False
        size = self._kept[place, key]
        with suppress(OSError):
            if size is None or (folder / key).stat().st_size == size:
                return True
        self._drop((place, key))
        return False

    def _fetch(self, store: Any, folder: Path, cut: "_Cut", keys: Sequence[str], wanted: set[_Place]) -> bool:
        """Copy objects, many at a time; return whether all have found room."""
        waiting, begun = deque(keys), deque[tuple[str, Any]]()
        while waiting or begun:
            while waiting and len(begun) < _REQUESTS and self._admits(len(begun), cut):
                key = waiting.popleft()
                begun.append((key, store.read(key)))
            key, future = begun.popleft()
            result = future.result()
            content = None if result.state == "missing" else bytes(result.value)
            if content is not None and not self._keep(folder / key, content, wanted):
                return False
            self._kept[cut.place, key] = None if content is None else len(content)
            self._largest[cut.place] = max(self._largest.get(cut.place, 0), len(content or b""))
            self.copied += content is not None
        return True

    def _admits(self, begun: int, cut: "_Cut") -> bool:
        """Whether one more object may be on its way, which will be about as large as those before."""
        return begun == 0 or (begun + 1) * (self._largest.get(cut.place) or cut.bytes) <= _READING

    def _keep(self, path: Path, content: bytes, wanted: set[_Place]) -> bool:
        size = _on_disk(len(content))
        while self._room() < size and self._kept and (oldest := next(iter(self._kept))) not in wanted:
            self._drop(oldest)
        if (room := self._room()) < size:
            self._give_up(
                f"{max(0, room) / 1e6:.3g} MB of it are free, and {size / 1e6:.3g} MB more are needed at once"
            )
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            # another may have filled the disk meanwhile
            path.unlink(missing_ok=True)
            self._give_up(str(error.strerror))
            return False
        self._used += size
        return True

    def _room(self) -> int:
        """Return how many bytes may be written yet; some of the disk is left to others."""
        disk = shutil.disk_usage(cast(Path, self._folder))
        free = disk.free - min(disk.total >> 4, 1 << 30)
        return free if self._limit is None else min(free, self._limit - self._used)

    def _drop(self, place: _Place) -> None:
        """Remove an object, and the folders that it leaves empty."""
        size = self._kept.pop(place)
        if size is None:
            return
        self._used -= _on_disk(size)
        top = self._folders[place[0]]
        path = top / place[1]
        with suppress(OSError):
            path.unlink()
            for folder in path.relative_to(top).parents:
                (top / folder).rmdir()

    def _give_up(self, why: str) -> None:
        """Leave scratch to others, and read from the store: slower, but nothing that work has to end for."""
        _note(cast(Path, self._folder).parent, why)
        for place in list(self._kept):
            self._drop(place)
        self._folder = None

    # Writing

    def write(self, size: int, begin: Callable[[], Callable[[], object]]) -> None:
        """Begin to write so many bytes, by what returns what waits for the end; `wait` does that.

        Raises:
            TryAgainError: where an earlier one failed.
        """
        with self._writing:
            while self._behind and self._behind_bytes + size > _WRITING:
                self._end()
            self._behind.append((size, begin()))
            self._behind_bytes += size

    def wait(self) -> None:
        """Return when all that was written is durable.

        Raises:
            TryAgainError: where some is not.
        """
        with self._writing:
            while self._behind:
                self._end()
            if self._failed is not None:
                raise self._failed

    def _end(self) -> None:
        size, end = self._behind.popleft()
        self._behind_bytes -= size
        try:
            end()
        except BaseException as error:
            # nobody who waits later may take it for written
            stopped = TryAgainError("stopped while it was writing; run again")
            self._failed = error if isinstance(error, NeuroKubeError) else stopped
            raise


_TOLD: set[Path] = set()


def _note(root: Path, why: str) -> None:
    """Say why scratch is left alone, once a process, though each batch tries again."""
    if root not in _TOLD:
        _TOLD.add(root)
        print(f"note: scratch {root}: {why}; what does not fit is read straight from the store", file=sys.stderr)


def _on_disk(size: int) -> int:
    """Return what a file of so many bytes takes at the most, its folders included."""
    return (-(-size // _PAGE) + 2) * _PAGE


class _Cut(NamedTuple):
    """How the array of a view is cut into objects: which array, their shape and start in stored voxels, their names."""

    place: str
    spec: dict[str, Any]
    transform: Any
    shape: Sequence[int]
    start: Sequence[int]
    name: "_Name"
    bytes: int

    @classmethod
    def of(cls, view: Any) -> "_Cut | None":
        """Return how an array is cut; None where that is not known, as of precomputed in shards, or of multisets."""
        if view.kvstore is None:
            return None
        spec = view.spec()
        told = spec.to_json()
        if (found := _cut(told)) is None:
            return None
        size = prod(found[0]) * int(view.dtype.numpy_dtype.itemsize)
        return cls(json.dumps(told["kvstore"], sort_keys=True), told, spec.transform, *found, size)

    def keys(self, domain: Any) -> list[str]:
        """Return the keys of all objects that a view of this domain lies in."""
        spans = zip(_stored(self.spec, domain), self.start, self.shape, strict=True)
        numbers = [range((a - start) // n, (b - 1 - start) // n + 1) for (a, b), start, n in spans]
        return [self.name(number) for number in product(*numbers)]


def _stored(spec: dict[str, Any], domain: Any) -> Iterator[tuple[int, int]]:
    """Yield where a view begins and ends along each axis as stored: axes may be turned, cut off or left out."""
    low, high = domain.inclusive_min, domain.exclusive_max
    outputs = spec.get("transform", {}).get("output") or [{"input_dimension": k} for k in range(domain.rank)]
    for output in outputs:
        offset, stride = output.get("offset", 0), output.get("stride", 1)
        if (axis := output.get("input_dimension")) is None:
            yield offset, offset + 1
        else:
            ends = (offset + stride * low[axis], offset + stride * (high[axis] - 1))
            yield min(ends), max(ends) + 1


_Name = Callable[[Sequence[int]], str]
_Found = tuple[Sequence[int], Sequence[int], _Name]


def _cut(spec: dict[str, Any]) -> _Found | None:
    driver, metadata = spec["driver"], spec.get("metadata", {})
    if driver == "zarr3" and metadata["chunk_grid"]["name"] == "regular":
        encoding = metadata["chunk_key_encoding"]
        own = encoding["name"] == "default"
        separator = encoding.get("configuration", {}).get("separator", "/" if own else ".")
        return _regular(metadata["chunk_grid"]["configuration"]["chunk_shape"], separator, ["c"] * own)
    if driver == "zarr":
        return _regular(metadata["chunks"], metadata.get("dimension_separator", "."))
    if driver == "n5":
        return _regular(metadata["blockSize"], "/")
    if driver == "neuroglancer_precomputed" and spec["scale_metadata"].get("sharding") is None:
        return _precomputed(spec["scale_metadata"], spec["multiscale_metadata"]["num_channels"])
    return None


def _regular(shape: Sequence[int], separator: str, lead: Sequence[str] = ()) -> _Found:
    return shape, [0] * len(shape), lambda number: separator.join([*lead, *map(str, number)])


def _precomputed(scale: dict[str, Any], channels: int) -> _Found:
    shape, start = scale["chunk_size"], scale.get("voxel_offset", [0, 0, 0])
    ends = [a + n for a, n in zip(start, scale["size"], strict=True)]

    def name(number: Sequence[int]) -> str:
        low = [a + k * n for a, k, n in zip(start, number[:3], shape, strict=True)]
        high = [min(a + n, end) for a, n, end in zip(low, shape, ends, strict=True)]
        return f"{scale['key']}/" + "_".join(f"{a}-{b}" for a, b in zip(low, high, strict=True))

    # an object holds all channels of its voxels
    return [*shape, channels], [*start, 0], name


@contextmanager
def staged(folder: str | Path, limit: int | None = None) -> Iterator[Scratch]:
    """Use a folder as scratch, `limit` bytes of it at the most; when it ends all is written, and nothing is left there.

    What a process that was killed left there is removed; processes that are alive may share it.

    Raises:
        ConfigurationError: where the folder cannot be used.
        TryAgainError: at the end, where not all could be written.
    """
    root = Path(folder).expanduser()
    own, lock = _claimed(root)
    try:
        scratch = Scratch(own, limit)
        yield scratch
        scratch.wait()
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
            os.close(lock)


@contextmanager
def staging() -> Iterator[Scratch | None]:
    """Use the scratch that the environment names, see `staged`; None where it names none."""
    folder, limit = os.environ.get(FOLDER), os.environ.get(BYTES)
    if not folder:
        yield None
        return
    if limit and not limit.isdecimal():
        raise ConfigurationError(f"{BYTES}: '{limit}' is no number of bytes; correct it, or leave it out")
    with staged(folder, int(limit) if limit else None) as scratch:
        yield scratch


def _claimed(root: Path) -> tuple[Path | None, int]:
    """Return a new folder, and the file descriptor that holds its lock while it is in use; none on a full disk."""
    prefix = f"neurokube-{socket.gethostname()}-"
    try:
        root.mkdir(parents=True, exist_ok=True)
        # the lock of another machine may not be seen here: its folders are left to it
        for left in root.glob(f"{prefix}*"):
            _remove_left(left)
        while True:
            own = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
            if (lock := _locked(own)) is not None:
                return own, lock
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _note(root, str(error.strerror))
            return None, -1
        raise ConfigurationError(
            f"{root}: cannot be used as scratch ({error.strerror}); name a folder on a disk of this machine"
        ) from None


def _locked(folder: Path) -> int | None:
    """Lock a folder, and return the file descriptor; None where another has it, or has removed it."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink > 0 and folder.exists():
            return lock
    except BlockingIOError:
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _remove_left(folder: Path) -> None:
    """Remove a folder that nobody holds."""
    # another user's stays too
    with suppress(PermissionError):
        if (lock := _locked(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
