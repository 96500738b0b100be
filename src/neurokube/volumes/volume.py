"""A volume: an array with axes, voxel size and offset, in several resolutions."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from ..blocks import Box, Vector
from ..errors import DataError, TryAgainError, surroundings
from .commit import is_there, is_whole, whole_objects, write_box
from .store import Store, context, faults, join, keeping, kvstore_spec

if TYPE_CHECKING:
    from .scratch import Scratch

Kind = Literal["image", "labels"]
Nanometres = tuple[float, float, float]


def nanometres(size: Nanometres) -> str:
    """Return a voxel size in words, as `40 x 8 x 8 nm`."""
    return " x ".join(f"{v:g}" for v in size) + " nm"


COARSE = 3.0
"""From this ratio of section thickness to pixel on, a volume counts as coarse in z."""


@dataclass(frozen=True)
class VolumeSpec:
    """What a volume is: all that can be known before it exists.

    `shape` is (z, y, x) in voxels; `channels` adds a leading axis; `voxel_size` and `offset` are
    (z, y, x) in nanometres; `kind` says whether values are intensities or labels.
    """

    shape: Vector
    dtype: str
    voxel_size: Nanometres
    offset: Nanometres = (0.0, 0.0, 0.0)
    kind: Kind = "image"
    channels: int | None = None

    @property
    def box(self) -> Box:
        """The box of all voxels."""
        return Box.of(self.shape)

    @property
    def is_coarse(self) -> bool:
        """Whether sections are so thick that they are better taken one by one."""
        z, y, x = self.voxel_size
        return z / min(y, x) >= COARSE

    @property
    def is_grey(self) -> bool:
        """Whether it is an 8-bit image without channels: grey values, or probabilities from 0 to 255."""
        return self.dtype == "uint8" and self.kind == "image" and self.channels is None

    def place(self, other: "VolumeSpec") -> tuple[Box, float]:
        """Return where another volume of these voxels lies, and the most voxels by which it is not on them.

        The box is in voxels of this volume, rounded; it may reach beyond it.
        """
        apart = np.subtract(other.offset, self.offset) / self.voxel_size
        z, y, x = np.rint(apart).astype(int).tolist()
        return other.box.shift((z, y, x)), float(np.abs(apart - (z, y, x)).max())

    def crop(self, box: Box) -> "VolumeSpec":
        """Return the description of a cut-out."""
        offset = tuple(o + s * v for o, s, v in zip(self.offset, box.start, self.voxel_size, strict=True))
        return replace(self, shape=box.shape, offset=cast(Nanometres, offset))


@dataclass(frozen=True)
class Volume:
    """An open volume; `arrays` holds its resolutions, the finest first.

    `voxel_sizes` are theirs, (z, y, x) in nm, as the metadata says; `format` is the driver that reads them,
    by the name that Neuroglancer has for it; `data` is where they lie, if not at `url`; `scratch` is what it is read
    and written by, see `scratch.staged`.

    What is absent from a store stands for zeros, and all is absent from a store that is gone: where `doubts` is None
    each read of nothing but zeros is followed by a look at the metadata; else each read with any zeros only notes its
    resolution there, and `confirm` looks, once for all of them, before what comes of these reads counts.
    """

    url: str
    spec: VolumeSpec
    arrays: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    voxel_sizes: tuple[Nanometres, ...] = ()
    format: str = "zarr3"
    data: str = ""
    scratch: "Scratch | None" = None
    doubts: set[int] | None = None
    lost: set[int] = field(default_factory=set, compare=False)
    """Resolutions that were gone: what is kept of them may be zeros that never were, and is read no more."""

    def read(self, box: Box, level: int = 0) -> NDArray[Any]:
        """Return the voxels of a box that lies inside the volume, shape ([c,] z, y, x).

        Raises:
            DataError: where stored data is damaged.
            TryAgainError: where the store fails, or the volume is gone.
        """
        if level in self.lost:
            raise self._gone()
        try:
            view, whole = self.arrays[level][(..., *box.slices)], False
            if self.scratch is None:
                voxels = cast(NDArray[Any], view.read().result())
            else:
                voxels, whole = self.scratch.read(view)
            if "://" in self.url and not whole:
                self._doubt(level, voxels)
            return voxels
        except ValueError as error:
            raise surroundings(error, self.url) or DataError(
                f"{self.url}: cannot read voxels {box}: {_brief(error)}; "
                "restore the file, or make the volume anew: of a run 'neurokube check RUN --repair' does"
            ) from None

    def _doubt(self, level: int, voxels: NDArray[Any]) -> None:
        if self.doubts is None:
            if not voxels.any():
                self._check_there(level)
        elif not voxels.all():
            # a part of it may have come before the store was gone, or out of a cache
            self.doubts.add(level)

    def confirm(self) -> None:
        """Check that what was read with zeros in it since the last time is still there.

        Raises:
            TryAgainError: where it is gone: nothing that was read since then counts.
        """
        for level in sorted(self.doubts or ()):
            self._check_there(level)
        if self.doubts:
            self.doubts.clear()

    def _check_there(self, level: int) -> None:
        try:
            array = self.arrays[level]
            # label multisets, which tensorstore does not read, are N5
            n5 = array.kvstore is None
            there = Store(self.url).read("attributes.json") is not None if n5 else is_there(array)
        except ValueError as error:
            if (fault := surroundings(error, self.url)) is not None:
                raise fault from None
            there = False
        if not there:
            self.lost.add(level)
            if self.scratch is not None:
                self.scratch.forget_absent()
            raise self._gone()

    def _gone(self) -> TryAgainError:
        return TryAgainError(
            f"{self.url}: its bucket or folder is gone, or can no longer be read, since it was opened; "
            "restore it and run again"
        )

    def write(self, box: Box, data: NDArray[Any], level: int = 0) -> None:
        """Write a box; durable when it returns, or with `scratch` when that says so.

        Write whole shards: others may write beside it.

        Raises:
            TryAgainError: where the disk is full or the store fails.
            ConfigurationError: for a part of a shard, on a store where that could lose what others write.
        """
        with faults(self.url):
            if self.scratch is None or not is_whole(self.arrays[level], box):
                write_box(self.url, self.arrays[level], box, data)
                return
            for key, value in whole_objects(self.arrays[level], box, data):
                self.scratch.write(len(value or b""), partial(self._begin, level, key, value))

    def _begin(self, level: int, key: bytes, value: bytes | None) -> Callable[[], None]:
        """Begin to write an object, and return what waits for it."""
        with faults(self.url):
            future = self.arrays[level].kvstore.write(key, value)

        def end() -> None:
            with faults(self.url):
                future.result()

        return end

    def level_shape(self, level: int) -> Vector:
        """Return the shape (z, y, x) of a resolution."""
        z, y, x = self.arrays[level].shape[-3:]
        return int(z), int(y), int(x)

    def crop(self, box: Box) -> "Volume":
        """Return a cut-out of the finest resolution; its voxels count from 0, its offset is moved.

        Raises:
            DataError: where the box is not inside the volume.
        """
        if not self.spec.box.contains(box):
            raise DataError(f"{self.url}: region {box} is not inside the volume {self.spec.box}; choose one that is")
        array = self.arrays[0][(..., *box.slices)]
        array = array[ts.d[:].translate_to[0]]
        return replace(self, spec=self.spec.crop(box), arrays=(array,), voxel_sizes=(self.spec.voxel_size,))

    def beneath(self, other: VolumeSpec) -> "Volume":
        """Return the cut-out that another volume covers; the volume itself where it does not in whole voxels."""
        box, beside = self.spec.place(other)
        alike = np.allclose(other.voxel_size, self.spec.voxel_size, rtol=1e-3, atol=0)
        if not alike or beside > 0.1 or not self.spec.box.contains(box):
            return self
        return self.crop(box)

    @property
    def fingerprint(self) -> str | None:
        """The digest of the content, where the writer left one."""
        return self.attributes.get("fingerprint")


def layout(spec: VolumeSpec) -> tuple[Vector, Vector]:
    """Return the (shard, chunk) shapes that suit a volume: near cubes in nanometres, chunks for viewers."""
    return ((16, 512, 512), (16, 128, 128)) if spec.is_coarse else ((128, 128, 128), (64, 64, 64))


def pyramid_factors(spec: VolumeSpec, smallest: int = 64) -> list[Vector]:
    """Return the cumulative downsampling (z, y, x) of each resolution, the finest, (1, 1, 1), first.

    The finer axes are halved until voxels are nearly isotropic, then all are, until the longest side is
    at most `smallest` voxels.
    """
    factors: list[Vector] = [(1, 1, 1)]
    while max(-(-n // f) for n, f in zip(spec.shape, factors[-1], strict=True)) > smallest:
        size = [v * f for v, f in zip(spec.voxel_size, factors[-1], strict=True)]
        # an axis joins in while it stays closest to the finest one: 40 x 8 x 8 halves y and x, then all
        step = [2 if s < 2 * min(size) else 1 for s in size]
        z, y, x = (f * s for f, s in zip(factors[-1], step, strict=True))
        factors.append((z, y, x))
    return factors


def create(
    url: str,
    spec: VolumeSpec,
    *,
    shard: Vector | None = None,
    chunk: Vector | None = None,
    factors: Sequence[Vector] = ((1, 1, 1),),
    attributes: Mapping[str, Any] | None = None,
    announce: bool = True,
    codec: Mapping[str, Any] | None = None,
) -> Volume:
    """Create an empty volume, one sharded Zarr v3 array a resolution, with OME-NGFF 0.5 metadata.

    `attributes` is kept under the key `neurokube` of the group; `codec` compresses instead of zstd.  A volume
    that is there already with the same metadata is opened; the group metadata is written last, and not at all
    without `announce`: until a second call writes it, nobody takes the arrays for a volume.
    """
    default_shard, default_chunk = layout(spec)
    shard, chunk = (
        shard or default_shard,
        chunk or (default_chunk if shard is None else _fitting(shard, default_chunk)),
    )
    lead = () if spec.channels is None else (spec.channels,)
    attributes = dict(attributes or {})
    arrays = []
    for level, factor in enumerate(factors):
        shape = tuple(-(-n // f) for n, f in zip(spec.shape, factor, strict=True))
        metadata = {
            "shape": [*lead, *shape],
            "data_type": np.dtype(spec.dtype).name,
            "dimension_names": [*("c" for _ in lead), "z", "y", "x"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*lead, *shard]}},
            "fill_value": 0,
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [*(1 for _ in lead), *chunk],
                        "codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            codec or _zstd(spec.dtype),
                            _CRC,
                        ],
                        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, _CRC],
                    },
                }
            ],
        }
        if np.dtype(spec.dtype).itemsize == 1:
            del metadata["codecs"][0]["configuration"]["codecs"][0]["configuration"]  # type: ignore[index]
        arrays.append(open_array(join(url, str(level)), metadata=metadata, create=True, open=True))
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"ome": ome_metadata(url, spec, factors), "neurokube": {"kind": spec.kind, **attributes}},
    }
    if announce:
        Store(url).write_json("zarr.json", group, indent=2)
    return Volume(url, spec, tuple(arrays), attributes, tuple(scaled(spec.voxel_size, factor) for factor in factors))


def scaled(size: Nanometres, factor: Vector) -> Nanometres:
    """Return the voxel size of a resolution that is coarser by `factor`."""
    z, y, x = (v * f for v, f in zip(size, factor, strict=True))
    return z, y, x


def coarser(spec: VolumeSpec, factor: Vector) -> VolumeSpec:
    """Return the description of a resolution that is coarser by `factor`; its offset is its first voxel's centre."""
    z, y, x = (-(-n // f) for n, f in zip(spec.shape, factor, strict=True))
    # a coarse voxel's centre lies half a coarse voxel minus half a fine one further in
    oz, oy, ox = (o + v * (f - 1) / 2 for o, v, f in zip(spec.offset, spec.voxel_size, factor, strict=True))
    return replace(spec, shape=(z, y, x), voxel_size=scaled(spec.voxel_size, factor), offset=(oz, oy, ox))


def exists(url: str) -> bool:
    """Whether there is Zarr metadata at `url`."""
    return Store(url).read("zarr.json") is not None


def open_volume(url: str, *, still: bool = False) -> Volume:
    """Open a volume: OME-NGFF 0.5, or what `chunked` reads; a `still` one stays as it is while it is open.

    What was read of a `still` volume is kept.

    Raises:
        DataError: where there is none, or its metadata says nothing that can be understood.
    """
    group = None if url.endswith(".xml") else Store(url).read_json("zarr.json")
    if group is None:
        from .chunked import open_chunked

        if (other := open_chunked(url, still=still)) is not None:
            return other
    if group is None and Store(url).read("run.json") is not None:
        raise DataError(f"{url}: a run, not a volume; name one in it, as {join(url, 'segmentation', 'segmentation')}")
    if group is None:
        raise DataError(f"{url}: {_no_volume(url)}")
    where = f"{url}/zarr.json"
    with _legible(where):
        ome, ours = group["attributes"]["ome"], dict(group["attributes"].get("neurokube") or {})
    return opened(url, where, ome, ours, "zarr3", still)


def opened(url: str, where: str, ome: Mapping[str, Any], ours: Mapping[str, Any], driver: str, still: bool) -> Volume:
    """Open the arrays that the OME-NGFF metadata of a group names."""
    found = _metadata(where, ome, ours)
    arrays = [open_array(join(url, path), driver, still=still, open=True) for path in found.paths]
    for path, array in zip(found.paths, arrays, strict=True):
        if array.rank != len(found.axes):
            raise DataError(
                f"{join(url, path)}: has {array.rank} axes, not the {len(found.axes)} that {where} names; "
                "correct one of them"
            )
    if found.axes[0] == "t":
        if arrays[0].shape[0] != 1:
            raise DataError(f"{url}: holds {arrays[0].shape[0]} points of time; save one of them as a volume")
        arrays = [array[0] for array in arrays]
    if "t" in found.axes and "c" in found.axes and arrays[0].shape[0] == 1:
        # Bio-Formats writes all five axes, whatever there is
        arrays = [array[0] for array in arrays]
    spec = VolumeSpec(**shaped(arrays[0]), voxel_size=found.voxel_sizes[0], offset=found.offset, kind=found.kind)
    return Volume(url, spec, tuple(arrays), ours, found.voxel_sizes, driver)


def shaped(array: Any) -> dict[str, Any]:
    """Return what an array of shape ([c,] z, y, x) says of a `VolumeSpec`: shape, dtype and channels."""
    *lead, z, y, x = array.shape
    return {
        "shape": (int(z), int(y), int(x)),
        "dtype": np.dtype(array.dtype.numpy_dtype).name,
        "channels": int(lead[0]) if lead else None,
    }


def _zstd(dtype: str) -> dict[str, Any]:
    # of 64-bit labels level 3 takes up to an eighth of the space of level 1, in a third of its time
    return {"name": "zstd", "configuration": {"level": 3 if np.dtype(dtype).itemsize == 8 else 1}}


_CHUNK_BYTES = 1 << 32
"""More than any chunk has that somebody meant to be read."""


def _check_sizes(where: str, array: Any) -> None:
    chunk = array.chunk_layout.read_chunk.shape
    if not all(array.shape):
        raise DataError(f"{where}: has no voxels (shape {array.shape}); correct its shape, or import the data anew")
    if math.prod(chunk) * array.dtype.numpy_dtype.itemsize > _CHUNK_BYTES:
        raise DataError(f"{where}: chunks of {chunk} are more than memory takes; correct their shape, or convert it")


_CRC = {"name": "crc32c"}
NANOMETRES = {"angstrom": 0.1, "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "meter": 1e9}


class _Metadata(NamedTuple):
    axes: list[str]
    voxel_sizes: tuple[Nanometres, ...]
    offset: Nanometres
    paths: list[str]
    kind: Kind


@contextmanager
def _legible(where: str) -> Iterator[None]:
    """Turn what metadata of another form leads to into one line."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else "it is malformed"
        raise DataError(
            f"{where}: no OME-NGFF multiscale metadata that can be read ({reason}); "
            "import the data with 'neurokube import' or correct the file"
        ) from None


def _metadata(where: str, ome: Mapping[str, Any], ours: Mapping[str, Any]) -> _Metadata:
    """Read the metadata of a group: the axes, the place of the finest resolution, the arrays' paths."""
    with _legible(where):
        scales = ome["multiscales"][0]
        axes = [axis["name"] for axis in scales["axes"]]
        units = [axis.get("unit", "nanometer") for axis in scales["axes"][-3:]]
        _check_axes(where, axes, units)
        # what stands for all resolutions comes after a resolution's own
        after = scales.get("coordinateTransformations") or []
        placed = [
            _placed(where, [*dataset["coordinateTransformations"], *after], len(axes)) for dataset in scales["datasets"]
        ]
        sizes = tuple(_nanometres(scale, units) for scale, _ in placed)
        offset = _nanometres(placed[0][1], units)
        paths = [str(dataset["path"]) for dataset in scales["datasets"]]
        kind = ours.get("kind", "labels" if "image-label" in ome else "image")
    if wrong := [size for size in sizes if not all(0 < s < math.inf for s in size)]:
        raise DataError(f"{where}: the voxel size is {wrong[0]} nm; correct the scale to lengths above 0")
    if kind not in get_args(Kind):
        raise DataError(f"{where}: neurokube.kind is {kind!r}; correct it to {' or '.join(get_args(Kind))}")
    return _Metadata(axes, sizes, offset, paths, kind)


def _nanometres(values: Sequence[float], units: Sequence[str]) -> Nanometres:
    z, y, x = (value * NANOMETRES[unit] for value, unit in zip(values[-3:], units, strict=True))
    return z, y, x


def _placed(where: str, transformations: Sequence[Any], axes: int) -> tuple[list[float], list[float]]:
    """Return the scale and the translation, for each axis, that transformations come to one after another."""
    scale, translation = [1.0] * axes, [0.0] * axes
    for entry in transformations:
        for kind, by in _parts(where, entry):
            scale = [s * b for s, b in zip(scale, by, strict=True)] if kind == "scale" else scale
            translation = [t * b if kind == "scale" else t + b for t, b in zip(translation, by, strict=True)]
    return scale, translation


def _parts(where: str, entry: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """Return a transformation as scales and translations, one after another; an affine can be one of both."""
    kind = entry["type"]
    if kind in ("scale", "translation"):
        return [(kind, [float(value) for value in entry[kind]])]
    if kind != "affine":
        raise ValueError(f"unknown transformation '{kind}'")
    rows = np.array(entry["affine"], float)
    linear = rows[:, :-1]
    if not np.array_equal(linear, np.diag(np.diag(linear))):
        raise DataError(
            f"{where}: its affine turns or shears the volume; take it out there, and write it as 'affine' of the "
            "workflow's input"
        )
    return [("scale", np.diag(linear).tolist()), ("translation", rows[:, -1].tolist())]


def _check_axes(where: str, axes: Sequence[str], units: Sequence[str]) -> None:
    if "".join(axes) not in ("zyx", "czyx", "tzyx", "tczyx"):
        raise DataError(
            f"{where}: axes are {', '.join(axes)}; they must be z, y, x or c, z, y, x: import the data anew"
        )
    if foreign := [unit for unit in units if unit not in NANOMETRES]:
        raise DataError(f"{where}: unknown unit '{foreign[0]}'; correct it to one of {', '.join(NANOMETRES)}")


def _fitting(shard: Vector, chunk: Vector) -> Vector:
    """Return the largest chunk, at most `chunk`, that divides the shard."""
    z, y, x = (next(k for k in range(min(c, s), 0, -1) if s % k == 0) for s, c in zip(shard, chunk, strict=True))
    return z, y, x


def open_array(url: str, driver: str = "zarr3", *, still: bool = False, **options: Any) -> Any:
    """Open an array with tensorstore.

    Raises:
        DataError: where it is missing or its metadata cannot be understood.
    """
    spec = {"driver": driver, "kvstore": kvstore_spec(url), **options}
    if still:
        # else every chunk that is kept is asked after again and again
        spec["recheck_cached_data"] = "open"
    try:
        with faults(url):
            array = _awaited(ts.open(spec, context=keeping() if still else context()), url)
    except ValueError as error:
        raise DataError(
            f"{url}: cannot open the array: {_brief(error)}; restore it, or remove the volume and make it anew"
        ) from None
    _check_sizes(url, array)
    return array


_ASKS_AFTER = 4.0
"""Seconds after which a store in which an array is opened is asked whether it is there at all."""


def _awaited(opening: Any, url: str) -> Any:
    """Wait for an array that is opened: in a bucket that is gone tensorstore would try to create one for ever."""
    while True:
        try:
            return opening.result(timeout=_ASKS_AFTER)
        except TimeoutError:
            if url.startswith(("s3://", "gs://")):
                Store(url).keys(".probe")


def _brief(error: Exception) -> str:
    """Return the part of a tensorstore message that a person can use, on one line."""
    message = re.split(r" \[\w+='", str(error))[0]
    return " ".join(re.sub(r"^[A-Z_]+: ", "", message).split())[:300]


def ome_metadata(url: str, spec: VolumeSpec, factors: Sequence[Vector]) -> dict[str, Any]:
    """Return the OME-NGFF 0.5 metadata of a volume."""
    lead = spec.channels is not None
    axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    datasets = []
    for level, factor in enumerate(factors):
        level_spec = coarser(spec, factor)
        scale, translation = [*level_spec.voxel_size], [*level_spec.offset]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * lead + scale},
                    {"type": "translation", "translation": [0.0] * lead + translation},
                ],
            }
        )
    multiscales = {
        "name": url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".partial").removesuffix(".zarr"),
        "axes": [{"name": "c", "type": "channel"}] * lead + axes,
        "datasets": datasets,
        "type": "mode" if spec.kind == "labels" else "mean",
    }
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscales]}
    if spec.kind == "labels":
        ome["image-label"] = {}
    return ome


def _no_volume(url: str) -> str:
    """Return why there is no volume at a URL, and what to do."""
    path = Path(url)
    if path.is_file():
        return f"a file, no volume; make one of it with 'neurokube import {url} {path.stem}.zarr'"
    if url.rstrip("/").endswith(".partial") or Path(f"{url.rstrip('/')}.partial").exists():
        return "no volume there yet: an import or export has not ended; give the same command again to go on"
    told = "no zarr.json, .zattrs, attributes.json or info"
    return f"no volume there ({told}); make one with 'neurokube import SOURCE DESTINATION'"
