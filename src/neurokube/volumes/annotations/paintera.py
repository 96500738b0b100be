"""Label sources of Paintera: N5 containers, of plain ids or of label multisets.

A multiset says for each voxel which labels it holds and how often; the label is the most frequent one.  The
format is that of https://github.com/saalfeldlab/imglib2-label-multisets.
"""

import bz2
import gzip
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box, Vector
from ...errors import DataError
from ..files.reading import blaming
from ..volume import Nanometres
from .arrays import LabelArray, arrays_below, driver_of, listing
from .painted import Painted

MAX_ID = 0xFFFF_FFFF_FFFF_FFFC
"""The largest id; the three above it are 'outside', 'invalid' and 'transparent'."""


def is_n5(folder: Path) -> bool:
    """Whether a folder is an N5 container, or a group or dataset of one."""
    return (folder / "attributes.json").is_file() or folder.suffix == ".n5"


def open_n5(path: str, dataset: str | None) -> Painted:
    """Open a label source of Paintera, or an N5 array of labels; `dataset` is its path in the container.

    Resolution and offset, which N5 gives as (x, y, z), are taken for nm.  What was merged in Paintera carries the
    id of its segment.  What was painted and not committed is not in the container.

    Raises:
        DataError: where it is damaged, or holds several label sources and none is chosen.
    """
    root = Path(path).expanduser()
    folder = root / dataset if dataset else root
    with blaming(path):
        group = _label_source(path, root, folder)
        s0 = next((f for f in (group / "data" / "s0", group / "s0") if driver_of(f)), group)
        attributes = [_attributes(f) for f in (s0, s0.parent, group)]
        merged = _merged(group / "fragment-segment-assignment")
        array = MultisetArray(s0) if attributes[0].get("isLabelMultiset") else LabelArray(s0, (2, 1, 0))
    size, place = (_first(attributes, name) for name in ("resolution", "offset"))

    def read(box: Box) -> NDArray[Any]:
        data = array.read(box)
        if data.dtype == np.uint64:
            data[data > MAX_ID] = 0
        return _segments(data, merged)

    return Painted(
        path=str(group),
        description="N5 label multisets" if isinstance(array, MultisetArray) else "N5 labels",
        extent=array.box,
        read=read,
        occupied=array.occupied,
        fit="stack" if place is None else "paint",
        voxel_size=size,
        place=place,
    )


def _label_source(path: str, root: Path, folder: Path) -> Path:
    """Return the folder of the label source: the one given, or the only one below it."""
    if driver_of(folder) or any(driver_of(folder / name) for name in ("data/s0", "s0")):
        return folder
    arrays = list(arrays_below(folder)) if folder.is_dir() else []
    sources = [a.parent.parent for a in arrays if a.parts[-2:] == ("data", "s0") and _is_label_source(a.parent.parent)]
    if len(sources) != 1:
        found = sources or [a for a in arrays_below(root) if a.name == "s0" or not a.name.startswith("s")]
        raise DataError(f"{path}: choose a label source with --dataset; it holds {listing(root, found)}")
    return sources[0]


def _is_label_source(group: Path) -> bool:
    data = _attributes(group).get("painteraData")
    return isinstance(data, dict) and data.get("type") == "label"


def _attributes(folder: Path) -> dict[str, Any]:
    file = folder / "attributes.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _first(attributes: list[dict[str, Any]], name: str) -> Nanometres | None:
    values = next((a[name] for a in attributes if name in a), None)
    if values is None:
        return None
    x, y, z = (float(v) for v in values)
    return z, y, x


def _merged(folder: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]] | None:
    """Return the fragments, sorted, and the segments that they were merged into."""
    if driver_of(folder) is None or 0 in _attributes(folder)["dimensions"]:
        return None
    table = LabelArray(folder, (1, 0))
    (fragments, segments) = table.read(table.box)[0].astype(np.uint64)
    order = np.argsort(fragments)
    return fragments[order], segments[order]


def _segments(data: NDArray[Any], merged: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None) -> NDArray[Any]:
    if merged is None or not len(merged[0]):
        return data
    fragments, segments = merged
    at = np.minimum(np.searchsorted(fragments, data), len(fragments) - 1)
    return np.where(fragments[at] == data, segments[at], data.astype(np.uint64))


