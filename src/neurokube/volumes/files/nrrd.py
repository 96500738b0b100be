"""NRRD, of 3D Slicer, ITK and Teem: raw or gzip data, attached or in a file beside (.nhdr); read and written."""

import gzip
import io
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...blocks import Vector
from ...errors import DataError
from ...words import counted
from ..volume import Nanometres, VolumeSpec
from .gzipped import Gzipped
from .reading import DEFLATE, Source, by, expandable, mapped, nanometres_of, placed, plausible, three_axes
from .writing import Sections, Writer, batches, whole_file

SUFFIXES = (".nrrd", ".nhdr")
_MOST_HEADER = 1 << 20
_TYPES = {
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
    "int64": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
Reading = tuple[Callable[[int, int], NDArray[Any]], Callable[[], None]]
"""What reads sections, and what closes the file."""

_RAW, _GZIP = ("raw",), ("gzip", "gz")


def open_nrrd(file: Path) -> Source:
    """Open a NRRD file of three axes, x fastest."""
    header, start = _read_header(file)
    shape = _shape(file, header)
    dtype = _dtype(file, header)
    data, start = _data_file(file, header, start)
    size, offset, remarks = _geometry(header)
    encoding = str(header.get("encoding", "")).lower()
    if encoding not in _RAW + _GZIP:
        raise DataError(f"{file}: is encoded as '{encoding}'; save it as raw or gzip")
    skip, lines = _number(header, "byte skip"), _number(header, "line skip")
    if skip < -1 or lines < 0 or (skip == -1 and encoding in _GZIP):
        raise DataError(f"{file}: skips {skip} bytes and {lines} lines of {encoding} data; correct its header")
    start = _after_lines(data, start, lines)
    sections, close = (_raw if encoding in _RAW else _gzip)(data, dtype, start, shape, skip)
    return Source(
        path=str(file),
        description=f"NRRD file of {counted(shape[0], 'section')}",
        shape=shape,
        dtype=dtype.newbyteorder("="),
        sections=sections,
        voxel_size=size,
        offset=offset,
        batch=16,
        remarks=remarks,
        close=close,
    )


def _raw(file: Path, dtype: np.dtype[Any], start: int, shape: Vector, skip: int) -> Reading:
    if skip == -1:  # the data is what the file ends in
        start, skip = file.stat().st_size - prod(shape) * dtype.itemsize, 0
    voxels = mapped(file, dtype, start + skip, shape)
    return (lambda a, b: voxels[a:b]), (lambda: None)


def _gzip(file: Path, dtype: np.dtype[Any], start: int, shape: Vector, skip: int) -> Reading:
    expandable(file, prod(shape) * dtype.itemsize, DEFLATE)
    stream = Gzipped(file, start)
    section = prod(shape[1:]) * dtype.itemsize

    def sections(first: int, last: int) -> NDArray[Any]:
        data = stream.read(skip + first * section, (last - first) * section)
        return np.frombuffer(data, dtype).reshape(last - first, *shape[1:])

    return sections, stream.close


def _after_lines(file: Path, start: int, lines: int) -> int:
    """Return the byte at which what follows some lines begins."""
    with file.open("rb") as raw:
        raw.seek(start)
        for _ in range(lines):
            if not raw.readline(_MOST_HEADER):
                break
        return raw.tell()


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the fields, and the byte at which the data begins."""
    import nrrd

    with file.open("rb") as raw:
        text = raw.read(_MOST_HEADER)
    stop = min((at + len(end) for end in (b"\n\n", b"\r\n\r\n") if (at := text.find(end)) >= 0), default=len(text))
    if not text.startswith(b"NRRD"):
        raise DataError(f"{file}: does not begin as a NRRD file; restore it from the original")
    if re.search(rb"^data ?file:\s*(LIST|.*%)", text[:stop], re.MULTILINE | re.IGNORECASE):
        raise DataError(f"{file}: its data is in several files; save it as one, as Slicer does, or import the slices")
    # the encoding is ASCII; other tools write µm as UTF-8
    return dict(nrrd.read_header(io.BytesIO(text[:stop].decode("utf-8", "replace").encode("ascii", "replace")))), stop


def _number(header: dict[str, Any], name: str) -> int:
    return int(header.get(name, header.get(name.replace(" ", ""), 0)))


def _shape(file: Path, header: dict[str, Any]) -> Vector:
    sizes = tuple(int(n) for n in np.ravel(header["sizes"]))
    shape = sizes[::-1]
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) == 4 and 1 in (shape[0], shape[-1]):
        raise DataError(f"{file}: has 4 axes ({by(sizes)}); save it without the one of a single channel")
    return three_axes(file, shape)


def _dtype(file: Path, header: dict[str, Any]) -> np.dtype[Any]:
    said = str(header.get("type", "")).lower()
    name = next((ours for ours, theirs in _TYPES.items() if said in theirs), None)
    if name is None:
        raise DataError(f"{file}: holds '{said}' values; only real numbers can be imported")
    dtype = np.dtype(name)
    endian = str(header.get("endian", "")).lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise DataError(f"{file}: does not say its byte order; add a line 'endian: little' (or big) to its header")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _data_file(file: Path, header: dict[str, Any], start: int) -> tuple[Path, int]:
    """Return the file that holds the data, and where it begins there."""
    name = header.get("data file", header.get("datafile"))
    if name is None:
        return file, start
    data = file.parent / str(name)
    if not data.is_file():
        raise DataError(f"{file}: its data file {name} is not there; put it beside the header")
    return data, 0


def _geometry(header: dict[str, Any]) -> tuple[Nanometres | None, Nanometres | None, tuple[str, ...]]:
    """Return voxel size and offset in nm (z, y, x), None where they are not known, and remarks."""
    vectors = header.get("space directions")
    if vectors is None:
        spacings = [float(s) for s in np.ravel(header.get("spacings", []))]
        units = _units(header, "units", len(spacings))
        if not spacings:
            return None, None, ()
        if not units:
            return None, None, ("it says spacings but no unit of length",)
        return plausible([s * u for s, u in zip(spacings, units, strict=True)][::-1], 12), None, ()
    remarks = []
    directions = np.asarray(vectors, float)
    if directions.shape != (3, 3):
        return None, None, (f"its space directions are not three of three axes ({by(directions.shape)}): passed over",)
    units = _units(header, "space units", 3)
    if not units:
        if header.get("space") is None:
            return None, None, ("it says space directions but no unit of length",)
        units = [1e6] * 3
        remarks.append(f"it names the space {header['space']} and no unit: taken for mm, as medical images are")
    sizes = np.linalg.norm(directions * units, axis=1)
    size = plausible([float(s) for s in sizes[::-1]], 12)
    if not np.allclose(directions * units, np.diag(sizes), atol=1e-3 * sizes.max(initial=0)):
        remarks.append(
            "its axes are turned or mirrored in space: voxels stay in the file's order, the origin is dropped"
        )
        return size, None, tuple(remarks)
    origin = [float(o) * u for o, u in zip(np.ravel(header.get("space origin", [])), units, strict=False)]
    return size, placed(origin[::-1], 12), tuple(remarks)


def _units(header: dict[str, Any], name: str, count: int) -> list[float]:
    """Return the nanometres of the unit of each axis; empty where one is not known."""
    said = header.get(name) or []
    units = [nanometres_of(str(unit).strip('"')) for unit in said]
    return units if len(units) == count and all(units) else []


def _write(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    order = np.dtype(spec.dtype).newbyteorder("<")
    with whole_file(path) as work, work.open("wb") as out:
        out.write(_header(spec))
        packed = gzip.GzipFile("", "wb", 1, out, mtime=0) if spec.kind == "labels" else None
        for start, stop in batches(spec):
            (packed or out).write(np.ascontiguousarray(sections(start, stop), order).data)
        if packed:
            packed.close()
    return ()


def _header(spec: VolumeSpec) -> bytes:
    z, y, x = spec.voxel_size
    lines = [
        "NRRD0004",
        "# written by NeuroKube",
        f"type: {spec.dtype if spec.dtype[0] in 'iu' else _TYPES[spec.dtype][0]}",
        "dimension: 3",
        "space dimension: 3",
        f"sizes: {' '.join(str(n) for n in reversed(spec.shape))}",
        f"space directions: ({x!r},0,0) (0,{y!r},0) (0,0,{z!r})",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if spec.kind == 'labels' else 'raw'}",
        'space units: "nm" "nm" "nm"',
        f"space origin: ({','.join(repr(float(o)) for o in reversed(spec.offset))})",
    ]
    return ("\n".join(lines) + "\n\n").encode()


_DTYPES = cast(tuple[str, ...], tuple(sorted(_TYPES, key=lambda name: np.dtype(name).itemsize)))
WRITER = Writer("nrrd", ".nrrd", _DTYPES, ("uint8", "uint16", "uint32", "uint64", "int32", "int64"), _write)
