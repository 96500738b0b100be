"""OME-Zarr 0.5 (Zarr v3, sharded) and 0.4 (Zarr v2): axes (z, y, x) or (c, z, y, x), nanometres."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...blocks import Vector
from ...errors import DataError
from ..store import Store, join
from ..volume import Volume, VolumeSpec, coarser, create, layout, ome_metadata, open_array, opened
from .target import OPENED_BLIND, Options, Target

_CODECS_05: dict[str, int | None] = {"zstd": 1, "blosc": 5, "gzip": 5}
_CODECS: dict[str, int | None] = {"blosc": 5, "zstd": 1, "gzip": 5, "raw": None}


def make(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    """Begin an OME-Zarr 0.5 volume."""
    inner = None
    if options.compression is not None:
        inner = _codec_05(*options.codec(_CODECS_05), spec.dtype)
    volume = create(url, spec, factors=factors, attributes=options.attributes, announce=False, codec=inner)
    ome = ome_metadata(options.name, spec, factors)
    ours = {"kind": spec.kind, **options.attributes}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome, "neurokube": ours}}
    return Target(url, spec, factors, volume.arrays, {"zarr.json": group})


def _codec_05(name: str, level: int | None, dtype: str) -> dict[str, Any]:
    if name == "blosc":
        size = np.dtype(dtype).itemsize
        settings = {"cname": "zstd", "clevel": level, "shuffle": "shuffle" if size > 1 else "bitshuffle"}
        return {"name": "blosc", "configuration": settings | {"typesize": size, "blocksize": 0}}
    return {"name": name, "configuration": {"level": level}}


def make_04(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    """Begin an OME-Zarr 0.4 volume: Zarr v2, a file a chunk."""
    lead = [] if spec.channels is None else [spec.channels]
    name, level = options.codec(_CODECS)
    compressor = {
        "raw": None,
        "blosc": {"id": "blosc", "cname": "zstd", "clevel": level, "shuffle": 1, "blocksize": 0},
        "zstd": {"id": "zstd", "level": level},
        "gzip": {"id": "zlib", "level": level},
    }[name]
    chunk = [*(1 for _ in lead), *layout(spec)[1]]
    arrays, documents = [], {}
    for k, factor in enumerate(factors):
        metadata = {
            "zarr_format": 2,
            "shape": [*lead, *coarser(spec, factor).shape],
            "chunks": chunk,
            "dtype": np.dtype(spec.dtype).newbyteorder("<").str,
            "compressor": compressor,
            "fill_value": 0,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        arrays.append(open_array(join(url, str(k)), "zarr", metadata=metadata, **OPENED_BLIND))
        documents[f"{k}/.zarray"] = metadata
    ome = ome_metadata(options.name, spec, factors)
    multiscales = [{**scales, "version": "0.4"} for scales in ome["multiscales"]]
    label = {"image-label": {"version": "0.4"}} if "image-label" in ome else {}
    ours = {"neurokube": {"kind": spec.kind, **options.attributes}}
    documents |= {".zattrs": {"multiscales": multiscales, **label, **ours}, ".zgroup": {"zarr_format": 2}}
    return Target(url, spec, factors, arrays, documents)


def read(url: str, still: bool) -> Volume | None:
    """Open an OME-Zarr 0.4 volume; None where there is no Zarr v2 group."""
    store = Store(url)
    attributes = store.read_json(".zattrs")
    if store.read(".zarray") is not None:
        raise DataError(f"{url}: a Zarr array that says no voxel size; name the OME-Zarr group that it belongs to")
    if attributes is None:
        return None
    where = join(url, ".zattrs")
    if not isinstance(attributes, dict) or "multiscales" not in attributes:
        raise DataError(f"{where}: no multiscales, the group is no image; name an image in it, as {join(url, '0')}")
    ours = attributes.get("neurokube") or {}
    return opened(url, where, attributes, ours if isinstance(ours, dict) else {}, "zarr", still)
