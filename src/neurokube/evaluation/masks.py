"""Scores of a mask, or of a probability map and a threshold, against a true mask."""

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np

from ..blocks import Vector
from ..errors import DataError
from ..volumes import Volume, VolumeSpec
from .pairs import BLOCK, PairedBlocks


@dataclass(frozen=True)
class MaskScores:
    """Voxel counts of a mask against the truth, and the scores that follow; all scores are 0 to 1.

    `threshold` is the lowest predicted value that counted as foreground.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    threshold: float

    @property
    def precision(self) -> float:
        """Share of the predicted voxels that are true; 0 where none is predicted."""
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the true voxels that are predicted."""
        return self.true_positives / (self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, the Dice coefficient."""
        wrong = self.false_positives + self.false_negatives
        return 2 * self.true_positives / (2 * self.true_positives + wrong)

    @property
    def iou(self) -> float:
        """Intersection over union, the Jaccard index."""
        return self.true_positives / (self.true_positives + self.false_positives + self.false_negatives)

    def as_dict(self) -> dict[str, Any]:
        """Return scores and counts as plain values for JSON."""
        scores = {"precision": self.precision, "recall": self.recall, "f1": self.f1, "iou": self.iou}
        return {**scores, **asdict(self)}


def evaluate_mask(
    prediction: Volume,
    truth: Volume,
    *,
    threshold: float | None = None,
    block: Vector = BLOCK,
    quiet: bool = False,
) -> MaskScores:
    """Score the voxels of a prediction that reach a threshold against the voxels of a truth that are not 0.

    Without a threshold, labels, booleans and integers of more than 16 bits are foreground from 1 on, and
    images are probabilities that are foreground from half their range on: uint8 128, uint16 32768,
    float 0.5.  Voxels are compared `block` (z, y, x) at a time.

    Raises:
        DataError: where the volumes are not the same voxels, the truth is not a mask or has no
            foreground, the prediction holds NaN, or, without a threshold, the values of a probability map
            are only 0 and 1.
    """
    if np.dtype(truth.spec.dtype).kind not in "biu":
        raise DataError(f"{truth.url}: holds {truth.spec.dtype}, not a mask; give a volume of integers, 0 outside")
    lowest = _default_threshold(prediction.spec) if threshold is None else threshold
    confusion, highest = np.zeros(4, np.int64), 0.0
    for _, predicted, true in PairedBlocks(prediction, truth, block, quiet=quiet):
        top = float(predicted.max())
        if isnan(top):
            raise DataError(
                f"{prediction.url}: holds NaN, which is neither foreground nor background; compute it again"
            )
        highest = max(highest, top)
        outcome = 2 * (predicted >= lowest).astype(np.uint8) + (true != 0)
        confusion += np.bincount(outcome.ravel(), minlength=4)
    if threshold is None and lowest > 1 and highest == 1:
        raise DataError(
            f"{prediction.url}: holds only 0 and 1, but {prediction.spec.dtype} probabilities are foreground "
            f"from {lowest:g} on; if it is a mask, give --threshold 1"
        )
    negative, missed, wrong, found = (int(n) for n in confusion)
    if found + missed == 0:
        raise DataError(f"{truth.url}: every voxel is 0 (background), so there is nothing to score; check the file")
    return MaskScores(found, wrong, missed, negative, float(lowest))


def _default_threshold(spec: VolumeSpec) -> float:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return 0.5
    return {"uint8": 128, "uint16": 32768}.get(dtype.name, 1) if spec.kind == "image" else 1
