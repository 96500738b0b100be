"""Folders of slices, written: TIFF, and the PNG sections that VAST imports.

What reads them is in `sources`.
"""

import colorsys
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..volume import VolumeSpec
from .tiff import DTYPES, left_out
from .writing import Sections, Writer, batches, whole_folder, whole_slice

Save = Callable[[Path, NDArray[Any], VolumeSpec], None]

_THREADS = min(4, os.cpu_count() or 1)


def _write(
    path: Path,
    spec: VolumeSpec,
    sections: Sections,
    token: str,
    save: Save,
    suffix: str,
    segments: "_Segments | None" = None,
) -> None:
    """Write a slice a section, numbered from 0; those that an earlier call left stay."""
    digits = max(4, len(str(spec.shape[0] - 1)))

    def write(file: Path, section: NDArray[Any]) -> None:
        if not file.exists():
            with whole_slice(file) as work:
                save(work, np.ascontiguousarray(section, spec.dtype), spec)

    with whole_folder(path, spec, token) as folder, ThreadPoolExecutor(_THREADS) as pool:
        for start, stop in batches(spec):
            files = [folder / f"s{z:0{digits}d}{suffix}" for z in range(start, stop)]
            if segments is None and all(file.exists() for file in files):
                continue
            data = sections(start, stop)
            if segments is not None:
                for z in range(start, stop):
                    segments.add(z, data[z - start])
            for _ in pool.map(write, files, data):
                pass
        if segments is not None:
            with whole_slice(folder / "segments.txt") as file:
                file.write_text(segments.table(), encoding="ascii")


def _write_tiffs(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    _write(path, spec, sections, token, _save_tiff, ".tif")
    return left_out(spec, "a TIFF stack")


def _save_tiff(file: Path, section: NDArray[Any], spec: VolumeSpec) -> None:
    import tifffile

    z, y, x = spec.voxel_size
    labels = spec.kind == "labels"
    with tifffile.TiffWriter(file, bigtiff=section.nbytes >= 1 << 31) as tif:
        tif.write(
            section,
            photometric="minisblack",
            compression="zlib" if labels else None,
            compressionargs={"level": 1} if labels else None,
            resolution=(1 / x, 1 / y),
            resolutionunit="NONE",
            # as ImageJ describes a slice of a calibrated stack
            description=f"ImageJ=1.54f\nunit=nm\nspacing={z!r}\nloop=false\n",
            metadata=None,
        )


def _write_vast(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    _write(path, spec, sections, token, _save_png, ".png", _Segments() if spec.kind == "labels" else None)
    size = " x ".join(f"{v:g}" for v in reversed(spec.voxel_size))
    return (f"PNG keeps no voxel size: tell VAST that a voxel is {size} nm (x, y, z)", *left_out(spec, "a PNG stack"))


def _save_png(file: Path, section: NDArray[Any], spec: VolumeSpec) -> None:
    """Write an image as grays, labels as red * 65536 + green * 256 + blue."""
    from PIL import Image

    if spec.kind == "labels":
        section = np.stack([np.zeros(section.shape, np.uint8), section >> 8, section & 255], -1).astype(np.uint8)
    # runs alone: as small as with deflate's search on micrographs, and several times as fast
    Image.fromarray(section).save(file, "png", compress_level=1, compress_type=zlib.Z_RLE)


class _Segments:
    """The box (x, y, z; least and largest) and one voxel of each segment."""

    def __init__(self) -> None:
        self._boxes: dict[int, tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int, int]]] = {}

    def add(self, z: int, labels: NDArray[Any]) -> None:
        """Count one section in."""
        from scipy.ndimage import find_objects

        for number, place in enumerate(find_objects(labels.astype(np.int32)), start=1):
            if place is None:
                continue
            rows, columns = place
            least = np.array((columns.start, rows.start, z))
            most = np.array((columns.stop - 1, rows.stop - 1, z))
            if number in self._boxes:
                low, high, anchor = self._boxes[number]
                self._boxes[number] = np.minimum(low, least), np.maximum(high, most), anchor
            else:
                column = columns.start + int((labels[rows.start, columns] == number).argmax())
                self._boxes[number] = least, most, (column, rows.start, z)

    def table(self) -> str:
        """Return the segments as VAST writes and reads them, all of them beside the background."""
        numbers = sorted(self._boxes)
        first = numbers[0] if numbers else 0
        lines = [
            "% VAST segment metadata, written by NeuroKube",
            "% Columns: Nr  flags  red1 green1 blue1 pattern1  red2 green2 blue2 pattern2  anchorx anchory anchorz  "
            "parentnr childnr prevnr nextnr   collapsednr   bboxx1 bboxy1 bboxz1 bboxx2 bboxy2 bboxz2   "
            '"name"',
            "",
            f'0   0    0 0 0 0   0 0 0 0   -1 -1 -1   0 0 0 {first}   0   -1 -1 -1 -1 -1 -1   "Background"',
        ]
        for k, number in enumerate(numbers):
            low, high, anchor = self._boxes[number]
            red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.8, 1))
            before = numbers[k - 1] if k else 0
            after = numbers[k + 1] if k + 1 < len(numbers) else 0
            lines.append(
                f"{number}   0    {red} {green} {blue} 0   {blue} {red} {green} 0   {_row(anchor)}   "
                f'0 0 {before} {after}   {number}   {_row(low)} {_row(high)}   "segment {number}"'
            )
        return "\n".join(lines) + "\n"


def _row(values: Any) -> str:
    return " ".join(str(int(v)) for v in values)


WRITERS = (
    Writer("tiff-stack", "", DTYPES, ("uint8", "uint16", "uint32", "int32"), _write_tiffs),
    Writer("vast", "", ("uint8",), ("uint8", "uint16"), _write_vast),
)
