"""AmiraMesh and Avizo lattices (.am): read, raw, run-length coded or zlib-packed; written, labels run-length coded."""

import re
import threading
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...blocks import Vector
from ...errors import DataError
from ...words import counted
from ..volume import Nanometres, VolumeSpec
from .gzipped import Gzipped
from .reading import DEFLATE, Source, expandable, mapped, nanometres_of, placed, plausible
from .writing import Sections, Writer, batches, whole_file

SUFFIXES = (".am", ".amiramesh")
_MOST_HEADER = 1 << 22
_TYPES = {
    "byte": "uint8",
    "short": "int16",
    "ushort": "uint16",
    "int": "int32",
    "int32": "int32",
    "uint": "uint32",
    "float": "float32",
    "double": "float64",
}
_MOST_RUN = 127

Reading = tuple[Callable[[int, int], NDArray[Any]], Callable[[], None]]
"""What reads sections, and what closes the file."""


def open_amira(file: Path) -> Source:
    """Open the first field on the lattice of an AmiraMesh file, x fastest."""
    with file.open("rb") as raw:
        block = raw.read(_MOST_HEADER)
    mark = re.search(rb"\n@1[ \t]*\r?\n", block)
    text = block[: mark.start() if mark else 0].decode("latin-1")
    if mark is None or not re.match(r"#\s*(AmiraMesh|Avizo)", text):
        raise DataError(f"{file}: does not begin as an AmiraMesh file with data; restore it from the original")
    order = _byte_order(file, text.split("\n", 1)[0])
    shape = _shape(file, text)
    dtype, coding, length = _field(file, text, order)
    if (found := re.search(r'CoordType\s+"(\w+)"', text)) and found[1].lower() != "uniform":
        raise DataError(f"{file}: has {found[1]} coordinates; resample it to uniform ones in Amira first")
    size, offset, remarks = _geometry(text, shape)
    sections, close = _reading(file, dtype, coding, mark.end(), length, shape)
    return Source(
        path=str(file),
        description=f"AmiraMesh lattice of {counted(shape[0], 'section')}",
        shape=shape,
        dtype=dtype.newbyteorder("="),
        sections=sections,
        voxel_size=size,
        offset=offset,
        batch=16,
        remarks=remarks,
        close=close,
    )


def _byte_order(file: Path, first: str) -> Literal["<", ">"]:
    if "ASCII" in first:
        raise DataError(f"{file}: holds its voxels as text; save it as AmiraMesh binary")
    return "<" if "LITTLE-ENDIAN" in first else ">"


def _shape(file: Path, text: str) -> Vector:
    found = re.search(r"define\s+Lattice\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})", text)
    if not found:
        raise DataError(
            f"{file}: defines no lattice of three axes; save it from Amira as a uniform scalar or label field"
        )
    x, y, z = (int(n) for n in found.groups())
    return z, y, x


def _field(file: Path, text: str, order: Literal["<", ">"]) -> tuple[np.dtype[Any], str, int]:
    """Return the type of the field whose data comes first, its coding ("" for none) and the length of that."""
    found = re.search(r"Lattice\s*\{\s*(\w+)(\[\d+\])?\s+\w+\s*\}\s*=?\s*@1(?:\((\w+),(\d{1,18})\))?", text)
    if not found:
        raise DataError(f"{file}: has no field on the lattice; save it from Amira as a uniform scalar or label field")
    said, several, coding, length = found.groups()
    if several or said not in _TYPES:
        raise DataError(f"{file}: holds '{said}{several or ''}' values; only real numbers can be imported")
    dtype = np.dtype(_TYPES[said]).newbyteorder(order)
    if coding not in (None, "HxByteRLE", "HxZip") or (coding == "HxByteRLE" and dtype.itemsize > 1):
        raise DataError(f"{file}: is compressed as {coding} of {said}; save it without compression")
    return dtype, coding or "", int(length or 0)


def _geometry(text: str, shape: Vector) -> tuple[Nanometres | None, Nanometres | None, tuple[str, ...]]:
    number = r"([-+0-9.eE]+)"
    found = re.search(r"BoundingBox\s+" + r"\s+".join([number] * 6), text)
    unit = re.search(r'Coordinates\s+"([^"]*)"', text)
    if not found:
        return None, None, ()
    scale = nanometres_of(unit[1].encode("latin-1").decode("utf-8", "replace")) if unit else 0.0
    if not scale:
        said = f"an unknown unit ({unit[1]})" if unit and unit[1] else "no unit"
        return None, None, (f"its bounding box has {said}: voxel size and offset are not known",)
    numbers = [float(v) * scale for v in found.groups()]
    least, most = numbers[0::2][::-1], numbers[1::2][::-1]
    # the box reaches from the middle of the first voxel to that of the last
    sizes = [(b - a) / max(n - 1, 1) for a, b, n in zip(least, most, shape, strict=True)]
    return plausible(sizes, 9), placed(least, 12), ()


