"""Outlines drawn in sections, filled: what Fiji's ROIs, IMOD's contours and napari's shapes have in common."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box
from ...errors import DataError
from ..volume import Nanometres
from .painted import Painted

Ring = NDArray[np.float64]
"""The corners (n, 2) of a closed outline, (y, x); voxel (i, j) covers i to i + 1 and j to j + 1."""


@dataclass(frozen=True)
class Outline:
    """One shape of a section, painted with `value`; inside is what an odd number of rings surrounds."""

    section: int
    rings: tuple[Ring, ...]
    value: int

    @cached_property
    def box(self) -> Box:
        """The voxels that can be inside."""
        corners = np.concatenate(self.rings)
        (y0, x0), (y1, x1) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
        return Box((self.section, int(y0), int(x0)), (self.section + 1, int(y1), int(x1)))


def open_outlines(
    path: str,
    description: str,
    outlines: Sequence[Outline],
    *,
    names: Mapping[int, str],
    voxel_size: Nanometres | None = None,
    remarks: tuple[str, ...] = (),
) -> Painted:
    """Return an annotation of filled outlines; where they overlap, the later one is on top.

    Raises:
        DataError: where there are none.
    """
    if not outlines:
        passed = f" ({'; '.join(remarks)})" if remarks else ""
        raise DataError(f"{path}: nothing is painted, it holds no closed outline{passed}; annotate and save again")
    sections: dict[int, list[Outline]] = defaultdict(list)
    for outline in outlines:
        sections[outline.section].append(outline)
    dtype = np.min_scalar_type(max(outline.value for outline in outlines))

    def read(box: Box) -> NDArray[Any]:
        data = np.zeros(box.shape, dtype)
        for z in range(box.start[0], box.stop[0]):
            for outline in sections.get(z, ()):
                part = outline.box.clip(box)
                if part.size:
                    target = data[part.relative_to(box.start).slices][0]
                    target[fill(outline.rings, part.start[1:], part.shape[1:])] = outline.value
        return data

    def occupied(box: Box) -> Iterator[Box]:
        for z in sorted(sections):
            part = _union([outline.box for outline in sections[z]]).clip(box)
            if part.size:
                yield part

    return Painted(
        path=path,
        description=description,
        extent=_union([outline.box for outline in outlines]),
        read=read,
        occupied=occupied,
        fit="outlines",
        voxel_size=voxel_size,
        names=names,
        remarks=remarks,
    )


def _union(boxes: Sequence[Box]) -> Box:
    start, stop = np.min([box.start for box in boxes], 0), np.max([box.stop for box in boxes], 0)
    return Box((int(start[0]), int(start[1]), int(start[2])), (int(stop[0]), int(stop[1]), int(stop[2])))


def ellipse(centre: tuple[float, float], one: tuple[float, float], other: tuple[float, float]) -> Ring:
    """Return the ring of an ellipse, all (y, x), from its centre and two half axes."""
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)[:, None]
    return np.asarray(np.asarray(centre) + np.cos(angle) * np.asarray(one) + np.sin(angle) * np.asarray(other))


def fill(rings: Sequence[Ring], start: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which voxels have their centre inside rings, shape (y, x), the first voxel being `start`.

    Inside is what an odd number of rings surrounds.  Voxels are toggled from each edge on to the right.
    """
    toggles = np.zeros((shape[0], shape[1] + 1), bool)
    for ring in rings:
        y, x = (ring - start).T
        to_y, to_x = np.roll(y, -1), np.roll(x, -1)
        # the rows whose centres lie between the ends of an edge, the lower end excluded
        first, last = (np.clip(np.ceil(f(y, to_y) - 0.5), 0, shape[0]).astype(int) for f in (np.minimum, np.maximum))
        count = last - first
        edge = np.repeat(np.arange(len(y)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        along = (row + 0.5 - y[edge]) / (to_y - y)[edge]
        crossing = x[edge] + along * (to_x - x)[edge]
        column = np.clip(np.ceil(crossing - 0.5), 0, shape[1]).astype(int)
        np.logical_xor.at(toggles, (row, column), True)
    return np.logical_xor.accumulate(toggles, axis=1)[:, :-1]


def nest(rings: Sequence[Ring], section: int, value: int) -> list[Outline]:
    """Return the outlines of one object in a section: a ring inside another is a hole in it, and so on."""
    distinct = list({ring.tobytes(): ring for ring in rings}.values())
    around = [
        [k for k, other in enumerate(distinct) if k != i and _inside(ring, other)] for i, ring in enumerate(distinct)
    ]
    outlines = {i: Outline(section, (ring,), value) for i, ring in enumerate(distinct) if len(around[i]) % 2 == 0}
    for i, ring in enumerate(distinct):
        if len(around[i]) % 2:
            parent = max(around[i], key=lambda k: len(around[k]))
            outlines[parent] = replace(outlines[parent], rings=(*outlines[parent].rings, ring))
    return list(outlines.values())


def _inside(ring: Ring, other: Ring) -> bool:
    """Whether all corners of a ring lie inside another."""
    if (ring.min(0) < other.min(0)).any() or (ring.max(0) > other.max(0)).any():
        return False
    (y, x), ends = other.T[:, None], np.roll(other, -1, 0).T[:, None]
    at_y, at_x = ring.T[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x + (at_y - y) / (ends[0] - y) * (ends[1] - x)
    crossed = ((y <= at_y) != (ends[0] <= at_y)) & (crossing > at_x)
    return bool((crossed.sum(1) % 2 == 1).all())
