"""The worst splits and merges of a segmentation, and where to look at them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..blocks import Vector
from ..volumes.volume import Nanometres
from .contingency import Contingency, Labels
from .pairs import PairedBlocks
from .places import PARTS, Meeting, find_places

MOST = 1000
"""Splits, and merges, that can be listed."""

_MOST_PARTS = PARTS
"""Parts that are named: a segment that has swallowed a whole volume has thousands."""


class Part(NamedTuple):
    """A label, and how many voxels it has of the segment it is a part of."""

    label: int
    voxels: int


@dataclass(frozen=True)
class Mistake:
    """A split, a truth body in several predicted segments, or a merge, a predicted segment in several bodies.

    `label` is the body of a split or the segment of a merge, with its labelled `voxels`; `parts` are the
    largest of its `part_count` parts, segments or bodies, the largest first.  `bits` is its share in the
    variation of information.  `voxel` (z, y, x) and `position` (z, y, x), nm, are where `between` two parts, the
    largest and the largest that it meets, one should look: they `touch` there, are `near` each other, or, if the
    largest meets none of the next seven, are `apart`, and it is in the middle of the second.
    """

    kind: Literal["split", "merge"]
    label: int
    bits: float
    voxels: int
    parts: tuple[Part, ...]
    part_count: int
    voxel: Vector
    position: Nanometres
    between: tuple[int, int]
    meeting: Meeting

    @property
    def segments(self) -> tuple[int, ...]:
        """The predicted segments that it is of."""
        return (self.label,) if self.kind == "merge" else tuple(part.label for part in self.parts)

    @property
    def bodies(self) -> tuple[int, ...]:
        """The truth bodies that it is of."""
        return (self.label,) if self.kind == "split" else tuple(part.label for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values for JSON."""
        return {**asdict(self), "parts": [part._asdict() for part in self.parts]}


class _Found(NamedTuple):
    """A mistake without a place."""

    label: int
    bits: float
    voxels: int
    parts: tuple[Part, ...]


def find_mistakes(
    pairs: PairedBlocks, table: Contingency, components: Contingency, worst: int, start: Vector = (0, 0, 0)
) -> tuple[Mistake, ...]:
    """Return the `worst` splits, then the `worst` merges, of a segmentation, each the worst first.

    `table` counts voxels by predicted segment and by component of the truth, `components` by component (its
    column `prediction`) and by truth body.  A split is of one component, since a cell that leaves a cut-out
    and comes back need not be known to be one; a body is listed once, with its worst component.  A merge is of
    several bodies: two components of one body belong together.

    Bits are the share of the segment in VOI split or merge among the voxels that the prediction labels: what
    it leaves 0 is in neither list.  `start` is added to the voxels of the places.  The places do not depend on
    the blocks.
    """
    labelled = table.where(table.prediction != 0)
    voxels = int(table.count.sum())
    order = np.argsort(components.prediction)
    body = components.truth[order][np.searchsorted(components.prediction[order], labelled.truth)]
    bodies = Contingency.merged([Contingency(labelled.prediction, body, labelled.count)])
    body_of = dict(zip(labelled.truth.tolist(), body.tolist(), strict=True))

    splits: dict[int, _Found] = {}
    for found in _worst(labelled.truth, labelled.prediction, labelled.count, voxels):
        if len(splits) == worst:
            break
        name = body_of[found.label]
        splits.setdefault(name, found._replace(label=name))
    merges = islice(_worst(bodies.prediction, bodies.truth, bodies.count, voxels), worst)
    return _placed(pairs, list(splits.values()), list(merges), start)


def _worst(owner: Labels, part: Labels, count: NDArray[np.int64], voxels: int) -> Iterator[_Found]:
    """Yield the owners of several parts, those first whose parts take the most bits to tell apart."""
    names, row = np.unique(owner, return_inverse=True)
    size = np.zeros(names.size, np.int64)
    np.add.at(size, row, count)
    bits = np.bincount(row, count * np.log2(size[row] / count), names.size) / voxels
    # the rows of each owner, the largest part first, lie together
    by_owner = np.lexsort((part, -count, row))
    ends = np.searchsorted(row[by_owner], np.arange(names.size + 1))
    for k in np.lexsort((names, -bits)):
        rows = by_owner[ends[k] : ends[k + 1]]
        if rows.size == 1:
            continue
        parts = tuple(Part(*pair) for pair in zip(part[rows].tolist(), count[rows].tolist(), strict=True))
        yield _Found(int(names[k]), float(bits[k]), int(size[k]), parts)


def _placed(pairs: PairedBlocks, splits: list[_Found], merges: list[_Found], start: Vector) -> tuple[Mistake, ...]:
    sought = [
        [[(part.label, found.label) for part in found.parts] for found in splits],
        [[(found.label, part.label) for part in found.parts] for found in merges],
    ]
    spec = pairs.prediction.spec
    mistakes = []
    places = find_places(pairs, sought)
    for kind, group, there in zip(("split", "merge"), (splits, merges), places, strict=True):
        for found, place in zip(group, there, strict=True):
            z, y, x = (o + v * s for o, v, s in zip(spec.offset, place.voxel, spec.voxel_size, strict=True))
            vz, vy, vx = (v + s for v, s in zip(place.voxel, start, strict=True))
            mistakes.append(
                Mistake(
                    kind=kind,  # type: ignore[arg-type]
                    label=found.label,
                    bits=found.bits,
                    voxels=found.voxels,
                    parts=found.parts[:_MOST_PARTS],
                    part_count=len(found.parts),
                    voxel=(vz, vy, vx),
                    position=(z, y, x),
                    between=(found.parts[0].label, found.parts[place.part].label),
                    meeting=place.meeting,
                )
            )
    return tuple(mistakes)
