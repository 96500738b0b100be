"""Sources: image stacks as microscopes and other tools leave them, read a few sections at a time.

A source is a folder of TIFF, PNG, JPEG or DM slices, a multi-page TIFF, or one of the `files`: an HDF5 dataset, a
NRRD, NIfTI, MRC, AmiraMesh, DM3, DM4 or .npy file.  What can be known from headers is checked when a source is
opened, before any work starts.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import gcd, prod
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..blocks import Vector
from ..errors import DataError, UsageError
from ..words import counted
from .files import amira, dm, hdf5, mrc, nifti, npy, nrrd
from .files.reading import GRAY, Source, blaming, by, nanometres_of, placed, plausible, three_axes
from .volume import Nanometres

__all__ = ["Source", "open_source"]

_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
_SLICES = (*_TIFF, ".png", *_JPEG, *dm.SUFFIXES)
_KINDS = "a folder of TIFF, PNG, JPEG or DM slices, a .tif, .h5, .nrrd, .nii, .mrc, .am, .dm3, .dm4 or .npy file"

_READERS: dict[str, Callable[[Path], Source]] = {
    **dict.fromkeys(mrc.SUFFIXES, mrc.open_mrc),
    **dict.fromkeys(nrrd.SUFFIXES, nrrd.open_nrrd),
    **dict.fromkeys(nifti.SUFFIXES, nifti.open_nifti),
    **dict.fromkeys(amira.SUFFIXES, amira.open_amira),
    **dict.fromkeys(dm.SUFFIXES, dm.open_dm),
    ".npy": npy.open_npy,
}
"""What reads a file of one stack, by the end of its name."""


def open_source(
    path: str,
    dataset: str | None = None,
    *,
    allow_gaps: bool = False,
    channel: int | None = None,
    labels: bool = False,
) -> Source:
    """Open a stack of sections for reading.

    `dataset` names the dataset of an HDF5 file, as does `file.h5:path/to/dataset`; it may be left out where
    the file holds a single one of three axes.  Slices of a folder are taken in the order of their numbers,
    which may leave out some only with `allow_gaps`.  `channel` is the one to read of a TIFF that has several.
    Of `labels` they may be PNG in colours as VAST writes them, red * 65536 + green * 256 + blue.

    Raises:
        DataError: where the input is missing, damaged, or cannot be a stack of gray sections.
        UsageError: where `dataset` is given for something other than HDF5, or `channel` for other than TIFF.
    """
    if not Path(path).exists() and (match := re.fullmatch(rf"(.+(?:{'|'.join(hdf5.SUFFIXES)})):(.+)", path)):
        if dataset is not None:
            raise UsageError(f"{path}: names a dataset, and so does --dataset {dataset}; give one of them")
        path, dataset = match.groups()
    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(f"{path}: no such file or folder; give the path of {_KINDS}")
    suffix = _suffix(file)
    if dataset is not None and suffix not in hdf5.SUFFIXES:
        raise UsageError(f"{path}: --dataset {dataset} is for HDF5 files only; leave it out")
    if channel is not None and (suffix not in _TIFF or file.is_dir()):
        raise UsageError(f"{path}: --channel {channel} is for a TIFF file of several channels only; leave it out")
    with blaming(path):
        if file.is_dir():
            return _open_folder(file, allow_gaps, labels)
        if suffix in _TIFF:
            return _open_tiff(file, channel)
        if suffix in hdf5.SUFFIXES:
            return hdf5.open_hdf5(file, dataset)
        if suffix in _READERS:
            return _READERS[suffix](file)
    raise DataError(f"{path}: not a kind of file that can be imported; give {_KINDS}")


def _suffix(file: Path) -> str:
    """Return the end of a file's name that says its kind, `.nii.gz` as a whole."""
    return "".join(file.suffixes[-2:] if file.suffix.lower() == ".gz" else file.suffixes[-1:]).lower()


# Folders of slices


@dataclass(frozen=True)
class _Slice:
    """What the header of one slice says: its size (y, x), type, whether colours stand for labels, and the voxel size.

    That is in nm, and not compared.
    """

    size: tuple[int, int]
    dtype: np.dtype[Any]
    voxel_size: Nanometres | None = field(default=None, compare=False)
    coloured: bool = False

    def __str__(self) -> str:
        return f"{by(self.size)} {self.dtype}"


