"""F1 of every threshold, from counts of quantized probabilities; thresholds are chosen in validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

LEVELS = 256


@dataclass(frozen=True)
class Curve:
    """How many voxels with each of 256 predicted values are not, and are, of a label: counts (2, 256)."""

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Self:
        """Return a curve of no voxels."""
        return cls(np.zeros((2, LEVELS), np.int64))

    def plus(self, predicted: NDArray[np.uint8], truth: NDArray[Any], known: NDArray[Any] | None = None) -> "Curve":
        """Return the curve with more voxels, arrays of one shape; only known voxels count."""
        value = predicted.astype(np.int64) + LEVELS * (truth != 0)
        value = value.ravel() if known is None else value[known != 0]
        return Curve(self.counts + np.bincount(value, minlength=2 * LEVELS).reshape(2, LEVELS))

    @property
    def known(self) -> bool:
        """Whether there is a voxel of the label and one that is not."""
        return bool(self.counts.sum(1).all())

    @property
    def recall(self) -> NDArray[np.float64]:
        """Recall from each threshold 0 to 255 on."""
        found = self.counts[1, ::-1].cumsum()[::-1]
        return np.asarray(found / max(1, self.counts[1].sum()))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Precision from each threshold 0 to 255 on; 1 where nothing is predicted."""
        wrong, found = self.counts[:, ::-1].cumsum(1)[:, ::-1]
        return np.where(wrong + found, found / np.maximum(1, wrong + found), 1.0)

    @property
    def f1(self) -> NDArray[np.float64]:
        """F1, the Dice coefficient, at each threshold 0 to 255."""
        wrong, found = self.counts[:, ::-1].cumsum(1)[:, ::-1]
        return np.asarray(2 * found / np.maximum(1, found + wrong + self.counts[1].sum()))

    @property
    def best(self) -> int:
        """The threshold of the best F1, at least 1."""
        return int(self.f1[1:].argmax()) + 1

    @property
    def average_precision(self) -> float:
        """The area under the precision-recall curve, as a sum over thresholds."""
        recall = np.append(self.recall, 0)
        return float((self.precision * (recall[:-1] - recall[1:])).sum())


def mean_f1(curves: Sequence[Curve]) -> float:
    """Return the mean over labels of the best F1; labels without truth do not count."""
    scores = [float(curve.f1[curve.best]) for curve in curves if curve.known]
    return float(np.mean(scores)) if scores else 0.0
