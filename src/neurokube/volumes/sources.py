"""Sources: image stacks as microscopes and other tools leave them, read a few sections at a time.

A source is a folder of TIFF, PNG or JPEG slices, a multi-page TIFF, an HDF5 dataset, an MRC file or a .npy
file.  What can be known from headers is checked when a source is opened, before any work starts.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import gcd, isfinite, prod
from pathlib import Path
from types import ModuleType
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..blocks import Vector
from ..errors import DataError, NeuroKubeError, UsageError
from ..words import counted
from .volume import Nanometres

_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
_SLICES = (*_TIFF, ".png", *_JPEG)
_HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
_MRC = (".mrc", ".mrcs", ".rec", ".st", ".ali", ".map")
_KINDS = "a folder of TIFF, PNG or JPEG slices, a .tif, .h5, .mrc or .npy file"
_GRAY = "convert it to one gray channel first, in Fiji by Image > Type > 8-bit"


@dataclass(frozen=True)
class Source:
    """An open stack of sections; close it, or use it as a context manager.

    `shape` is (z, y, x) in voxels; `voxel_size` is (z, y, x) in nanometres where the file itself says it;
    `batch` is the number of sections that are best read together; `remarks` says what was passed over.
    """

    path: str
    description: str
    shape: Vector
    dtype: np.dtype[Any]
    sections: Callable[[int, int], NDArray[Any]]
    voxel_size: Nanometres | None = None
    batch: int = 1
    lossy: bool = False
    remarks: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.dtype.kind not in "biuf":
            raise DataError(f"{self.path}: holds {self.dtype} values; only real numbers can be imported")
        if min(self.shape) == 0:
            raise DataError(f"{self.path}: has no voxels, its shape (z, y, x) is {_by(self.shape)}; export it again")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the sections from `start` to `stop`, `stop` excluded, shape (z, y, x); safe in threads.

        Raises:
            DataError: where they are damaged; it names the slice.
        """
        with _blaming(f"{self.path}: sections {start} to {stop - 1}"):
            return np.ascontiguousarray(self.sections(start, stop), self.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(path: str, dataset: str | None = None, *, allow_gaps: bool = False) -> Source:
    """Open a stack of sections for reading.

    `dataset` names the dataset of an HDF5 file, as does `file.h5:path/to/dataset`; it may be left out where
    the file holds a single one of three axes.  Slices of a folder are taken in the order of their numbers,
    which may leave out some only with `allow_gaps`.

    Raises:
        DataError: where the input is missing, damaged, or cannot be a stack of gray sections.
        UsageError: where `dataset` is given for something other than HDF5.
    """
    if not Path(path).exists() and (match := re.fullmatch(rf"(.+(?:{'|'.join(_HDF5)})):(.+)", path)):
        if dataset is not None:
            raise UsageError(f"{path}: names a dataset, and so does --dataset {dataset}; give one of them")
        path, dataset = match.groups()
    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(f"{path}: no such file or folder; give the path of {_KINDS}")
    suffix = file.suffix.lower()
    if dataset is not None and suffix not in _HDF5:
        raise UsageError(f"{path}: --dataset {dataset} is for HDF5 files only; leave it out")
    with _blaming(path):
        if file.is_dir():
            return _open_folder(file, allow_gaps)
        if suffix in _TIFF:
            return _open_tiff(file)
        if suffix in _HDF5:
            return _open_hdf5(file, dataset)
        if suffix in _MRC:
            return _open_mrc(file)
        if suffix == ".npy":
            return _open_npy(file)
    raise DataError(f"{path}: not a kind of file that can be imported; give {_KINDS}")


@contextmanager
def _blaming(what: object) -> Iterator[None]:
    """Turn what a decoder says of a damaged file into one line that names it."""
    try:
        yield
    except (NeuroKubeError, MemoryError):
        raise
    except Exception as error:
        # decoders let out struct.error, zlib.error, SyntaxError, KeyError and more for damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{what}: cannot be read, it may be truncated ({reason}); restore it from the original"
        ) from None


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _three_axes(path: object, shape: tuple[int, ...]) -> Vector:
    if len(shape) != 3:
        raise DataError(f"{path}: has {len(shape)} axes ({_by(shape)}); save one gray stack with axes z, y, x")
    z, y, x = shape
    return int(z), int(y), int(x)


