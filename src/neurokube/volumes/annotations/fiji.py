"""ROIs of Fiji and ImageJ: a .roi file, a RoiSet.zip of the ROI Manager, or a folder of .roi files."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from ...errors import DataError
from ...words import counted
from ..files.reading import blaming
from .outlines import Outline, Ring, ellipse, open_outlines
from .painted import Painted, class_ids

_OPEN = ("LINE", "FREELINE", "POLYLINE", "NOROI", "ANGLE", "POINT")


def open_rois(path: str, asked: Mapping[int, str] | None = None) -> Painted:
    """Open ImageJ ROIs: polygons, freehand, traced, rectangles, ovals and composites, each in its slice.

    The class of an ROI is its name up to the first '-' and without the number at its end (`mito-3`, `mito 12`
    and `mito` are all `mito`); one whose name says none is of class `group N`, or `roi` where it has no group.

    Raises:
        DataError: where an ROI is damaged, or does not say which slice it is in.
    """
    rois = [(name, roi) for name, roi in _rois(Path(path).expanduser())]
    closed = [(name, roi) for name, roi in rois if roi.roitype.name not in _OPEN]
    ids = class_ids(path, (_class_name(name, roi) for name, roi in closed), asked)
    outlines = [
        Outline(_section(path, name, roi), _rings(path, name, roi), ids[_class_name(name, roi)]) for name, roi in closed
    ]
    left = len(rois) - len(closed)
    return open_outlines(
        path,
        counted(len(closed), "ImageJ ROI"),
        outlines,
        names={k: name for name, k in ids.items()},
        remarks=(f"passed over, having no inside: {counted(left, 'line or point', 'lines and points')}",)
        if left
        else (),
    )


def _rois(file: Path) -> Iterator[tuple[str, Any]]:
    from roifile import ImagejRoi

    for name, data in _entries(file):
        with blaming(f"{file}: {name}"):
            roi = ImagejRoi.frombytes(data)
            yield roi.name or name, roi


def _entries(file: Path) -> Iterator[tuple[str, bytes]]:
    if file.suffix.lower() == ".zip":
        with blaming(file), ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(".roi")]
            yield from [(Path(name).stem, archive.read(name)) for name in names]
        return
    for roi in sorted(file.glob("*.roi")) if file.is_dir() else [file]:
        yield roi.stem, roi.read_bytes()


def _class_name(name: str, roi: Any) -> str:
    text = re.sub(r"[\s_.#]*\d+$", "", name.split("-")[0]).strip()
    return text or (f"group {roi.group}" if roi.group else "roi")


def _section(path: str, name: str, roi: Any) -> int:
    """Return the section; ImageJ counts slices from 1, and 0 is none."""
    position = roi.z_position or roi.position
    if not position and (match := re.fullmatch(r"(\d{4,})-\d{4,}-\d{4,}", name)):
        position = int(match[1])  # how the ROI Manager names what has a slice
    if not position:
        raise DataError(
            f"{path}: ROI '{name}' belongs to no slice; in Fiji's ROI Manager tick More > Options > "
            "'Associate \"Show All\" ROIs with slices', update the ROI in its slice and save again"
        )
    return int(position) - 1


def _rings(path: str, name: str, roi: Any) -> tuple[Ring, ...]:
    if roi.roitype.name in ("OVAL", "RECT") and not roi.composite:
        top, left, bottom, right = roi.top, roi.left, roi.bottom, roi.right
        if roi.subpixelrect:
            top, left, bottom, right = roi.yd, roi.xd, roi.yd + roi.heightd, roi.xd + roi.widthd
        if roi.roitype.name == "OVAL":
            centre, half = ((top + bottom) / 2, (left + right) / 2), ((bottom - top) / 2, (right - left) / 2)
            return (ellipse(centre, (half[0], 0), (0, half[1])),)
        return (np.array([(top, left), (top, right), (bottom, right), (bottom, left)], np.float64),)
    try:
        parts = roi.coordinates(multi=True)
    except NotImplementedError:
        raise DataError(
            f"{path}: ROI '{name}' has curves that cannot be read; in Fiji turn it into polygons by "
            "Edit > Selection > Create Mask and Create Selection"
        ) from None
    rings = tuple(np.asarray(part, np.float64)[:, ::-1] for part in parts if len(part) > 2)
    if not rings:
        raise DataError(f"{path}: ROI '{name}' ({roi.roitype.name.lower()}) has no corners; draw it anew")
    return rings
