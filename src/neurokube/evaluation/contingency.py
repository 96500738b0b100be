"""The contingency table of two segmentations: how many voxels each pair of labels shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from bioimage_cpp.utils import segmentation_overlap
from numpy.typing import NDArray

Labels = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Contingency:
    """Row k: `count[k]` voxels carry the labels `prediction[k]` and `truth[k]`; truth 0 has no row.

    A merged table has one row a pair, sorted by truth, then by prediction.
    """

    prediction: Labels
    truth: Labels
    count: NDArray[np.int64]

    @classmethod
    def of(cls, prediction: Labels, truth: Labels) -> Self:
        """Count the pairs of two uint64 arrays of one shape, of any dimension."""
        table = segmentation_overlap(prediction, truth).overlap_table()
        rows = table[table["label_b"] != 0]
        return cls(rows["label_a"], rows["label_b"], rows["count"].astype(np.int64))

    @classmethod
    def merged(cls, tables: Sequence["Contingency"]) -> Self:
        """Add tables up; the order in which they come makes no difference."""
        prediction = np.concatenate([t.prediction for t in tables])
        truth = np.concatenate([t.truth for t in tables])
        order = np.lexsort((prediction, truth))
        prediction, truth = prediction[order], truth[order]
        is_first = np.ones(order.size, bool)
        is_first[1:] = (prediction[1:] != prediction[:-1]) | (truth[1:] != truth[:-1])
        first = np.flatnonzero(is_first)
        count = np.add.reduceat(np.concatenate([t.count for t in tables])[order], first)
        return cls(prediction[first], truth[first], count)

    def __len__(self) -> int:
        return self.count.size

    def where(self, rows: NDArray[Any]) -> "Contingency":
        """Return some of the rows, chosen by a mask."""
        return Contingency(self.prediction[rows], self.truth[rows], self.count[rows])

    def sizes(self, labels: Labels) -> tuple[Labels, NDArray[np.int64], NDArray[np.intp]]:
        """Add the counts up by one of the table's columns.

        Returns the sorted labels, the voxels of each, and for each row the position of its label.
        """
        names, position = np.unique(labels, return_inverse=True)
        size = np.zeros(names.size, np.int64)
        np.add.at(size, position, self.count)
        return names, size, position


class ContingencySum:
    """The sum of the tables of many blocks; holds a small multiple of the rows of the result."""

    _FEW_ROWS = 1 << 20

    def __init__(self) -> None:
        nothing = np.empty(0, np.uint64)
        self._tables = [Contingency(nothing, nothing, np.empty(0, np.int64))]
        self._rows, self._limit = 0, self._FEW_ROWS

    def add(self, table: Contingency) -> None:
        """Add the table of one more block."""
        self._tables.append(table)
        self._rows += len(table)
        if self._rows > self._limit:
            self._tables = [self.result()]
            self._rows = len(self._tables[0])
            self._limit = max(2 * self._rows, self._FEW_ROWS)

    def result(self) -> Contingency:
        """Return the merged table of all blocks so far."""
        return Contingency.merged(self._tables)
