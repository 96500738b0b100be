"""Gatan DigitalMicrograph's DM3 and DM4: read.

After the description by C. Boothroyd (https://www.microscopy.cen.dtu.dk/~cbb/info/dmformat/): a tree of tags, big
endian, whose values are in the byte order that the header names.
"""

import mmap
import struct
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import DataError
from ...words import counted
from ..volume import Nanometres
from .reading import Source, mapped, nanometres_of, placed, plausible, three_axes

SUFFIXES = (".dm3", ".dm4")
_MOST_TAGS, _MOST_DEPTH, _MOST_TEXT = 1 << 20, 64, 1 << 10
_GROUP, _VALUE = 20, 21
_STRUCT, _STRING, _ARRAY = 15, 18, 20
_KINDS = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "b", 9: "b", 10: "b", 11: "q", 12: "Q"}
"""The types of a value, as `struct` writes them."""
_PIXELS = {
    1: "int16",
    2: "float32",
    6: "uint8",
    7: "int32",
    9: "int8",
    10: "uint16",
    11: "uint32",
    12: "float64",
    14: "uint8",
    39: "int64",
    40: "uint64",
}
_NO_NUMBERS = {3: "complex", 5: "packed complex", 8: "RGB", 13: "complex", 23: "RGB"}


@dataclass
class _Image:
    """What the tags say of one image; lists are in the order x, y, z."""

    start: int = 0
    bytes: int = 0
    pixels: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)
    origins: dict[int, float] = field(default_factory=dict)
    units: dict[int, str] = field(default_factory=dict)


def open_dm(file: Path) -> Source:
    """Open the largest image of a DM3 or DM4 file; the preview that is stored beside it is passed over."""
    tags = _Tags(file)
    images = [image for _, image in sorted(tags.images.items()) if image.sizes and image.bytes]
    if not images:
        raise DataError(f"{file}: holds no image; restore it from the original")
    # the preview is in colours, and may be the larger one
    image = max(images, key=lambda i: (i.pixels in _PIXELS, i.bytes))
    if image.pixels not in _PIXELS:
        said = _NO_NUMBERS.get(image.pixels, f"type {image.pixels}")
        raise DataError(f"{file}: holds {said} values; only real numbers can be imported")
    dtype = np.dtype(_PIXELS[image.pixels]).newbyteorder(tags.order)
    sizes = [image.sizes[axis] for axis in sorted(image.sizes)]
    if len(sizes) == 2:
        sizes.append(1)
    shape = three_axes(file, tuple(reversed(sizes)))
    if prod(shape) * dtype.itemsize != image.bytes:
        raise DataError(
            f"{file}: its tags contradict each other on the size of the image; restore it from the original"
        )
    voxels = mapped(file, dtype, image.start, shape)
    size, offset, remarks = _geometry(image, shape[0])
    return Source(
        path=str(file),
        description=f"DM{tags.version} file of {counted(shape[0], 'section')}",
        shape=shape,
        dtype=dtype.newbyteorder("="),
        sections=lambda a, b: voxels[a:b],
        voxel_size=size,
        offset=offset,
        batch=16,
        remarks=remarks,
    )


def _geometry(image: _Image, sections: int) -> tuple[Nanometres | None, Nanometres | None, tuple[str, ...]]:
    units = [nanometres_of(image.units.get(axis, "")) for axis in range(3)]
    if not (units[0] and units[1]):
        return None, None, ("it is not calibrated in a unit of length",)
    scales = [abs(image.scales.get(axis, 0.0)) * unit for axis, unit in enumerate(units)]
    if not units[2]:
        return None, None, (f"its pixels are {scales[0]:g} x {scales[1]:g} nm and it says no thickness of a section",)
    # the origin is counted in pixels: where 0 is
    origin = [-image.origins.get(axis, 0.0) * scale for axis, scale in enumerate(scales)]
    return plausible(scales[::-1]), placed(origin[::-1]), ()


