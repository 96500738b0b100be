"""Folders of slices, written: TIFF, and the PNG sections that VAST imports.

What reads them is in `sources`.
"""

import colorsys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..volume import VolumeSpec
from .tiff import DTYPES, left_out
from .writing import Sections, Writer, batches, whole_folder, whole_slice

Save = Callable[[Path, NDArray[Any], VolumeSpec], None]


@contextmanager
def _slices(path: Path, spec: VolumeSpec, sections: Sections, token: str) -> Iterator[tuple[Path, Any]]:
    """Yield the folder and its sections (number, file stem, voxels)."""
    digits = max(4, len(str(spec.shape[0] - 1)))

    def each() -> Iterator[tuple[int, str, Callable[[], NDArray[Any]]]]:
        for start, stop in batches(spec):
            loaded: list[NDArray[Any]] = []

            def section(z: int, start: int = start, stop: int = stop, loaded: list[NDArray[Any]] = loaded) -> Any:
                if not loaded:  # a batch that is written already need not be read
                    loaded.append(sections(start, stop))
                return np.ascontiguousarray(loaded[0][z - start], spec.dtype)

            for z in range(start, stop):
                yield z, f"s{z:0{digits}d}", lambda z=z: section(z)  # type: ignore[misc]

    with whole_folder(path, spec, token) as work:
        yield work, each()


def _write_tiffs(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    with _slices(path, spec, sections, token) as (work, each):
        for _, stem, section in each:
            if not (work / f"{stem}.tif").exists():
                with whole_slice(work / f"{stem}.tif") as file:
                    _save_tiff(file, section(), spec)
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
    from PIL import Image

    segments = _Segments()
    with _slices(path, spec, sections, token) as (work, each):
        for z, stem, section in each:
            target = work / f"{stem}.png"
            if spec.kind == "labels":
                labels = section()
                segments.add(z, labels)
                pixels = np.stack([np.zeros(labels.shape, np.uint8), labels >> 8, labels & 255], -1).astype(np.uint8)
            elif not target.exists():
                pixels = section()
            if not target.exists():
                with whole_slice(target) as file:
                    Image.fromarray(pixels).save(file, "png", compress_level=1)
        if spec.kind == "labels":
            with whole_slice(work / "segments.txt") as file:
                file.write_text(segments.table(), encoding="ascii")
    size = " x ".join(f"{v:g}" for v in reversed(spec.voxel_size))
    return (f"PNG keeps no voxel size: tell VAST that a voxel is {size} nm (x, y, z)", *left_out(spec, "a PNG stack"))


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
