"""Neuroglancer precomputed: axes (x, y, z, channel), nanometres, shards; offsets in whole voxels.

All resolutions lie on one grid whose lines go through 0, so that the offset of each is a whole number of its
own voxels; the first voxel of a coarser one may cover fewer finer voxels than the others.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tensorstore as ts

from ...blocks import Vector
from ...errors import DataError
from ..store import Store, join
from ..volume import Nanometres, Volume, VolumeSpec, layout, nanometres, open_array, scaled, shaped
from .n5 import legible
from .target import OPENED_BLIND, Options, Target, near_cube, refuse_types, steps, turned, xyz

TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32")
_SHARD_BYTES = 1 << 24
_GZIP: dict[str, int | None] = {"gzip": None, "raw": None}


def make(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    """Begin a sharded volume: compressed segmentation for labels of 32 and 64 bits, raw voxels else, both gzipped."""
    refuse_types(spec, "precomputed", TYPES)
    start, remark = _start(spec)
    compressed = spec.kind == "labels" and spec.dtype in ("uint32", "uint64")
    codecs = {"compressed_segmentation": None, **_GZIP} if compressed else _GZIP
    encoding, _ = options.codec(codecs)
    scales, arrays, leads = [], [], []
    shape = spec.shape
    stop = tuple(a + n for a, n in zip(start, shape, strict=True))
    for factor, step in zip(factors, steps(factors), strict=True):
        z, y, x = (a // s for a, s in zip(start, step, strict=True))
        leads.append(tuple(a - b * s for a, b, s in zip(start, (z, y, x), step, strict=True)))
        start, stop = (z, y, x), tuple(-(-b // s) for b, s in zip(stop, step, strict=True))
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))  # type: ignore[assignment]
        size = scaled(spec.voxel_size, factor)
        scale: dict[str, Any] = {
            "key": "_".join(f"{v:g}" for v in xyz(size)),
            "size": xyz(shape),
            "voxel_offset": xyz(start),
            "resolution": xyz(size),
            "chunk_sizes": [xyz(layout(spec)[1])],
        }
        if encoding == "compressed_segmentation":
            scale |= {"encoding": encoding, "compressed_segmentation_block_size": [8, 8, 8]}
        else:
            scale |= {"encoding": "raw"}
        scale["sharding"] = _sharding(spec, tuple(scale["size"]), encoding != "raw")
        scales.append(scale)
        arrays.append(_for_writing(url, spec, scale))
    info = {**_multiscale(spec), "@type": "neuroglancer_multiscale_volume", "scales": scales}
    return Target(url, spec, factors, arrays, {"info": info}, leads, remark, at_once=True)  # type: ignore[arg-type]


def _start(spec: VolumeSpec) -> tuple[Vector, tuple[str, ...]]:
    """Return the offset in whole voxels (z, y, x), and what is lost by that."""
    exact = np.divide(spec.offset, spec.voxel_size)
    z, y, x = np.rint(exact).astype(int).tolist()
    if np.abs(exact - (z, y, x)).max() < 1e-3:
        return (z, y, x), ()
    kept: Nanometres = scaled(spec.voxel_size, (z, y, x))
    remark = f"precomputed has whole voxels of offset: {nanometres(spec.offset)} became {nanometres(kept)}"
    return (z, y, x), (remark,)


def _multiscale(spec: VolumeSpec) -> dict[str, Any]:
    kind = "segmentation" if spec.kind == "labels" else "image"
    return {"type": kind, "data_type": spec.dtype, "num_channels": spec.channels or 1}


def _sharding(spec: VolumeSpec, size: tuple[int, ...], gzipped: bool) -> dict[str, Any]:
    """Return the shards that suit a resolution: near cubes of some megabytes, as tensorstore cuts them."""
    itemsize = np.dtype(spec.dtype).itemsize * (spec.channels or 1)
    shard = near_cube(layout(spec)[1], itemsize, _SHARD_BYTES)
    found = dict(_cut(spec.dtype, spec.channels or 1, size, tuple(xyz(layout(spec)[1])), tuple(xyz(shard))))
    codec = "gzip" if gzipped else "raw"
    return found | {"data_encoding": codec, "minishard_index_encoding": "gzip"}


@lru_cache
def _cut(
    dtype: str, channels: int, size: tuple[int, ...], chunk: tuple[int, ...], shard: tuple[int, ...]
) -> tuple[tuple[str, Any], ...]:
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "memory"},
        "multiscale_metadata": {"type": "image", "data_type": dtype, "num_channels": channels},
        "scale_metadata": {"size": size, "resolution": [1, 1, 1], "encoding": "raw", "chunk_size": chunk},
        "schema": {"chunk_layout": {"write_chunk": {"shape_soft_constraint": [*shard, channels]}}},
    }
    opened = ts.open(spec, create=True, context=ts.Context()).result()
    sharding = opened.spec().to_json()["scale_metadata"].get("sharding")
    if sharding is None:
        # all of it is one chunk
        fixed = {"preshift_bits": 0, "hash": "identity", "minishard_bits": 0, "shard_bits": 0}
        sharding = {"@type": "neuroglancer_uint64_sharded_v1", **fixed}
    return tuple(sharding.items())


def _for_writing(url: str, spec: VolumeSpec, scale: dict[str, Any]) -> Any:
    metadata = {key: value for key, value in scale.items() if key != "chunk_sizes"}
    metadata["chunk_size"] = scale["chunk_sizes"][0]
    array = open_array(
        url,
        "neuroglancer_precomputed",
        multiscale_metadata=_multiscale(spec),
        scale_metadata=metadata,
        **OPENED_BLIND,
    )
    return _arranged(array, spec.channels)


def _arranged(array: Any, channels: int | None) -> Any:
    return turned(array if channels is not None else array[..., 0])


def read(url: str, still: bool) -> Volume | None:
    """Open a precomputed volume; None where there is no info file."""
    info = Store(url).read_json("info")
    if info is None:
        return None
    where = join(url, "info")
    with legible(where):
        if "scales" not in info:
            raise DataError(f"{where}: describes {info.get('@type', 'no volume')}; give the URL of a volume")
        channels = None if info["num_channels"] == 1 else int(info["num_channels"])
        arrays = [
            open_array(url, "neuroglancer_precomputed", still=still, scale_index=k, open=True)
            for k in range(len(info["scales"]))
        ]
        z, y, x = (float(v) for v in info["scales"][0]["resolution"][::-1])
        sizes = tuple(_three(scale["resolution"]) for scale in info["scales"])
        start = info["scales"][0].get("voxel_offset", [0, 0, 0])
        arranged = [_arranged(array, channels) for array in arrays]
        spec = VolumeSpec(
            **shaped(arranged[0]),
            voxel_size=sizes[0],
            offset=(start[2] * z, start[1] * y, start[0] * x),
            kind="labels" if info["type"] == "segmentation" else "image",
        )
    if not all(0 < v < float("inf") for size in sizes for v in size):
        raise DataError(f"{where}: a resolution is not above 0; correct it, in nm")
    return Volume(url, spec, tuple(arranged), {}, sizes, "neuroglancer-precomputed")


def _three(values: Sequence[float]) -> Nanometres:
    x, y, z = (float(value) for value in values)
    return z, y, x
