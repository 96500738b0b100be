"""Connected components of a label volume, found block by block."""

import zlib

import numpy as np
from bioimage_cpp.segmentation import label
from bioimage_cpp.utils import UnionFind
from numpy.typing import NDArray

from ..blocks import Grid
from .contingency import Contingency, Labels


class Components:
    """The 6-connected components of equal, non-zero labels of a volume that is seen one block at a time.

    Add every cell of the grid once, in any order.  A cell's own components get provisional numbers, and
    `resolve` says which of them are one: those of one label that touch at a face (Rosenfeld & Pfaltz,
    J. ACM 13:471, 1966).

        ┌───────┬───────┐
        │ 1 1 · │ · 3 3 │     1 and 3 carry one label and meet nowhere: two components
        │ · 2 2 │ 4 4 · │     2 and 4 carry one label and meet at the face: one component
        └───────┴───────┘

    Between cells it holds some tens of bytes a provisional component and, compressed, the faces whose
    other side has not come yet.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._total = 1
        self._labels: list[Labels] = [np.zeros(1, np.uint64)]
        self._names: list[Labels] = [np.zeros(1, np.uint64)]
        self._contacts: list[Labels] = [np.empty((0, 2), np.uint64)]
        self._faces: dict[tuple[int, int, int, int], bytes] = {}

    def add(self, cell: int, labels: Labels) -> Labels:
        """Return the provisional components of a cell's labels, 0 where they are 0; both (z, y, x)."""
        local: Labels = label(labels, connectivity=1)
        first = _first_voxels(local)
        inside = np.unravel_index(first, local.shape)
        z, y, x = (i + s for i, s in zip(inside, self._grid.box(cell).start, strict=True))
        self._labels.append(labels.ravel()[first])
        self._names.append(np.ravel_multi_index((z, y, x), self._grid.shape).astype(np.uint64) + np.uint64(1))
        provisional: Labels = np.where(local == 0, local, local + np.uint64(self._total - 1))
        self._total += first.size
        self._meet_neighbours(cell, provisional)
        return provisional

    def resolve(self) -> tuple[Labels, Labels]:
        """Return the component and the label of each provisional component, number 0 included.

        A component is named by its first voxel, counted from 1 along x, then y, then z: the name does not
        depend on the grid.
        """
        labels, names = np.concatenate(self._labels), np.concatenate(self._names)
        contacts = np.concatenate(self._contacts)
        union = UnionFind(self._total)
        union.merge(contacts[labels[contacts[:, 0]] == labels[contacts[:, 1]]])
        root = union.element_labeling()
        lowest = names.copy()
        np.minimum.at(lowest, root, names)
        return lowest[root], labels

    def _meet_neighbours(self, cell: int, provisional: Labels) -> None:
        """Note what touches at the faces that the neighbours have shown; leave the others for them."""
        here = self._grid.coordinate(cell)
        for axis, cells in enumerate(self._grid.counts):
            for side, below in ((0, here[axis] - 1), (-1, here[axis])):
                if not 0 <= below < cells - 1:
                    continue
                z, y, x = (below if k == axis else c for k, c in enumerate(here))
                mine: Labels = np.take(provisional, side, axis)
                waiting = self._faces.pop((axis, z, y, x), None)
                if waiting is None:
                    self._faces[axis, z, y, x] = zlib.compress(mine.tobytes(), 1)
                    continue
                theirs = np.frombuffer(zlib.decompress(waiting), np.uint64).reshape(mine.shape)
                pairs = Contingency.of(mine, theirs)
                self._contacts.append(np.stack([pairs.prediction, pairs.truth], axis=1)[pairs.prediction != 0])


def _first_voxels(local: Labels) -> NDArray[np.intp]:
    """Return the index, in the raveled array, of the first voxel of each of the labels 1 to n."""
    first = np.empty(int(local.max()) + 1, np.intp)
    # written backwards, so that of a component's voxels the first one stays
    first[local.ravel()[::-1]] = np.arange(local.size)[::-1]
    return first[1:]
