"""Import of an annotation: what a person painted, on the grid of the image it was painted on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isclose, isnan
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box, Vector
from ...errors import DataError, UsageError
from ...progress import progress
from ...words import counted
from ..files.reading import Source, blaming
from ..importing import _destination, _Writing
from ..volume import Nanometres, Volume, VolumeSpec, open_volume
from .fiji import open_rois
from .imod import MAGIC, open_model
from .napari import open_shapes
from .painted import PIECE, Painted
from .paintera import is_n5, open_n5
from .stacks import open_stack
from .webknossos import PROPERTIES, is_webknossos, open_webknossos
from .zarrs import is_zarr, open_zarr


@dataclass(frozen=True)
class AnnotationReport:
    """What was imported: `region` is its place in voxels of the image, `offset` in nm, both (z, y, x).

    `voxels` counts those of each id, `names` maps ids to names where they have one, `sections` are those of the
    image in which something is painted, `fingerprint` digests the content, `remarks` says what was passed over.
    """

    description: str
    region: Box
    offset: Nanometres
    dtype: str
    voxels: dict[int, int]
    names: dict[int, str]
    sections: tuple[int, ...]
    fingerprint: str
    remarks: tuple[str, ...] = ()


def import_annotation(
    source: str,
    destination: str,
    *,
    image: str,
    offset: Vector | None = None,
    dataset: str | None = None,
    names: Mapping[int, str] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> AnnotationReport:
    """Import an annotation of `image`, an imported volume, as a volume of labels.

    Value 0 is 'not annotated', every other value an id: a background that is to count is painted as an id of its
    own.  The volume is a cut-out: the smallest box that holds everything painted, with the image's voxel size
    and its own offset in nm, so that some sections of a huge image stay small.  Ids are stored as uint8, uint32
    or uint64, whichever is the first to fit; the attribute `names` holds their names.

    `source` is one of
      - a label stack: a folder of slices, a TIFF (also of Fiji, or a Labels layer of napari), HDF5, MRC, .npy
      - a Zarr array or OME-Zarr image, a shapes layer of napari (.csv)
      - ROIs of Fiji (.roi, RoiSet.zip), a model of IMOD (.mod)
      - an N5 container of Paintera, an annotation or dataset of webKnossos (zip or folder, as Zarr or N5)

    `offset` (z, y, x) is the voxel of the image that voxel (0, 0, 0) of the annotation is; without it, it is
    the place that the source says, or else (0, 0, 0).  `dataset` chooses one of several inside the source.
    `names` gives names to ids; where the source names its classes itself, it gives ids to these.

    Raises:
        DataError: where the source is damaged, is no annotation, holds nothing, or does not fit the image.
        UsageError: where the options do not fit, or the destination exists.
        TryAgainError: where the disk is full or cannot be written.
    """
    volume = open_volume(image)
    with _open(source, dataset, names) as painted:
        _check_voxel_size(painted, volume)
        origin = _origin(painted, volume) if offset is None else offset
        _check_place(painted, volume, origin, offset)
        found = _Found(painted, volume, origin)
        found.look(quiet)
        spec = replace(volume.spec.crop(found.box), dtype=found.dtype, kind="labels", channels=None)
        shown = {k: name for k, name in sorted({**painted.names, **(names or {})}.items()) if k in found.voxels}
        attributes = {
            "names": {str(k): name for k, name in shown.items()},
            "annotation": {"image": image, "image_fingerprint": volume.fingerprint, "region": str(found.box)},
            "source": {"path": source, "description": painted.description},
        }
        fingerprint = _write(found, spec, source, destination, attributes, overwrite=overwrite, quiet=quiet)
        return AnnotationReport(
            description=painted.description,
            region=found.box,
            offset=spec.offset,
            dtype=spec.dtype,
            voxels=dict(sorted(found.voxels.items())),
            names=shown,
            sections=tuple(sorted(found.sections)),
            fingerprint=fingerprint,
            remarks=(*painted.remarks, *found.remarks),
        )


# What kind it is


def _open(source: str, dataset: str | None, names: Mapping[int, str] | None) -> Painted:
    file = Path(source).expanduser()
    if names and min(names) < 1:
        raise UsageError(f"name '{names[min(names)]}': its id is {min(names)}; 0 is 'not annotated', ids count from 1")
    if names and len(set(names.values())) < len(names):
        raise UsageError(f"names {', '.join(names.values())}: two ids have the same name; give each its own")
    if file.is_dir() and is_webknossos(file):
        return open_webknossos(source, dataset)
    if file.is_dir() and is_n5(file):
        return open_n5(source, dataset)
    if file.is_dir() and is_zarr(file):
        return open_zarr(source, dataset)
    if file.suffix.lower() == ".zip" and file.is_file():
        with blaming(source), ZipFile(file) as archive:
            entries = archive.namelist()
        if any(PROPERTIES in (entry, Path(entry).name) or entry.endswith(".nml") for entry in entries):
            return open_webknossos(source, dataset)
        if not any(entry.lower().endswith(".roi") for entry in entries):
            raise DataError(f"{source}: a zip of neither ImageJ ROIs nor webKnossos; unpack it and give what is inside")
    elif file.suffix.lower() == ".nml":
        raise DataError(f"{source}: holds no painted voxels; give the zip that webKnossos downloads with volume data")
    return _open_drawn(source, file, dataset, names)


def _open_drawn(source: str, file: Path, dataset: str | None, names: Mapping[int, str] | None) -> Painted:
    """Open outlines, or what is left: a stack."""
    suffix = file.suffix.lower()
    drawn = None
    if suffix in (".roi", ".zip") or (file.is_dir() and any(file.glob("*.roi"))):
        drawn = open_rois
    elif suffix == ".csv":
        drawn = open_shapes
    elif file.is_file() and _starts_with(file, MAGIC):
        drawn = open_model
    if drawn is None:
        return open_stack(source, dataset)
    if not file.exists():
        raise DataError(f"{source}: no such file; give the path of an annotation")
    if dataset is not None:
        raise UsageError(f"{source}: --dataset {dataset} is for sources that hold several; leave it out")
    return drawn(source, names)


def _starts_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as data:
        return data.read(len(magic)) == magic


# Where it belongs


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{v:g}" for v in values if not isnan(v))


def _check_voxel_size(painted: Painted, image: Volume) -> None:
    said, size = painted.voxel_size, image.spec.voxel_size
    if said is None or all(isnan(a) or isclose(a, b, rel_tol=0.01) for a, b in zip(said, size, strict=True)):
        return
    theirs = tuple(b for a, b in zip(said, size, strict=True) if not isnan(a))
    raise DataError(
        f"{painted.path}: has voxels of {_by(said)} nm, {image.url} of {_by(theirs)} nm; "
        "annotate the image at its own resolution, or correct the voxel size of one"
    )


def _origin(painted: Painted, image: Volume) -> Vector:
    """Return the voxel of the image at which voxel (0, 0, 0) of the annotation lies, by what the source says."""
    if painted.place is None:
        return 0, 0, 0
    spec = image.spec
    steps = [(p - o) / s for p, o, s in zip(painted.place, spec.offset, spec.voxel_size, strict=True)]
    if any(abs(step - round(step)) > 0.05 for step in steps):
        raise DataError(
            f"{painted.path}: starts at {_by(painted.place)} nm, between voxels of {image.url} ({_by(spec.offset)} nm, "
            f"voxels of {_by(spec.voxel_size)} nm); correct its offset, or give one in voxels with --at"
        )
    z, y, x = (round(step) for step in steps)
    return z, y, x


def _check_place(painted: Painted, image: Volume, origin: Vector, given: Vector | None) -> None:
    """Refuse what cannot lie in the image, before any voxel is read."""
    place, frame = painted.extent.shift(origin), image.spec.box
    told = given is not None or painted.place is not None
    if painted.fit == "stack" and not told and place.shape[1:] != frame.shape[1:]:
        raise DataError(
            f"{painted.path}: its sections are {_by(place.shape[1:])} voxels, those of {image.url} "
            f"{_by(frame.shape[1:])}; where they are a cut-out, give its first voxel with --at Z,Y,X"
        )
    if painted.step > 1 and place.shape[0] < frame.shape[0]:
        raise DataError(
            f"{painted.path}: its {place.shape[0]} slices are numbered in steps of {painted.step}, which cannot be "
            "neighbours; put empty slices between them, or import them one by one with --at Z,Y,X"
        )
    inside = {
        "stack": frame.contains(place),
        "paint": place.clip(frame).size > 0,
        "outlines": place.clip(frame).size > 0 and frame.start[0] <= place.start[0] and place.stop[0] <= frame.stop[0],
    }
    if not inside[painted.fit]:
        raise _outside(painted, place, image)


def _outside(painted: Painted, place: Box, image: Volume) -> DataError:
    return DataError(
        f"{painted.path}: lies at voxels {place}, outside {image.url} ({image.spec.box}); "
        "choose the image it was painted on, or its place in it with --at Z,Y,X"
    )


class _Found:
    """What is painted: looked at once, then read as the cut-out `box`, the voxels of the image that hold it all."""

    def __init__(self, painted: Painted, image: Volume, origin: Vector) -> None:
        self.painted, self.image, self.origin = painted, image, origin
        self.voxels: Counter[int] = Counter()
        self.sections: set[int] = set()
        self.box = Box.of((0, 0, 0))
        self.remarks: list[str] = []

    def look(self, quiet: bool) -> None:
        """Count ids and find their place.

        Raises:
            DataError: where nothing is painted, or something outside the image.
        """
        extent = self.painted.extent
        if self.painted.fit == "outlines":
            frame = self.image.spec.box.relative_to(self.origin)
            if not frame.contains(extent):
                self.remarks.append("what was drawn beyond the image was left out")
            extent = extent.clip(frame)
        with progress(quiet=quiet) as bars:
            bar = bars.add_task("look", total=extent.size, unit="voxels")
            for part in self.painted.occupied(extent):
                self._add(part, self.painted.ids(part))
                bars.update(bar, advance=part.size)
            bars.update(bar, completed=extent.size)
        if not self.box.size:
            raise DataError(f"{self.painted.path}: nothing is painted, all is 0; annotate it and save again")
        if not self.image.spec.box.contains(self.box):
            raise _outside(self.painted, self.box, self.image)
        if self.painted.fit == "stack" and extent.shape[0] < self.image.spec.shape[0]:
            self.remarks.append(
                f"{counted(extent.shape[0], 'section')} from section {self.origin[0]} of the image on (--at places it)"
            )

    def _add(self, part: Box, data: NDArray[Any]) -> None:
        painted = data != 0
        sides = [np.flatnonzero(painted.any(others)) for others in ((1, 2), (0, 2), (0, 1))]
        if not sides[0].size:
            return
        where = part.start
        (z, y, x), (dz, dy, dx) = ([int(side[k]) for side in sides] for k in (0, -1))
        box = Box((z, y, x), (dz + 1, dy + 1, dx + 1)).shift(where).shift(self.origin)
        self.box = _span(self.box, box) if self.box.size else box
        self.sections.update(int(k) + where[0] + self.origin[0] for k in sides[0])
        flat = data.reshape(-1)
        for at in range(0, flat.size, PIECE):
            self._count(flat[at : at + PIECE])

    def _count(self, data: NDArray[Any]) -> None:
        if data.dtype.itemsize == 1:
            counts = np.bincount(data)
            ids = np.flatnonzero(counts)
            counts = counts[ids]
        else:
            ids, counts = np.unique(data[data != 0], return_counts=True)
        self.voxels.update({k: n for k, n in zip(ids.tolist(), counts.tolist(), strict=True) if k})

    @property
    def dtype(self) -> str:
        """The type that is stored."""
        largest = max(self.voxels)
        return next(name for name in ("uint8", "uint32", "uint64") if largest <= np.iinfo(name).max)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return sections of the cut-out, shape (z, y, x)."""
        (z, *corner), far = self.box.start, self.box.stop
        box = Box((z + start, corner[0], corner[1]), (z + stop, far[1], far[2]))
        return self.painted.ids(box.relative_to(self.origin)).astype(self.dtype)


def _span(one: Box, other: Box) -> Box:
    """Return the smallest box that holds both."""
    return Box(
        tuple(map(min, one.start, other.start)),  # type: ignore[arg-type]
        tuple(map(max, one.stop, other.stop)),  # type: ignore[arg-type]
    )


def _write(
    found: _Found,
    spec: VolumeSpec,
    source: str,
    destination: str,
    attributes: Mapping[str, Any],
    *,
    overwrite: bool,
    quiet: bool,
) -> str:
    """Write the cut-out as a multiscale volume and return its fingerprint."""
    stack = Source(source, found.painted.description, spec.shape, np.dtype(spec.dtype), found.read, batch=16)
    with _destination(destination, source, spec, overwrite) as work:
        writing = _Writing(stack, lambda data, _: data, spec, work, 2)
        fingerprint = writing.run(quiet)
        writing.check()
        writing.announce({"fingerprint": fingerprint, **attributes})
    return fingerprint
