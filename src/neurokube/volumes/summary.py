"""What a volume is and what it takes on its store: for people, and for programs."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .store import faults
from .volume import Volume

SAMPLE = 16
"""Objects whose size is looked up where a store does not list sizes."""


def describe(volume: Volume) -> dict[str, Any]:
    """Return what a volume is, and of each resolution its chunks, codecs, objects and bytes, as plain values.

    Lengths are in nanometres, axes (z, y, x) or (c, z, y, x).  `objects` and `bytes` are None on a web server, which
    lists nothing, and of label multisets.  Elsewhere than in a folder bytes are reckoned up from a sample of objects.
    """
    spec = volume.spec
    return {
        "volume": volume.url,
        "format": volume.format,
        "kind": spec.kind,
        "dtype": spec.dtype,
        "axes": ["z", "y", "x"] if spec.channels is None else ["c", "z", "y", "x"],
        "shape": list(spec.shape),
        "channels": spec.channels,
        "unit": "nanometer",
        "voxel_size": list(spec.voxel_size),
        "offset": list(spec.offset),
        "fingerprint": volume.fingerprint,
        "levels": [_level(volume, level) for level in range(len(volume.arrays))],
    }


def _level(volume: Volume, level: int) -> dict[str, Any]:
    array = volume.arrays[level]
    shape = volume.level_shape(level)
    factor = [-(-n // m) for n, m in zip(volume.spec.shape, shape, strict=True)]
    by_shape = [v * f for v, f in zip(volume.spec.voxel_size, factor, strict=True)]
    size = volume.voxel_sizes[level] if volume.voxel_sizes else by_shape
    raw = math.prod(array.shape) * np.dtype(volume.spec.dtype).itemsize
    keys = objects(volume, level)
    stored = None if keys is None else stored_bytes(volume, level, keys)
    return {
        "level": level,
        "shape": list(shape),
        "voxel_size": list(size),
        "shard": list(array.chunk_layout.write_chunk.shape[-3:]),
        "chunk": list(array.chunk_layout.read_chunk.shape[-3:]),
        "codecs": codecs(array),
        "raw_bytes": raw,
        "objects": None if keys is None else len(keys),
        "bytes": stored,
        "compression": round(raw / stored, 2) if stored else None,
    }


def objects(volume: Volume, level: int) -> list[str] | None:
    """Return the keys of what is stored of a resolution, below its array; None where the store lists nothing."""
    store = volume.arrays[level].kvstore
    if store is None:
        # of label multisets, which are decoded as they are read
        return None
    try:
        with faults(volume.url):
            found = sorted(key.decode(errors="replace") for key in store.list().result())
    except UsageError:
        return None
    # a precomputed volume keeps all its resolutions below one place
    scale = volume.arrays[level].spec().to_json().get("scale_metadata", {}).get("key")
    found = found if scale is None else [key for key in found if key.startswith(f"{scale}/")]
    return [key for key in found if key.rpartition("/")[2] not in _METADATA]


_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", "attributes.json", "info", "provenance")


def stored_bytes(volume: Volume, level: int, keys: list[str]) -> int:
    """Return the bytes of objects of a resolution; elsewhere than in a folder those of a sample, reckoned up."""
    store = volume.arrays[level].kvstore
    place = store.spec().to_json()
    if place["driver"] == "file":
        return sum(_size(Path(place["path"]) / key) for key in keys)
    sample = keys[:: max(1, len(keys) // SAMPLE)]
    with faults(volume.url):
        reads = [store.read(key) for key in sample]
        size = sum(len(read.result().value or b"") for read in reads)
    return round(size * len(keys) / max(1, len(sample)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # gone since it was listed
        return 0


def codecs(array: Any) -> str:
    """Return how chunks are stored, in words, as `zstd 1, crc32c`."""
    if array.kvstore is None:
        return "label multisets"
    if array.codec is None:
        return "raw"
    return ", ".join(_named(array.codec.to_json())) or "raw"


def has_checksums(array: Any) -> bool:
    """Whether each chunk carries a checksum, so that any flipped bit of it is found."""
    # gzip keeps one of its own, around the chunks of a shard too
    metadata = {} if array.kvstore is None else array.spec().to_json().get("scale_metadata", {})
    coding = (metadata.get("sharding") or {}).get("data_encoding", "")
    return any(name in f"{codecs(array)} {coding}" for name in ("crc32c", "gzip"))


def _named(codec: Any) -> Iterator[str]:
    """Yield the names of what compresses and checks, with their levels."""
    if isinstance(codec, list):
        for each in codec:
            yield from _named(each)
        return
    if not isinstance(codec, dict):
        return
    inner = codec.get("configuration", codec)
    name = codec.get("name") or codec.get("id") or codec.get("type") or codec.get("encoding")
    if name == "sharding_indexed" or "driver" in codec:
        parts = {k: v for k, v in inner.items() if k in ("codecs", "compressor", "compression", "encoding")}
        for part in parts.values():
            yield from [part] if isinstance(part, str) else _named(part)
    elif isinstance(name, str) and name not in ("bytes", "transpose"):
        level = inner.get("level", inner.get("clevel"))
        kind = inner.get("cname")
        yield " ".join(str(word) for word in (name, kind, level) if word is not None)
