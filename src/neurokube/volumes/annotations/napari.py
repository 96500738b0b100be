"""Shapes layers of napari, as it saves them: a CSV file with a row for each corner."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...words import counted
from ..files.reading import blaming
from .outlines import Outline, Ring, ellipse, open_outlines
from .painted import Painted

_CLOSED = ("polygon", "rectangle", "ellipse", "path")


def open_shapes(path: str, asked: Mapping[int, str] | None = None) -> Painted:
    """Open the shapes of a napari layer; the id of a shape is its index and 1, as in napari's own labels.

    Paths are closed; lines have no inside and are passed over.  Coordinates are those of the layer's data, in
    voxels; napari puts the centre of a voxel at whole numbers.

    Raises:
        DataError: where it is not such a table, or a shape does not lie in one section.
    """
    file = Path(path).expanduser()
    with blaming(path), file.open(newline="") as text:
        reader = csv.DictReader(text)
        rows, columns = list(reader), list(reader.fieldnames or ())
    axes = [column for column in columns if column.startswith("axis-")]
    if not {"index", "shape-type"} <= set(columns) or len(axes) not in (2, 3):
        raise DataError(
            f"{path}: no napari shapes of sections, its columns are {', '.join(columns[:8])}; save a shapes layer, "
            "with index, shape-type and 2 or 3 axes"
        )
    corners: dict[int, list[list[float]]] = {}
    types: dict[int, str] = {}
    with blaming(path):
        for row in rows:
            index = int(float(row["index"]))
            types[index] = row["shape-type"]
            corners.setdefault(index, []).append([float(row[axis]) for axis in axes])
    outlines = [_outline(path, k, types[k], np.array(corners[k])) for k in sorted(types) if types[k] in _CLOSED]
    left = len(types) - len(outlines)
    return open_outlines(
        path,
        counted(len(outlines), "napari shape"),
        outlines,
        names=asked or {},
        remarks=(f"passed over, having no inside: {counted(left, 'line')}",) if left else (),
    )


def _outline(path: str, index: int, kind: str, corners: Ring) -> Outline:
    depth = corners[:, :-2]
    if np.ptp(depth, axis=0).any():
        raise DataError(f"{path}: shape {index} is not in one section; draw shapes in the plane of the sections")
    section = round(float(depth[0, 0])) if depth.size else 0
    ring = corners[:, -2:] + 0.5
    if kind == "ellipse":
        if len(ring) != 4:
            raise DataError(f"{path}: ellipse {index} has {len(ring)} corners, not 4; save the layer again")
        ring = ellipse(tuple(ring.mean(0)), tuple((ring[1] - ring[0]) / 2), tuple((ring[3] - ring[0]) / 2))
    return Outline(section, (ring,), index + 1)
