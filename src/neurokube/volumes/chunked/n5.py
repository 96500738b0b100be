"""N5: axes (x, y, z); voxel sizes by the conventions of n5-viewer, COSEM and Paintera, all of which are read.

What is written holds n5-viewer's `pixelResolution` and `downsamplingFactors`, and COSEM's `transform`, which
tells the offset too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorstore as ts

from ...blocks import Vector
from ...errors import DataError
from ..store import Store, join
from ..volume import Kind, Nanometres, Volume, VolumeSpec, coarser, layout, open_array, scaled, shaped
from .multisets import open_multisets
from .target import OPENED_BLIND, Options, Target, refuse_types, turned, xyz
from .units import converted, nanometres_of

TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
CODECS: dict[str, int | None] = {"gzip": 1, "zstd": 1, "blosc": 5, "xz": 6, "bzip2": 9, "raw": None}
VERSION = "4.0.0"


def make(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    """Begin a group of N5 datasets s0, s1, ..."""
    levels = datasets(url, spec, factors, options)
    documents = {f"s{k}/attributes.json": level.attributes for k, level in enumerate(levels)}
    documents["attributes.json"] = {
        **root(url),
        "pixelResolution": pixel_resolution(spec),
        "scales": [xyz(factor) for factor in factors],
        "multiscales": [
            {
                "name": options.name,
                "datasets": [
                    {"path": f"s{k}", "transform": level.attributes["transform"]} for k, level in enumerate(levels)
                ],
            }
        ],
        "neurokube": {"kind": spec.kind, **options.attributes},
    }
    return N5Target(url, spec, factors, [level.array for level in levels], documents)


class N5Target(Target):
    """A group of N5 datasets, in the container that its path names by the suffix .n5."""

    def finish(self) -> None:
        """Write the metadata, that of the container if it has none yet."""
        if (outer := container(self.url)) is not None:
            store = Store(outer)
            if "n5" not in (known := store.read_json("attributes.json") or {}):
                store.write_json("attributes.json", {"n5": VERSION, **known}, indent=2)
        super().finish()


def container(url: str) -> str | None:
    """Return the N5 container that a group lies in; None where the group is one itself, or lies in none."""
    parts = url.rstrip("/").split("/")
    ends = [k for k, part in enumerate(parts[:-1], start=1) if part.endswith(".n5")]
    return "/".join(parts[: ends[-1]]) if ends else None


def root(url: str) -> dict[str, Any]:
    """Return what marks a group as a container, where it lies in none."""
    return {} if container(url) else {"n5": VERSION}


@dataclass(frozen=True)
class Dataset:
    """One N5 array, open for writing, and the attributes that make it readable."""

    array: Any
    attributes: dict[str, Any]


def datasets(
    url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options, name: str = "s{}"
) -> list[Dataset]:
    """Begin the arrays of a volume, one a resolution."""
    refuse_types(spec, "N5", TYPES)
    lead = [] if spec.channels is None else [spec.channels]
    result = []
    for k, factor in enumerate(factors):
        level = coarser(spec, factor)
        stored = {
            "dimensions": xyz([*lead, *level.shape]),
            "blockSize": xyz([*(1 for _ in lead), *layout(spec)[1]]),
            "dataType": spec.dtype,
            "compression": compression(options),
        }
        array = open_array(join(url, name.format(k)), "n5", metadata=stored, **OPENED_BLIND)
        described = {
            "pixelResolution": pixel_resolution(spec),
            "downsamplingFactors": xyz(factor),
            "transform": cosem_transform(level),
        }
        result.append(Dataset(turned(array), stored | described))
    return result


def compression(options: Options) -> dict[str, Any]:
    """Return the N5 codec that is asked for; gzip, which every reader has, where none is."""
    name, level = options.codec(CODECS)
    known: dict[str, dict[str, Any]] = {
        "gzip": {"type": "gzip", "useZlib": False, "level": level},
        "zstd": {"type": "zstd", "level": level},
        "blosc": {"type": "blosc", "cname": "zstd", "clevel": level, "shuffle": 1},
        "xz": {"type": "xz", "preset": level},
        "bzip2": {"type": "bzip2", "blockSize": level},
        "raw": {"type": "raw"},
    }
    return known[name]


def pixel_resolution(spec: VolumeSpec) -> dict[str, Any]:
    """Return the voxel size of the finest resolution as n5-viewer has it."""
    return {"unit": "nm", "dimensions": xyz(spec.voxel_size)}


def cosem_transform(spec: VolumeSpec) -> dict[str, Any]:
    """Return where a resolution lies as COSEM has it: `translate` is the centre of its first voxel."""
    axes = {"axes": ["z", "y", "x"], "ordering": "C", "units": ["nm"] * 3}
    return axes | {"scale": list(spec.voxel_size), "translate": list(spec.offset)}


# Reading


def read(url: str, still: bool) -> Volume | None:
    """Open a dataset, or a group of datasets that are resolutions; None where there is no N5 metadata."""
    store = Store(url)
    group = store.read_json("attributes.json")
    if group is None and store.read("s0/attributes.json") is None:
        return None
    where = join(url, "attributes.json")
    with legible(where):
        group = dict(group or {})
        painted = group.get("painteraData")
        inner = {**group, **(store.read_json("data/attributes.json") or {})} if painted else group
        below = "data" if painted else ""
        paths = _paths(store, group, below, where)
        levels = [_level(store, path, inner, k, where) for k, path in enumerate(paths)]
        ours = group.get("neurokube") or {}
        multisets = bool(levels[0].attributes.get("isLabelMultiset", inner.get("isLabelMultiset")))
        arrays = [_array(join(url, level.path), level.attributes, inner, multisets, still) for level in levels]
        kind: Kind = "image"
        if multisets or (painted or {}).get("type") == "label":
            kind = "labels"
        elif str(arrays[0].dtype.name) in ("uint32", "uint64", "int64"):
            # no microscope has values of so many bits
            kind = "labels"
        kind = ours.get("kind", kind)
        spec = VolumeSpec(**shaped(arrays[0]), voxel_size=levels[0].size, offset=levels[0].offset, kind=kind)
    return Volume(url, spec, tuple(arrays), ours, tuple(level.size for level in levels), "n5")


@contextmanager
def legible(where: str) -> Iterator[None]:
    """Turn what metadata of another form leads to into one line."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else "it is malformed"
        raise DataError(f"{where}: metadata that cannot be read ({reason}); correct the file") from None