def _open_folder(folder: Path, allow_gaps: bool, labels: bool) -> Source:
    files, remarks = _slices_of(folder)
    files = _in_order(folder, files)
    if (missing := _gap(files)) and not allow_gaps:
        raise DataError(f"{folder}: {missing}; restore what is missing, or close gaps up with --allow-gaps")
    if _section_numbers(files) is None:
        remarks.append("no number in the names counts the slices, a missing one could not be noticed")
    if missing:
        remarks.append(f"{missing}, the gap is closed up")
    first = _probe(files[0], labels)
    if first.coloured:
        remarks.append("colours are taken for labels, red * 65536 + green * 256 + blue, as VAST writes them")
    for file in files[1:]:
        if (this := _probe(file, labels)) != first:
            raise DataError(f"{file}: is {this} but {files[0].name} is {first}; export all slices alike")
    return Source(
        path=str(folder),
        description=f"{counted(len(files), f'{_kind(files[0])} slice')}, {files[0].name} to {files[-1].name}",
        shape=(len(files), *first.size),
        dtype=first.dtype,
        sections=partial(_read_slices, files, first),
        voxel_size=first.voxel_size,
        lossy=files[0].suffix.lower() in _JPEG,
        remarks=tuple(remarks),
    )


def _slices_of(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the slices of a folder in no order, all of one kind, and what was passed over."""
    visible = [f for f in folder.iterdir() if not f.name.startswith(".")]
    files = [f for f in visible if f.is_file() and f.suffix.lower() in _SLICES]
    if not files:
        raise DataError(f"{folder}: holds no {', '.join(_SLICES)} slices; give {_KINDS}")
    kinds = Counter(_kind(f) for f in files)
    if len(kinds) > 1:
        found = " and ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        raise DataError(f"{folder}: holds {found} slices, their order is not clear; move one kind to another folder")
    others = sorted(f.name for f in visible if f not in set(files))
    remark = f"{len(others)} other entries were passed over ({', '.join(others[:3])}{', ...' * (len(others) > 3)})"
    return files, [remark] if others else []


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    return "TIFF" if suffix in _TIFF else "JPEG" if suffix in _JPEG else "DM" if suffix in dm.SUFFIXES else "PNG"


def _parts(file: Path) -> tuple[list[str], list[int]]:
    """Return the texts of a name and the numbers between them."""
    pieces = re.split(r"(\d+)", file.stem)
    return pieces[::2], [int(n) for n in pieces[1::2]]


def _in_order(folder: Path, files: list[Path]) -> list[Path]:
    """Return slices in the order of their numbers: s2 before s10.

    Raises:
        DataError: where two have the same numbers, or the text of the names orders them otherwise.
    """

    def key(file: Path) -> list[str | int]:
        texts, numbers = _parts(file)
        return [piece for pair in zip(texts, [*numbers, 0], strict=True) for piece in pair]

    ordered = sorted(files, key=key)
    numbers = _section_numbers(ordered)
    for (one, other), (a, b) in zip(pairwise(ordered), pairwise(numbers or range(len(ordered))), strict=True):
        if key(one) == key(other) or b <= a:
            raise DataError(
                f"{folder}: the order of {one.name} and {other.name} is not clear; "
                "name the slices alike but for one number that counts them"
            )
    return ordered


def _section_numbers(files: list[Path]) -> list[int] | None:
    """Return the number in each name that counts the sections: the first that differs between all files."""
    columns = zip(*(_parts(file)[1] for file in files), strict=False)
    return next((list(column) for column in columns if len(set(column)) == len(files)), None)


def _gap(files: list[Path]) -> str | None:
    """Return what is missing first in a count of constant step, None where nothing is."""
    numbers = _section_numbers(files) or []
    step = gcd(*(b - a for a, b in pairwise(numbers)))
    for (one, other), (a, b) in zip(pairwise(files), pairwise(numbers), strict=False):
        if b - a > step:
            missing = f"slice {a + step}" if b - a == 2 * step else f"slices {a + step} to {b - step}"
            return f"{missing} missing between {one.name} and {other.name}"
    return None


def _probe(file: Path, labels: bool) -> _Slice:
    with blaming(file):
        if file.suffix.lower() in dm.SUFFIXES:
            return _probe_dm(file)
        return _probe_tiff(file) if file.suffix.lower() in _TIFF else _probe_pillow(file, labels)


def _probe_tiff(file: Path) -> _Slice:
    with _tifffile().TiffFile(file) as tif:
        if len(tif.pages) > 1:
            raise DataError(f"{file}: holds {len(tif.pages)} pages; import it as a file, or save one page a slice")
        page = tif.pages.first
        _check_page(file, page, tif.filehandle.size)
        return _Slice(page.shape, page.dtype.newbyteorder("="), _tiff_size(tif))


def _probe_dm(file: Path) -> _Slice:
    source = dm.open_dm(file)
    if source.shape[0] > 1:
        raise DataError(f"{file}: holds {source.shape[0]} sections; import it as a file, or save one section a slice")
    return _Slice(source.shape[1:], source.dtype, source.voxel_size)


def _probe_pillow(file: Path, labels: bool) -> _Slice:
    with _pillow().open(file) as image:
        # a palette of grays is a way to save space; any other would need a decision of the user
        palette = image.getpalette("RGB") if image.mode == "P" else None
        if palette is not None and not (palette[::3] == palette[1::3] == palette[2::3]):
            raise DataError(f"{file}: has a palette of colours; {GRAY}")
        modes = {
            "1": "bool",
            "L": "uint8",
            "P": "uint8",
            "I;16": "uint16",
            "I;16B": "uint16",
            "I": "int32",
            "F": "float32",
        }
        if image.mode == "RGB" and file.suffix.lower() == ".png":
            if labels:
                return _Slice((image.height, image.width), np.dtype("uint32"), coloured=True)
            raise DataError(f"{file}: is RGB, not gray; {GRAY}, or use --labels where colours are labels, as of VAST")
        if image.mode not in modes:
            raise DataError(f"{file}: is {image.mode}, not gray; {GRAY}")
        return _Slice((image.height, image.width), np.dtype(modes[image.mode]))


def _read_slices(files: list[Path], expected: _Slice, start: int, stop: int) -> NDArray[Any]:
    out = np.empty((stop - start, *expected.size), expected.dtype)
    for target, file in zip(out, files[start:stop], strict=True):
        with blaming(file):
            data = _decode(file)
            if data.shape != expected.size or data.dtype.newbyteorder("=") != expected.dtype:
                raise DataError(f"{file}: has changed while it was imported; import again")
            target[...] = data
    return out


def _decode(file: Path) -> NDArray[Any]:
    if file.suffix.lower() in dm.SUFFIXES:
        return np.asarray(dm.open_dm(file).read(0, 1)[0])
    if file.suffix.lower() not in _TIFF:
        return _decode_pillow(file, 0)
    with _tifffile().TiffFile(file) as tif:
        if _for_pillow(tif.pages.first):
            return _decode_pillow(file, 0)
        return np.asarray(tif.pages.first.asarray())


def _decode_pillow(file: Path, page: int) -> NDArray[Any]:
    with _pillow().open(file) as image:
        image.seek(page)
        if image.mode == "RGB":
            return np.asarray(image) @ np.array((1 << 16, 1 << 8, 1), np.uint32)
        return np.asarray(image.convert("L") if image.mode == "P" else image)


def _pillow() -> ModuleType:
    from PIL import Image

    # a section is larger than what Pillow takes for an attack
    Image.MAX_IMAGE_PIXELS = None
    return Image


# TIFF


def _tifffile() -> ModuleType:
    import tifffile

    # what it has to say of damaged files arrives as an exception
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def _check_page(file: Path, page: Any, size: int) -> None:
    """Refuse a page that is not gray or that the file, of `size` bytes, does not hold whole."""
    if page.ndim != 2 or page.samplesperpixel > 1:
        raise DataError(f"{file}: has {max(page.samplesperpixel, page.ndim)} channels, as RGB images have; {GRAY}")
    if page.photometric == _tifffile().PHOTOMETRIC.PALETTE and (np.ptp(page.colormap, axis=0) > 0).any():
        raise DataError(f"{file}: has a palette of colours; {GRAY}")
    _check_whole(file, page, size)


def _check_whole(file: Path, page: Any, size: int) -> None:
    if any(o + n > size for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise DataError(f"{file}: is truncated, page {page.index} ends beyond the file; restore it from the original")


def _for_pillow(page: Any) -> bool:
    """Whether a page has a palette, or is compressed as by LZW, which tifffile leaves to other packages."""
    try:
        decoder = _tifffile().TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        return True
    return not callable(decoder) or page.photometric == _tifffile().PHOTOMETRIC.PALETTE


def _open_tiff(file: Path, channel: int | None) -> Source:
    tif = _tifffile().TiffFile(file)
    try:
        return _stack_of_pages(file, tif, channel)
    except BaseException:
        tif.close()
        raise


def _of_channel(file: Path, first: Any, channel: int | None) -> list[int] | None:
    """Return the numbers of the pages of a channel, in the order of z; None where there are no channels."""
    if "C" not in first.axes:
        if channel:
            raise UsageError(f"{file}: --channel {channel}, but it has one channel; leave it out")
        return None
    axis = first.axes.index("C")
    count = first.shape[axis]
    if channel is None:
        raise DataError(f"{file}: has {count} channels; choose one with --channel 0 (to {count - 1}), or {GRAY}")
    if channel >= count:
        raise UsageError(f"{file}: --channel {channel}, but it has {count}, counted from 0; choose one of these")
    lead = first.shape[:-2]
    numbers = np.arange(prod(lead)).reshape(lead).take(channel, axis)
    if sum(n > 1 for n in numbers.shape) > 1:
        raise DataError(f"{file}: has axes {first.axes} ({by(first.shape)}); save one point of time")
    return [int(number) for number in numbers.ravel()]


def _page_shape(file: Path, tif: Any, numbers: list[int] | None) -> Vector:
    """Return the shape (z, y, x) of all pages, or of those of a channel; one that differs from the first is refused."""
    first = tif.series[0]
    if numbers is not None:
        return three_axes(file, (len(numbers), *first.keyframe.shape))
    if len(first.shape) > 2:
        three_axes(file, first.shape)
    depth = 0
    for series in tif.series:  # pages written one by one are a series each
        page = series.keyframe
        if page.shape != first.keyframe.shape or page.dtype != first.keyframe.dtype:
            raise DataError(
                f"{file}: page {page.index} is {by(page.shape)} {page.dtype} but page 0 is "
                f"{by(first.keyframe.shape)} {first.keyframe.dtype}; save all pages alike"
            )
        depth += prod(series.shape[:-2])
    return three_axes(file, (depth, *first.keyframe.shape))


def _stack_of_pages(file: Path, tif: Any, channel: int | None) -> Source:
    first, size = tif.series[0], tif.filehandle.size
    _check_page(file, first.keyframe, size)
    own = _of_channel(file, first, channel)
    shape = _page_shape(file, tif, own)
    whole = partial(
        Source,
        path=str(file),
        description=f"TIFF of {shape[0]} pages" + f", channel {channel}" * (own is not None),
        shape=shape,
        dtype=first.dtype.newbyteorder("="),
        voxel_size=_tiff_size(tif),
        offset=_imagej_offset(tif),
    )
    if first.dataoffset is not None and len(tif.series) == 1:
        # uncompressed and in one piece, as Fiji writes it, with or without a page for each section
        whole_shape = shape if own is None else (prod(first.shape[:-2]), *shape[1:])
        data = np.memmap(file, first.dtype.newbyteorder(tif.byteorder), "r", first.dataoffset, whole_shape)
        tif.close()
        return whole(sections=lambda a, b: data[a:b] if own is None else data[own[a:b]], batch=16)
    pages = [page for series in tif.series for page in series.pages]
    if own is not None:
        pages = [pages[number] for number in own]
    for page in pages:
        _check_whole(file, page, size)
    by_pillow = _for_pillow(first.keyframe)
    tif.filehandle.set_lock(True)

    def sections(start: int, stop: int) -> NDArray[Any]:
        numbers = range(start, stop)
        index = numbers if own is None else own[start:stop]
        if by_pillow:
            return np.stack([_decode_pillow(file, n) for n in index])
        return np.stack([pages[n].asarray() for n in numbers])

    return whole(sections=sections, close=tif.close)


def _tiff_size(tif: Any) -> Nanometres | None:
    """Return the voxel size that ImageJ or OME metadata give; a bare TIFF resolution is that of a printer."""
    if tif.is_ome:
        tree = ElementTree.fromstring(tif.ome_metadata)
        pixels = next((e for e in tree.iter() if e.tag.endswith("Pixels")), None)
        found = {} if pixels is None else pixels.attrib
        sizes = [
            float(found.get(f"PhysicalSize{axis}", 0)) * nanometres_of(found.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "ZYX"
        ]
        return plausible(sizes)
    if tif.is_imagej:
        metadata = tif.imagej_metadata
        unit = nanometres_of(str(metadata.get("unit", "")))
        tags = tif.pages.first.tags
        per_unit = [tags[name].value if name in tags else (0, 1) for name in ("YResolution", "XResolution")]
        sizes = [float(metadata.get("spacing", 0)), *(float(n / d) if n and d else 0.0 for d, n in per_unit)]
        return plausible([s * unit for s in sizes])
    return None


def _imagej_offset(tif: Any) -> Nanometres | None:
    """Return the place of the first voxel, which ImageJ's metadata give by the voxel that is at 0."""
    size = _tiff_size(tif) if tif.is_imagej else None
    if size is None:
        return None
    origin = [float(tif.imagej_metadata.get(f"{axis}origin", 0)) for axis in "zyx"]
    return placed([-o * s for o, s in zip(origin, size, strict=True)]) if any(origin) else None
