"""MRC, as IMOD and the MRC2014 standard have it: read and written."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...words import counted
from ..volume import VolumeSpec
from .reading import Source, placed, plausible, three_axes
from .writing import Sections, Writer, batches, whole_file

SUFFIXES = (".mrc", ".mrcs", ".rec", ".st", ".ali", ".map")
_IMOD = 1146047817
"""The number by which IMOD marks the headers that it writes."""
_SIGNED, _STANDARD_ORIGIN = 1, 4
"""Flags of IMOD: bytes are signed; the origin's sign is that of the standard, not the opposite."""
_MODES = {"uint8": 0, "int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}


def open_mrc(file: Path) -> Source:
    """Open an MRC file; its first section is the lowest, its rows stay in the file's order."""
    import mrcfile

    mrc = mrcfile.mmap(file, "r")
    data: NDArray[Any] = mrc.data
    header = mrc.header
    shape = three_axes(file, (1, *data.shape) if data.ndim == 2 else data.shape)
    dtype = data.dtype.newbyteorder("=")
    # IMOD's bytes are unsigned unless it says otherwise; the standard's are signed
    stamp, flags = np.frombuffer(header.extra2.tobytes(), header.nx.dtype, 2, offset=40)
    ours = stamp == _IMOD
    if data.dtype == np.int8 and ours and not flags & _SIGNED:
        data, dtype = data.view(np.uint8), np.dtype(np.uint8)
    sizes = [float(mrc.voxel_size[axis]) / 10 for axis in ("z", "y", "x")]
    unset = all(s == 0.1 for s in np.round(sizes, 6))  # IMOD writes 1 Å where it does not know
    sign = -1 if ours and not flags & _STANDARD_ORIGIN and header.nversion <= 0 else 1
    origin = [sign * float(header.origin[axis]) / 10 for axis in ("z", "y", "x")]
    axes = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    return Source(
        path=str(file),
        description=f"MRC file of {counted(shape[0], 'section')}",
        shape=shape,
        dtype=dtype,
        sections=lambda a, b: data.reshape(shape)[a:b],
        voxel_size=None if unset else plausible(sizes),
        offset=placed(origin) if any(origin) and not unset else None,
        batch=16,
        remarks=_remarks(axes),
        close=mrc.close,
    )


def _remarks(axes: tuple[int, ...]) -> tuple[str, ...]:
    if axes in ((1, 2, 3), (0, 0, 0)):
        return ()
    return (f"its header names the axes {axes} and not (1, 2, 3): columns, rows and sections are taken as stored",)


def _write(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    statistics = _Statistics()
    with whole_file(path) as work, work.open("wb") as out:
        out.write(bytes(1024))
        for start, stop in batches(spec):
            data = np.ascontiguousarray(sections(start, stop), np.dtype(spec.dtype).newbyteorder("<"))
            statistics.add(data)
            out.write(data.data)
        out.seek(0)
        out.write(_header(spec, statistics))
    return ()


class _Statistics:
    """What the header says of the values: least, largest, mean and deviation."""

    def __init__(self) -> None:
        self.least, self.largest = np.inf, -np.inf
        self.total = self.squares = 0.0

    def add(self, data: NDArray[Any]) -> None:
        self.least, self.largest = min(self.least, float(data.min())), max(self.largest, float(data.max()))
        for section in data:
            values = section.astype(np.float64)
            self.total += float(values.sum())
            self.squares += float(np.square(values).sum())


def _header(spec: VolumeSpec, statistics: _Statistics) -> bytes:
    from mrcfile.dtypes import HEADER_DTYPE

    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    for axis, n, size, start in zip("zyx", spec.shape, spec.voxel_size, spec.offset, strict=True):
        header[f"n{axis}"] = header[f"m{axis}"] = n
        header["cella"][axis] = n * size * 10  # in Å
        header["origin"][axis] = start * 10
    for axis in ("alpha", "beta", "gamma"):
        header["cellb"][axis] = 90
    count = prod(spec.shape)
    mean = statistics.total / count
    header["mode"] = _MODES[spec.dtype]
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"] = 1
    header["dmin"], header["dmax"], header["dmean"] = statistics.least, statistics.largest, mean
    header["rms"] = np.sqrt(max(0.0, statistics.squares / count - mean**2))
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nversion"] = 20140
    flags = _STANDARD_ORIGIN | (_SIGNED if spec.dtype == "int8" else 0)
    header["extra2"] = bytes(40) + np.array([_IMOD, flags], "<i4").tobytes()
    header["nlabl"] = 1
    header["label"][0] = b"written by NeuroKube"
    return header.tobytes()


WRITER = Writer("mrc", ".mrc", tuple(_MODES), ("uint8", "uint16"), _write)
