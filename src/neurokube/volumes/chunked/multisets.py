"""Label multisets: N5 chunks that hold, for each voxel, labels and how often each occurs below it.

A chunk, as imglib2 writes it: the number of voxels (int32), for each the most frequent label (int64) and where
in bytes its entry begins (int32), all big-endian; then the entries, each a number of labels (int32) and as many
pairs of label (int64) and count (int32), little-endian.  Entries that several voxels share are written once.
The N5 header of such a chunk has mode 1, and says how many bytes there are.
"""

import gzip
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from ...blocks import Vector
from ..store import Store, join

_PAIR = np.dtype([("id", "<i8"), ("count", "<i4")])
INVALID = np.uint64(0xFFFFFFFFFFFFFFFE)
"""What imglib2 has for voxels that were never labelled."""


def serialized(multiset: Any) -> bytes:
    """Return the content of a chunk from a `LabelMultiset` of bioimage-cpp, its voxels in the order (z, y, x)."""
    sizes = multiset.entry_sizes.astype(np.int64)
    first = np.empty(len(sizes), np.int64)
    # all voxels of an entry begin at the same pair
    first[multiset.entry_offsets] = multiset.offsets
    begins = np.cumsum(4 + _PAIR.itemsize * sizes) - (4 + _PAIR.itemsize * sizes)
    which = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    source = first[which] + within
    pairs = np.empty(len(which), _PAIR)
    pairs["id"], pairs["count"] = multiset.ids[source].astype(np.int64), multiset.counts[source]
    data = np.empty(int(4 * len(sizes) + _PAIR.itemsize * len(which)), np.uint8)
    places = begins[which] + 4 + _PAIR.itemsize * within
    data[begins[:, None] + np.arange(4)] = sizes.astype("<i4").view(np.uint8).reshape(-1, 4)
    data[places[:, None] + np.arange(_PAIR.itemsize)] = pairs.view(np.uint8).reshape(-1, _PAIR.itemsize)
    return b"".join(
        (
            struct.pack(">i", multiset.n_spatial),
            multiset.argmax.astype(">i8").tobytes(),
            begins[multiset.entry_offsets].astype(">i4").tobytes(),
            data.tobytes(),
        )
    )


def deserialized(content: bytes) -> Any:
    """Return the `LabelMultiset` of a chunk; the inverse of `serialized`.

    Raises:
        ValueError: where the content is no multiset.
    """
    from bioimage_cpp.label_multiset import LabelMultiset

    count = _count(content)
    argmax = np.frombuffer(content, ">i8", count, 4)
    begins, entry = np.unique(np.frombuffer(content, ">i4", count, 4 + 8 * count), return_inverse=True)
    data = np.frombuffer(content, np.uint8, offset=4 + 12 * count)
    if count and (begins[0] < 0 or begins[-1] + 4 > len(data)):
        raise ValueError("an entry begins outside the chunk")
    sizes = data[begins[:, None] + np.arange(4)].view("<i4").ravel().astype(np.int64)
    if (sizes < 1).any() or (begins + 4 + _PAIR.itemsize * sizes > len(data)).any():
        raise ValueError("an entry ends outside the chunk")
    which = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes
    places = begins[which] + 4 + _PAIR.itemsize * (np.arange(len(which)) - np.repeat(starts, sizes))
    pairs = data[places[:, None] + np.arange(_PAIR.itemsize)].view(_PAIR).ravel()
    return LabelMultiset(
        argmax=argmax.astype(np.int64).view(np.uint64),
        offsets=starts[entry.ravel()].astype(np.uint64),
        entry_offsets=entry.ravel().astype(np.uint64),
        entry_sizes=sizes.astype(np.uint64),
        ids=pairs["id"].view(np.uint64) if pairs["id"].flags.c_contiguous else pairs["id"].astype(np.uint64),
        counts=pairs["count"].astype(np.uint32),
    )