def _paths(store: Store, group: Mapping[str, Any], below: str, where: str) -> list[str]:
    """Return the paths of a volume's datasets, the finest first."""
    if "dimensions" in group:
        return [""]
    if "multiscales" in group and not below:
        return [str(dataset["path"]) for dataset in group["multiscales"][0]["datasets"]]
    paths: list[str] = []
    while store.read(join(path := join(below, f"s{len(paths)}").lstrip("/"), "attributes.json")) is not None:
        paths.append(path)
    if not paths:
        raise DataError(f"{where}: neither a dataset nor a group of s0, s1, ...; name one below {store.url}")
    return paths


@dataclass(frozen=True)
class _Level:
    path: str
    attributes: dict[str, Any]
    size: Nanometres
    offset: Nanometres


def _level(store: Store, path: str, group: Mapping[str, Any], k: int, where: str) -> _Level:
    own = store.read_json(join(path, "attributes.json").lstrip("/"))
    if own is None:
        raise DataError(f"{where}: names a dataset {path}, which is not there; restore it or correct the file")
    found = join(store.url, path, "attributes.json")
    size, offset = _placed(own, group, k, found)
    if not all(0 < v < float("inf") for v in size):
        raise DataError(f"{found}: the voxel size is {size} nm; correct it to lengths above 0")
    return _Level(path, own, size, offset)


def _placed(own: Mapping[str, Any], group: Mapping[str, Any], k: int, where: str) -> tuple[Nanometres, Nanometres]:
    """Return the voxel size and the offset of a resolution, by the first convention that it follows."""
    transform = own.get("transform") or _transform_of(group, k)
    if transform:
        by_name = dict(zip(transform["axes"], range(len(transform["axes"])), strict=True))
        order = [by_name[axis] for axis in "zyx"]
        units = [transform["units"][n] for n in order]
        scale, translate = ([transform[key][n] for n in order] for key in ("scale", "translate"))
        return converted(scale, units, where), converted(translate, units, where)
    factor = own.get("downsamplingFactors") or _factors_of(group, k)
    z, y, x = (int(f) for f in factor[:3][::-1])
    resolution = own.get("pixelResolution") or group.get("pixelResolution")
    offset: Sequence[float] = (0.0, 0.0, 0.0)
    if isinstance(resolution, Mapping):
        unit, size = nanometres_of(resolution.get("unit", "nm"), where), resolution["dimensions"]
    elif "resolution" in own or "resolution" in group:
        found = own if "resolution" in own else group
        units = found.get("units", found.get("unit", "nm"))
        unit, size = nanometres_of(units if isinstance(units, str) else units[0], where), found["resolution"]
        offset = found.get("offset", offset)
    else:
        raise DataError(f'{where}: says no voxel size; add it to the file in nm, as "resolution": [X, Y, Z]')
    finest = VolumeSpec((1, 1, 1), "uint8", _three(size, unit), _three(offset, unit))
    return scaled(finest.voxel_size, (z, y, x)), coarser(finest, (z, y, x)).offset


def _transform_of(group: Mapping[str, Any], k: int) -> Any:
    if "multiscales" not in group:
        return None
    dataset = group["multiscales"][0]["datasets"][k]
    return dataset.get("transform")


def _factors_of(group: Mapping[str, Any], k: int) -> Sequence[Any]:
    for key in ("scales", "downsamplingFactors"):
        factors = group.get(key)
        if factors and isinstance(factors[0], list | tuple):
            return list(factors[k])
    if k == 0:
        return (1, 1, 1)
    raise KeyError("downsamplingFactors")


def _three(values: Sequence[float], unit: float) -> Nanometres:
    x, y, z = (float(value) * unit for value in values[:3])
    return z, y, x


def _array(url: str, attributes: Mapping[str, Any], group: Mapping[str, Any], multisets: bool, still: bool) -> Any:
    if multisets:
        return open_multisets(url, attributes)
    array = open_array(url, "n5", still=still, open=True)
    axes = attributes.get("axes") or group.get("axes")
    if isinstance(axes, list) and len(axes) == array.rank and all(isinstance(axis, str) for axis in axes):
        names = [axis[0].lower() for axis in axes]
        spatial = [names.index(axis) for axis in "xyz"]
        array = array[ts.d[:].transpose[[*spatial, *(k for k in range(array.rank) if k not in spatial)]]]
    if array.rank == 5 and array.shape[4] == 1:
        array = array[..., 0]
    if array.rank not in (3, 4):
        raise DataError(f"{url}: has {array.rank} axes; a volume has x, y, z, or channels after them")
    return turned(array)