# Folders of slices


@dataclass(frozen=True)
class _Slice:
    """What the header of one slice says: its size (y, x) and type."""

    size: tuple[int, int]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{_by(self.size)} {self.dtype}"


def _open_folder(folder: Path, allow_gaps: bool) -> Source:
    files, remarks = _slices_of(folder)
    files = _in_order(folder, files)
    if (missing := _gap(files)) and not allow_gaps:
        raise DataError(f"{folder}: {missing}; restore what is missing, or close gaps up with --allow-gaps")
    if _section_numbers(files) is None:
        remarks.append("no number in the names counts the slices, a missing one could not be noticed")
    if missing:
        remarks.append(f"{missing}, the gap is closed up")
    first = _probe(files[0])
    for file in files[1:]:
        if (this := _probe(file)) != first:
            raise DataError(f"{file}: is {this} but {files[0].name} is {first}; export all slices alike")
    return Source(
        path=str(folder),
        description=f"{counted(len(files), f'{_kind(files[0])} slice')}, {files[0].name} to {files[-1].name}",
        shape=(len(files), *first.size),
        dtype=first.dtype,
        sections=partial(_read_slices, files, first),
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
    return "TIFF" if suffix in _TIFF else "JPEG" if suffix in _JPEG else "PNG"


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


def _probe(file: Path) -> _Slice:
    with _blaming(file):
        return _probe_tiff(file) if file.suffix.lower() in _TIFF else _probe_pillow(file)


def _probe_tiff(file: Path) -> _Slice:
    with _tifffile().TiffFile(file) as tif:
        if len(tif.pages) > 1:
            raise DataError(f"{file}: holds {len(tif.pages)} pages; import it as a file, or save one page a slice")
        page = tif.pages.first
        _check_page(file, page, tif.filehandle.size)
        return _Slice(page.shape, page.dtype.newbyteorder("="))


def _probe_pillow(file: Path) -> _Slice:
    with _pillow().open(file) as image:
        # a palette of grays is a way to save space; any other would need a decision of the user
        palette = image.getpalette("RGB") if image.mode == "P" else None
        if palette is not None and not (palette[::3] == palette[1::3] == palette[2::3]):
            raise DataError(f"{file}: has a palette of colours; {_GRAY}")
        modes = {
            "1": "bool",
            "L": "uint8",
            "P": "uint8",
            "I;16": "uint16",
            "I;16B": "uint16",
            "I": "int32",
            "F": "float32",
        }
        if image.mode not in modes:
            raise DataError(f"{file}: is {image.mode}, not gray; {_GRAY}")
        return _Slice((image.height, image.width), np.dtype(modes[image.mode]))


def _read_slices(files: list[Path], expected: _Slice, start: int, stop: int) -> NDArray[Any]:
    out = np.empty((stop - start, *expected.size), expected.dtype)
    for target, file in zip(out, files[start:stop], strict=True):
        with _blaming(file):
            data = _decode(file)
            if data.shape != expected.size or data.dtype.newbyteorder("=") != expected.dtype:
                raise DataError(f"{file}: has changed while it was imported; import again")
            target[...] = data
    return out


def _decode(file: Path) -> NDArray[Any]:
    if file.suffix.lower() not in _TIFF:
        return _decode_pillow(file, 0)
    with _tifffile().TiffFile(file) as tif:
        if _for_pillow(tif.pages.first):
            return _decode_pillow(file, 0)
        return np.asarray(tif.pages.first.asarray())


def _decode_pillow(file: Path, page: int) -> NDArray[Any]:
    with _pillow().open(file) as image:
        image.seek(page)
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
        raise DataError(f"{file}: has {max(page.samplesperpixel, page.ndim)} channels, as RGB images have; {_GRAY}")
    if page.photometric == _tifffile().PHOTOMETRIC.PALETTE and (np.ptp(page.colormap, axis=0) > 0).any():
        raise DataError(f"{file}: has a palette of colours; {_GRAY}")
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


def _open_tiff(file: Path) -> Source:
    tif = _tifffile().TiffFile(file)
    try:
        return _stack_of_pages(file, tif)
    except BaseException:
        tif.close()
        raise


def _page_shape(file: Path, tif: Any) -> Vector:
    """Return the shape (z, y, x) of all pages; one that differs from the first is refused."""
    first = tif.series[0]
    _check_page(file, first.keyframe, tif.filehandle.size)
    if "C" in first.axes:
        raise DataError(f"{file}: has {first.shape[first.axes.index('C')]} channels; {_GRAY}")
    if len(first.shape) > 2:
        _three_axes(file, first.shape)
    depth = 0
    for series in tif.series:  # pages written one by one are a series each
        page = series.keyframe
        if page.shape != first.keyframe.shape or page.dtype != first.keyframe.dtype:
            raise DataError(
                f"{file}: page {page.index} is {_by(page.shape)} {page.dtype} but page 0 is "
                f"{_by(first.keyframe.shape)} {first.keyframe.dtype}; save all pages alike"
            )
        depth += prod(series.shape[:-2])
    return _three_axes(file, (depth, *first.keyframe.shape))


def _stack_of_pages(file: Path, tif: Any) -> Source:
    first, size = tif.series[0], tif.filehandle.size
    shape = _page_shape(file, tif)
    whole = partial(
        Source,
        path=str(file),
        description=f"TIFF of {shape[0]} pages",
        shape=shape,
        dtype=first.dtype.newbyteorder("="),
        voxel_size=_tiff_size(tif),
    )
    if first.dataoffset is not None and len(tif.series) == 1:
        # uncompressed and in one piece, as Fiji writes it, with or without a page for each section
        data = np.memmap(file, first.dtype.newbyteorder(tif.byteorder), "r", first.dataoffset, shape)
        tif.close()
        return whole(sections=lambda a, b: data[a:b], batch=16)
    pages = [page for series in tif.series for page in series.pages]
    for page in pages:
        _check_whole(file, page, size)
    by_pillow = _for_pillow(first.keyframe)
    tif.filehandle.set_lock(True)

    def sections(start: int, stop: int) -> NDArray[Any]:
        numbers = range(start, stop)
        return np.stack([_decode_pillow(file, n) if by_pillow else pages[n].asarray() for n in numbers])

    return whole(sections=sections, close=tif.close)


_UNITS = {
    "nm": 1.0,
    "µm": 1e3,
    "um": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "Å": 0.1,
    "A": 0.1,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
}


def _tiff_size(tif: Any) -> Nanometres | None:
    """Return the voxel size that ImageJ or OME metadata give; a bare TIFF resolution is that of a printer."""
    if tif.is_ome:
        tree = ElementTree.fromstring(tif.ome_metadata)
        pixels = next((e for e in tree.iter() if e.tag.endswith("Pixels")), None)
        found = {} if pixels is None else pixels.attrib
        sizes = [
            float(found.get(f"PhysicalSize{axis}", 0)) * _UNITS.get(found.get(f"PhysicalSize{axis}Unit", "µm"), 0)
            for axis in "ZYX"
        ]
        return _plausible(sizes)
    if tif.is_imagej:
        metadata = tif.imagej_metadata
        unit = _UNITS.get(str(metadata.get("unit", "")).replace("\\u00B5", "µ").replace("μ", "µ"), 0)
        tags = tif.pages.first.tags
        per_unit = [tags[name].value if name in tags else (0, 1) for name in ("YResolution", "XResolution")]
        sizes = [float(metadata.get("spacing", 0)), *(float(n / d) if n else 0.0 for d, n in per_unit)]
        return _plausible([s * unit for s in sizes])
    return None


def _plausible(sizes: list[float]) -> Nanometres | None:
    if len(sizes) != 3 or not all(isfinite(s) and s > 0 for s in sizes):
        return None
    z, y, x = (float(f"{s:.6g}") for s in sizes)
    return z, y, x


# HDF5, MRC, NumPy


def _open_hdf5(file: Path, name: str | None) -> Source:
    import h5py

    h5 = h5py.File(file, "r")
    try:
        dataset = _dataset(file, h5, name)
        shape = _three_axes(f"{file}:{dataset.name}", dataset.shape)
        return Source(
            path=f"{file}:{dataset.name.lstrip('/')}",
            description=f"HDF5 dataset {dataset.name}",
            shape=shape,
            dtype=dataset.dtype.newbyteorder("="),
            sections=lambda a, b: dataset[a:b],
            voxel_size=_hdf5_size(dataset),
            batch=dataset.chunks[0] if dataset.chunks else 16,
            close=h5.close,
        )
    except BaseException:
        h5.close()
        raise


def _dataset(file: Path, h5: Any, name: str | None) -> Any:
    """Return the dataset of that name, or else the only one of three axes."""
    import h5py

    found: list[Any] = []
    h5.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    if name is not None:
        if name not in h5 or not isinstance(h5[name], h5py.Dataset):
            raise DataError(f"{file}: no dataset '{name}'; it holds {_listing(found)}")
        return h5[name]
    stacks = [item for item in found if len(item.shape) == 3]
    if len(stacks) != 1:
        raise DataError(f"{file}: choose a dataset of three axes with --dataset; it holds {_listing(found)}")
    return stacks[0]


def _listing(datasets: list[Any]) -> str:
    names = [f"{d.name.lstrip('/')} ({_by(d.shape)} {d.dtype})" for d in datasets]
    return ", ".join(names[:10]) + f" and {len(names) - 10} more" * (len(names) > 10) if names else "no datasets"


def _hdf5_size(dataset: Any) -> Nanometres | None:
    """Return the voxel size that attributes give, as CREMI (nm) and ilastik (micrometres) write it."""
    for name, unit in (("voxel_size_nm", 1.0), ("resolution", 1.0), ("element_size_um", 1e3)):
        if name in dataset.attrs:
            sizes = [float(s) * unit for s in np.ravel(dataset.attrs[name])]
            order = str(dataset.attrs.get("axes", "zyx")).lower()
            return _plausible(sizes[::-1] if order == "xyz" else sizes) if order in ("zyx", "xyz") else None
    return None


def _open_mrc(file: Path) -> Source:
    import mrcfile

    mrc = mrcfile.mmap(file, "r")
    data: NDArray[Any] = mrc.data
    shape = _three_axes(file, (1, *data.shape) if data.ndim == 2 else data.shape)
    dtype = data.dtype.newbyteorder("=")
    # IMOD's bytes are unsigned unless it says otherwise; the standard's are signed
    stamp, flags = np.frombuffer(mrc.header.extra2.tobytes(), mrc.header.nx.dtype, 2, offset=40)
    if data.dtype == np.int8 and stamp == _IMOD and not flags & 1:
        data, dtype = data.view(np.uint8), np.dtype(np.uint8)
    sizes = [float(mrc.voxel_size[axis]) / 10 for axis in ("z", "y", "x")]
    unset = all(s == 0.1 for s in np.round(sizes, 6))  # IMOD writes 1 Å where it does not know
    return Source(
        path=str(file),
        description=f"MRC file of {counted(shape[0], 'section')}",
        shape=shape,
        dtype=dtype,
        sections=lambda a, b: data.reshape(shape)[a:b],
        voxel_size=None if unset else _plausible(sizes),
        batch=16,
        close=mrc.close,
    )


_IMOD = 1146047817
"""The number by which IMOD marks the headers that it writes."""


def _open_npy(file: Path) -> Source:
    data = np.load(file, mmap_mode="r", allow_pickle=False)
    return Source(
        path=str(file),
        description="NumPy array",
        shape=_three_axes(file, data.shape),
        dtype=data.dtype.newbyteorder("="),
        sections=lambda a, b: data[a:b],
        batch=16,
    )