def joined(parts: list[tuple[tuple[slice, slice, slice], Any]], shape: Vector) -> Any:
    """Return one multiset of shape (z, y, x) made of several, each with its place in it; together they fill it."""
    from bioimage_cpp.label_multiset import LabelMultiset

    argmax, offsets, entries = (np.empty(shape, np.uint64) for _ in range(3))
    pairs = entry_count = 0
    for place, part in parts:
        shape_here = argmax[place].shape
        argmax[place] = part.argmax.reshape(shape_here)
        offsets[place] = part.offsets.reshape(shape_here) + np.uint64(pairs)
        entries[place] = part.entry_offsets.reshape(shape_here) + np.uint64(entry_count)
        pairs, entry_count = pairs + len(part.ids), entry_count + part.n_entries
    sizes, ids, counts = (
        np.concatenate([getattr(part, name) for _, part in parts]) for name in ("entry_sizes", "ids", "counts")
    )
    return LabelMultiset(argmax.ravel(), offsets.ravel(), entries.ravel(), sizes, ids, counts)


def _count(content: bytes) -> int:
    count = int(struct.unpack_from(">i", content)[0]) if len(content) >= 4 else -1
    if count < 0 or len(content) < 4 + 12 * count:
        raise ValueError("it is shorter than its header says")
    return count


# Chunks


def encoded(content: bytes, shape: tuple[int, ...], codec: Mapping[str, Any], *, elements: int | None = None) -> bytes:
    """Return an N5 chunk of mode 1; `shape` is (x, y, z), `elements` counts them where they are not bytes."""
    header = struct.pack(f">HH{len(shape)}II", 1, len(shape), *shape, len(content) if elements is None else elements)
    if codec["type"] == "raw":
        return header + content
    return header + gzip.compress(content, codec["level"], mtime=0)


def decoded(chunk: bytes, codec: Mapping[str, Any]) -> tuple[tuple[int, ...], bytes]:
    """Return the shape (x, y, z) and the content of an N5 chunk of either mode.

    Raises:
        ValueError: where the chunk is damaged, or its codec unknown.
    """
    try:
        mode, rank = struct.unpack_from(">HH", chunk)
        shape = struct.unpack_from(f">{rank}I", chunk, 4)
    except struct.error:
        raise ValueError("it is shorter than its header") from None
    body = chunk[4 + 4 * rank + (4 if mode == 1 else 0) :]
    kind = codec.get("type")
    if kind == "raw":
        return shape, body
    if kind != "gzip":
        raise ValueError(f"label multisets are read where they are stored raw or with gzip, not with {kind}")
    try:
        return shape, zlib.decompress(body, 47)
    except zlib.error as error:
        raise ValueError(f"it is damaged ({error})") from None


def codec_of(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the codec that N5 attributes name, in their older form too."""
    found = attributes.get("compression", attributes.get("compressionType", "raw"))
    return found if isinstance(found, Mapping) else {"type": found}


def open_multisets(url: str, attributes: Mapping[str, Any]) -> Any:
    """Return an array, axes (z, y, x), of the most frequent label of each voxel of a multiset dataset."""
    store, codec = Store(url), codec_of(attributes)
    shape, block = (tuple(int(n) for n in attributes[key][::-1]) for key in ("dimensions", "blockSize"))

    def read(domain: ts.IndexDomain, into: NDArray[Any], _: Any) -> None:
        place = [int(a) // b for a, b in zip(domain.inclusive_min, block, strict=True)]
        key = "/".join(str(k) for k in place[::-1])
        chunk = store.read(key)
        if chunk is None:
            into[...] = 0
            return
        try:
            stored, content = decoded(chunk, codec)
            count = _count(content)
            labels = np.frombuffer(content, ">i8", count, 4).reshape(stored[::-1])
            labels = labels.astype(np.int64).view(np.uint64)
            starts = [int(a) - k * b for a, k, b in zip(domain.inclusive_min, place, block, strict=True)]
            part = labels[tuple(slice(a, a + n) for a, n in zip(starts, domain.shape, strict=True))]
            into[...] = np.where(part >= INVALID, 0, part)
        except ValueError as error:
            raise ValueError(f"{join(url, key)}: no label multiset, {error}") from None

    return ts.virtual_chunked(
        read,
        dtype=ts.uint64,
        shape=shape,
        chunk_layout=ts.ChunkLayout(read_chunk_shape=block, write_chunk_shape=block),
    )
