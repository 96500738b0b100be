"""TIFF of many pages, written: BigTIFF with OME metadata, and ImageJ's hyperstacks.

What reads them, and slices of any kind, is in `sources`.
"""

import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..volume import VolumeSpec
from .writing import Sections, Writer, batches, whole_file

_MOST_PAGED = (1 << 32) - (1 << 26)
"""Most bytes of pixels with which an ImageJ file has a directory for each page; a larger one has one only."""


def _pages(spec: VolumeSpec, sections: Sections) -> Iterator[NDArray[Any]]:
    for start, stop in batches(spec):
        data = np.asarray(sections(start, stop), spec.dtype)
        if spec.channels is not None:
            data = data.swapaxes(0, 1)  # ImageJ wants the channels of a section together
        yield from data.reshape(-1, *spec.shape[1:])


def _write_bigtiff(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    import tifffile

    metadata: dict[str, Any] = {"axes": "ZYX"}
    for axis, size in zip("ZYX", spec.voxel_size, strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "nm"}
    with whole_file(path) as work, tifffile.TiffWriter(work, bigtiff=True, ome=True) as tif:
        tif.write(
            _pages(spec, sections),
            shape=spec.shape,
            dtype=spec.dtype,
            photometric="minisblack",
            compression="zlib" if spec.kind == "labels" else None,
            compressionargs={"level": 1} if spec.kind == "labels" else None,
            rowsperstrip=_rows(spec) if spec.kind == "labels" else None,
            metadata=metadata,
        )
    return left_out(spec, "OME-TIFF")


def _rows(spec: VolumeSpec) -> int:
    """Return the rows that are compressed together, some 256 KB."""
    return max(1, min(spec.shape[1], (1 << 18) // (spec.shape[2] * np.dtype(spec.dtype).itemsize)))


def left_out(spec: VolumeSpec, format: str) -> tuple[str, ...]:
    """Return the remark on a volume's place in a format that has none."""
    if not any(spec.offset):
        return ()
    shown = ",".join(f"{o:g}" for o in spec.offset)
    return (f"{format} keeps no offset: give --offset {shown} when it is imported again",)


def _write_imagej(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    import tifffile

    z, y, x = spec.voxel_size
    channels = spec.channels or 1
    size = prod(spec.shape) * channels * np.dtype(spec.dtype).itemsize
    origin = [-o / s for o, s in zip(spec.offset, spec.voxel_size, strict=True)]  # ImageJ counts where 0 is, in voxels
    metadata = {
        "ImageJ": "1.54f",
        "axes": "TZCYXS",
        "unit": "nm",
        "spacing": z,
        "loop": False,
    } | {f"{axis}origin": value for axis, value in zip("zyx", origin, strict=True) if value}
    with whole_file(path) as work, tifffile.TiffWriter(work, imagej=True) as tif, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tif.write(
            _pages(spec, sections),
            shape=(1, spec.shape[0], channels, *spec.shape[1:], 1),
            dtype=spec.dtype,
            photometric="minisblack",
            resolution=(1 / x, 1 / y),
            metadata=metadata,
            truncate=size > _MOST_PAGED,
        )
    return ()


DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
WRITERS = (
    Writer("tiff", ".ome.tif", DTYPES, ("uint8", "uint16", "uint32", "int32"), _write_bigtiff),
    Writer(
        "imagej", ".tif", ("uint8", "uint16", "int16", "float32"), ("uint8", "uint16"), _write_imagej, channels=True
    ),
)