class _Tags:
    """The tags of a file that describe its images."""

    def __init__(self, file: Path) -> None:
        self.images: dict[int, _Image] = {}
        self._count = 0
        with file.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._data, self._at = data, 0
            self.version = self._take(">i")
            if self.version not in (3, 4):
                raise DataError(f"{file}: does not begin as a DM3 or DM4 file; restore it from the original")
            self._number = ">i" if self.version == 3 else ">q"
            self._take(self._number)  # the length of the file
            self.order: Literal["<", ">"] = "<" if self._take(">i") == 1 else ">"
            self._group(())
            del self._data

    def _take(self, kind: str) -> Any:
        size = struct.calcsize(kind)
        value = struct.unpack_from(kind, self._data, self._at)[0]
        self._at += size
        return value

    def _skip(self, count: int) -> None:
        if count < 0 or self._at + count > len(self._data):
            raise EOFError("a tag reaches beyond the file")
        self._at += count

    def _group(self, path: tuple[str, ...]) -> None:
        if len(path) > _MOST_DEPTH:
            raise ValueError("tags are nested too deeply")
        self._skip(2)  # whether it is sorted, and open
        for number in range(self._take(self._number)):
            self._count += 1
            if self._count > _MOST_TAGS:
                raise ValueError("there are too many tags")
            kind = self._take(">B")
            length = self._take(">H")
            name = self._data[self._at : self._at + length].decode("latin-1") or str(number)
            self._skip(length)
            if self.version == 4:
                self._take(">q")  # the bytes of the tag
            if kind == _GROUP:
                self._group((*path, name))
            elif kind == _VALUE:
                self._value((*path, name))
            else:
                raise ValueError(f"a tag is of the unknown kind {kind}")

    def _value(self, path: tuple[str, ...]) -> None:
        self._skip(4)  # %%%%
        count = self._take(self._number)
        if not 1 <= count <= 1 << 16:
            raise ValueError("a tag describes its value in no sensible way")
        info = [self._take(self._number) for _ in range(count)]
        start, size = self._at, self._size(info)
        self._skip(size)
        if path[0] == "ImageList" and len(path) > 3 and path[2] == "ImageData":
            self._note(path, info, start, size)

    def _size(self, info: list[int]) -> int:
        """Return the bytes of a value from what describes it."""
        kind = info[0]
        if kind in _KINDS:
            return struct.calcsize("=" + _KINDS[kind])
        if kind == _STRING:
            return 2 * info[1]
        if kind == _STRUCT:
            return sum(struct.calcsize("=" + _KINDS[t]) for t in info[4 : 4 + 2 * info[2] : 2])
        if kind == _ARRAY:
            return self._size(info[1:-1]) * info[-1]
        raise ValueError(f"a value is of the unknown type {kind}")

    def _note(self, path: tuple[str, ...], info: list[int], start: int, size: int) -> None:
        image = self.images.setdefault(int(path[1]), _Image())
        match path[3:]:
            case ("Data",):
                image.start, image.bytes = start, size
            case ("DataType",):
                image.pixels = int(self._scalar(info, start))
            case ("Dimensions", axis):
                image.sizes[int(axis)] = int(self._scalar(info, start))
            case ("Calibrations", "Dimension", axis, "Scale"):
                image.scales[int(axis)] = float(self._scalar(info, start))
            case ("Calibrations", "Dimension", axis, "Origin"):
                image.origins[int(axis)] = float(self._scalar(info, start))
            case ("Calibrations", "Dimension", axis, "Units") if size <= _MOST_TEXT:
                text = self._data[start : start + size]
                image.units[int(axis)] = text.decode("utf-16-le" if self.order == "<" else "utf-16-be")

    def _scalar(self, info: list[int], start: int) -> float:
        value = struct.unpack_from(self.order + _KINDS[info[0]], self._data, start)[0]
        if not isfinite(value):
            raise ValueError("a tag holds NaN or an infinite value")
        return float(value)