def _reading(file: Path, dtype: np.dtype[Any], coding: str, start: int, length: int, shape: Vector) -> Reading:
    section = prod(shape[1:]) * dtype.itemsize
    if not coding:
        voxels = mapped(file, dtype, start, shape)
        return (lambda a, b: voxels[a:b]), (lambda: None)
    packed = mapped(file, np.dtype(np.uint8), start, (1, 1, length)).ravel()
    expandable(file, section * shape[0], DEFLATE if coding == "HxZip" else _MOST_RUN / 2)
    stream = Gzipped(file, start) if coding == "HxZip" else _RunLength(packed, section)

    def sections(first: int, last: int) -> NDArray[Any]:
        data = stream.read(first * section, (last - first) * section)
        return np.frombuffer(data, dtype).reshape(last - first, *shape[1:])

    return sections, stream.close


class _RunLength:
    """The bytes of run-length coded data: pairs of a count and a byte, or 128 + n and n bytes; safe in threads.

    Where each section begins is kept as it is passed, so that any can be reached again.
    """

    def __init__(self, packed: NDArray[np.uint8], section: int) -> None:
        self._packed, self._section = packed, section
        self._lock = threading.Lock()
        self._starts = [(0, 0)]
        """Of each section: at which pair it begins, and how far in that."""

    def read(self, start: int, count: int) -> bytearray:
        """Return the bytes of whole sections."""
        first, last = start // self._section, (start + count) // self._section
        with self._lock:
            while len(self._starts) <= first:
                self._decode(len(self._starts) - 1)
            data = bytearray()
            for section in range(first, last):
                data += self._decode(section)
        return data

    def _decode(self, section: int) -> bytearray:
        at, skip = self._starts[section]
        out = bytearray()
        packed, need = self._packed, self._section + skip
        while len(out) < need:
            piece = packed[at : at + (1 << 16)].tobytes()
            used, size = 0, len(piece)
            while len(out) < need and used + 1 < size:
                count = piece[used]
                if count > _MOST_RUN:
                    count -= 128
                    if used + 1 + count > size:
                        break
                    run, length = piece[used + 1 : used + 1 + count], 1 + count
                else:
                    run, length = piece[used + 1 : used + 2] * count, 2
                if len(out) + count > need and len(self._starts) == section + 1:
                    self._starts.append((at + used, need - len(out)))
                out += run
                used += length
            if not used:
                raise EOFError("the run-length coded data ends too early")
            at += used
        if len(self._starts) == section + 1:
            self._starts.append((at, 0))
        return out[skip:need]

    def close(self) -> None:
        """Let go of the file."""
        self._packed = np.zeros(0, np.uint8)


def _write(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    order = np.dtype(spec.dtype).newbyteorder("<")
    coded = spec.kind == "labels" and spec.dtype == "uint8"
    room = _ROOM if coded else 0
    with whole_file(path) as work, work.open("wb") as out:
        head = _header(spec, "", 0)
        out.write(bytes(room) if room else head)
        most = 0
        for start, stop in batches(spec):
            data = np.ascontiguousarray(sections(start, stop), order)
            most = max(most, int(data.max())) if coded else 0
            out.write(_run_lengths(data) if coded else data.data)
        length = out.tell() - room
        out.write(b"\n")
        if coded:
            head = _header(spec, f"(HxByteRLE,{length})", most)
            marker = b"# Data section follows\n@1\n"
            body = head.removesuffix(marker)
            # the comment fills the room that was left for a header of unknown length
            filler = b"#" * (room - len(head) - 1) + b"\n"
            out.seek(0)
            out.write(body + filler + marker)
    return ()


_ROOM = 1 << 15


def _run_lengths(data: NDArray[Any]) -> bytes:
    flat = data.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    lengths = np.diff(ends, prepend=-1)
    pieces = -(-lengths // _MOST_RUN)
    coded = np.empty((int(pieces.sum()), 2), np.uint8)
    coded[:, 0] = _MOST_RUN
    coded[np.cumsum(pieces) - 1, 0] = lengths - (pieces - 1) * _MOST_RUN
    coded[:, 1] = np.repeat(flat[ends], pieces)
    return coded.tobytes()


def _header(spec: VolumeSpec, coding: str, labels: int) -> bytes:
    z, y, x = spec.shape
    name = next(theirs for theirs, ours in _TYPES.items() if ours == spec.dtype)
    box = " ".join(
        f"{o!r} {o + s * max(n - 1, 1)!r}"
        for o, s, n in zip(reversed(spec.offset), reversed(spec.voxel_size), reversed(spec.shape), strict=True)
    )
    # a label is the place of its material in this list
    names = ["Exterior", *(f"Label{k}" for k in range(1, labels + 1))]
    materials = ["    Materials {", *(f"        {n} {{ Id {k} }}" for k, n in enumerate(names)), "    }"]
    lines = [
        "# AmiraMesh BINARY-LITTLE-ENDIAN 2.1",
        "",
        f"define Lattice {x} {y} {z}",
        "",
        "Parameters {",
        *(materials if coding else []),
        '    Units { Coordinates "nm" }',
        f'    Content "{x}x{y}x{z} {name}, uniform coordinates",',
        f"    BoundingBox {box},",
        '    CoordType "uniform"',
        "}",
        "",
        f"Lattice {{ {name} {'Labels' if spec.kind == 'labels' else 'Data'} }} @1{coding}",
        "",
        "# Data section follows",
        "@1",
    ]
    return ("\n".join(lines) + "\n").encode()


WRITER = Writer(
    "amira", ".am", ("uint8", "uint16", "int16", "int32", "float32", "float64"), ("uint8", "uint16", "int32"), _write
)
