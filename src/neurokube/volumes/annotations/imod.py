"""Models of IMOD: the closed contours of each object, filled in their sections.

The format is that of https://bio3d.colorado.edu/imod/doc/binspec.html: chunks with a name of four letters,
all numbers big-endian.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...words import counted
from ..files.reading import blaming
from ..volume import Nanometres
from .outlines import Outline, Ring, nest, open_outlines
from .painted import Painted, class_ids

MAGIC = b"IMOD"

_FLIPPED, _HAS_ORIGIN = 1 << 16 | 1 << 17, 1 << 14
_OBJECT_OPEN, _CONTOUR_OPEN = 1 << 3 | 1 << 9, 1 << 3
_NANOMETRES = {-3: 1e6, -6: 1e3, -9: 1.0, -10: 0.1}


@dataclass
class _Object:
    name: str
    is_open: bool
    contours: list[tuple[bool, Ring]] = field(default_factory=list)


def open_model(path: str, asked: Mapping[int, str] | None = None) -> Painted:
    """Open an IMOD model; the class of a contour is the name of its object.

    A contour inside another of its object is a hole.  Open contours, scattered points and contours that do not
    lie in one section are passed over.  A model drawn on a part of an image is moved to its place in the whole.

    Raises:
        DataError: where the file is damaged, or was drawn on an image turned about x.
    """
    with blaming(path):
        data = Path(path).expanduser().read_bytes()
        flags, pixel, units = _header(data)
        shift, objects = _chunks(data, flags)
    if flags & _FLIPPED:
        raise DataError(
            f"{path}: was saved with y and z exchanged; open it in 3dmod, undo Edit > Image > Flip, and save it again"
        )
    rings: dict[tuple[str, int], list[Ring]] = defaultdict(list)
    left = 0
    for item in objects:
        for is_open, points in item.contours:
            if is_open or item.is_open or len(points) < 3 or np.ptp(np.rint(points[:, 2])):
                left += 1
                continue
            corners = points + shift
            rings[item.name, round(float(corners[0, 2]))].append(corners[:, 1::-1])
    ids = class_ids(path, (name for name, _ in rings), asked)
    outlines: list[Outline] = [o for (name, z), found in rings.items() for o in nest(found, z, ids[name])]
    return open_outlines(
        path,
        f"IMOD model of {counted(len(objects), 'object')}",
        outlines,
        names={k: name for name, k in ids.items()},
        voxel_size=_pixel_size(pixel, units),
        remarks=(f"passed over, as open or not in one section: {counted(left, 'contour')}",) if left else (),
    )


def _header(data: bytes) -> tuple[int, float, int]:
    """Return the flags, the pixel size and the exponent of its unit in metres."""
    if data[:4] != MAGIC:
        raise ValueError("it does not start with IMOD")
    (flags,) = struct.unpack_from(">I", data, 8 + 144)
    pixel, units = struct.unpack_from(">fi", data, 8 + 208)
    return flags, pixel, units


def _pixel_size(pixel: float, units: int) -> Nanometres | None:
    """Return the pixel size; a model says nothing of the sections' thickness but for display."""
    size = pixel * _NANOMETRES.get(units, 0)
    return (float("nan"), size, size) if size > 0 else None


def _chunks(data: bytes, flags: int) -> tuple[Ring, list[_Object]]:
    """Return what moves points to the pixels of the whole image, (x, y, z), and the objects."""
    shift, objects = np.zeros(3), list[_Object]()
    for name, at in _walk(data):
        if name == b"OBJT":
            text = data[at : at + 64].split(b"\0")[0].decode("latin-1").strip()
            (kind,) = struct.unpack_from(">I", data, at + 132)
            objects.append(_Object(text or f"object {len(objects) + 1}", bool(kind & _OBJECT_OPEN)))
        elif name == b"CONT":
            count, kind = struct.unpack_from(">iI", data, at)
            points = np.frombuffer(data, ">f4", 3 * count, at + 16).reshape(-1, 3).astype(np.float64)
            objects[-1].contours.append((bool(kind & _CONTOUR_OPEN), points))
        elif name == b"MINX" and flags & _HAS_ORIGIN:
            values = np.frombuffer(data, ">f4", 18, at + 4).reshape(6, 3).astype(np.float64)
            origin, scale, current = values[1], values[3], values[4]
            shift = np.rint((origin - current) / scale)
    return shift, objects


def _walk(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the name of each chunk and where what follows its name starts; a truncated file raises."""
    at = 8 + 232
    while (name := data[at : at + 4]) != b"IEOF":
        if len(name) < 4:
            raise ValueError("it ends before its end mark")
        at += 4
        yield name, at
        if name == b"OBJT":
            at += 176
        elif name == b"CONT":
            at += 16 + 12 * struct.unpack_from(">i", data, at)[0]
        elif name == b"MESH":
            vertices, indices = struct.unpack_from(">ii", data, at)
            at += 16 + 12 * vertices + 4 * indices
        else:
            at += 4 + struct.unpack_from(">I", data, at)[0]