# Label multisets


class MultisetArray:
    """An N5 dataset of label multisets, read as the most frequent label of each voxel, axes (z, y, x)."""

    def __init__(self, folder: Path) -> None:
        attributes = _attributes(folder)
        self.folder = folder
        self.shape = _vector(attributes["dimensions"])
        self._block = _vector(attributes["blockSize"])
        self._decompress = _decompressor(folder, attributes)

    @property
    def box(self) -> Box:
        """The box of all voxels."""
        return Box.of(self.shape)

    def read(self, box: Box) -> NDArray[np.uint64]:
        """Return a box, shape (z, y, x); 0 where no block is stored."""
        data = np.zeros(box.shape, np.uint64)
        ranges = (range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, self._block, strict=True))
        for z, y, x in product(*ranges):
            file = self.folder / str(x) / str(y) / str(z)
            if file.is_file():
                block = self._box((z, y, x))
                part = block.clip(box)
                with blaming(file):
                    labels = _labels(file.read_bytes(), self._decompress)
                    if labels.shape != block.shape:
                        raise ValueError(f"block of {labels.shape}, not {block.shape}")
                data[part.relative_to(box.start).slices] = labels[part.relative_to(block.start).slices]
        return data

    def occupied(self, box: Box) -> Iterator[Box]:
        """Yield the boxes of the stored blocks inside `box`."""
        found = []
        for file in self.folder.glob("*/*/*"):
            x, y, z = file.relative_to(self.folder).parts
            if x.isdecimal() and y.isdecimal() and z.isdecimal():
                found.append((int(z), int(y), int(x)))
        for position in sorted(found):
            part = self._box(position).clip(box)
            if part.size:
                yield part

    def _box(self, position: Vector) -> Box:
        z, y, x = (p * n for p, n in zip(position, self._block, strict=True))
        return Box.of(self._block).shift((z, y, x)).clip(self.box)


def _vector(xyz: list[int]) -> Vector:
    x, y, z = xyz
    return int(z), int(y), int(x)


def _decompressor(folder: Path, attributes: dict[str, Any]) -> Callable[[bytes], bytes]:
    compression = attributes.get("compression") or {"type": attributes.get("compressionType")}
    kind = compression.get("type")
    known: dict[str, Callable[[bytes], bytes]] = {
        "gzip": zlib.decompress if compression.get("useZlib") else gzip.decompress,
        "raw": bytes,
        "bzip2": bz2.decompress,
        "xz": lzma.decompress,
    }
    if kind not in known:
        raise DataError(f"{folder}: label multisets compressed with {kind}; convert them with gzip compression")
    return known[kind]


def _labels(block: bytes, decompress: Callable[[bytes], bytes]) -> NDArray[np.uint64]:
    """Return the most frequent label of each voxel of an N5 block, shape (z, y, x)."""
    mode, axes = struct.unpack_from(">HH", block)
    x, y, z = struct.unpack_from(f">{axes}I", block, 4)
    data = decompress(block[4 + 4 * axes + 4 * (mode == 1) :])
    voxels = prod((x, y, z))
    (stated,) = struct.unpack_from(">i", data)
    if stated == voxels:
        return np.frombuffer(data, ">u8", voxels, 4).astype(np.uint64).reshape(z, y, x)
    offsets = np.frombuffer(data, ">i4", voxels, 4 + 8 * stated)
    distinct, which = np.unique(offsets, return_inverse=True)
    entries = data[4 + 8 * stated + 4 * voxels :]
    frequent = np.array([_most_frequent(entries, int(at)) for at in distinct], np.uint64)
    return frequent[which].reshape(z, y, x)


def _most_frequent(entries: bytes, at: int) -> int:
    (count,) = struct.unpack_from("<i", entries, at)
    pairs = np.frombuffer(entries, [("id", "<u8"), ("count", "<i4")], count, at + 4)
    # of equally frequent labels the smallest
    return int(min(pairs["id"][pairs["count"] == pairs["count"].max()])) if count else 0
