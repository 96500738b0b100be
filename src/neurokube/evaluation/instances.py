"""Scores of an instance segmentation against the truth."""

from dataclasses import asdict, dataclass, replace
from math import fsum, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Vector
from ..errors import DataError, UsageError
from ..volumes import Volume
from .components import Components
from .contingency import Contingency, ContingencySum, Labels
from .mistakes import MOST, Mistake, find_mistakes
from .pairs import BLOCK, PairedBlocks, as_labels, require_labels


@dataclass(frozen=True)
class Agreement:
    """How far two segmentations differ: entropies in bits, errors from 0 (the same) to 1."""

    voi_split: float
    voi_merge: float
    adapted_rand_error: float
    adapted_rand_precision: float
    adapted_rand_recall: float

    @property
    def voi(self) -> float:
        """Variation of information in bits, split and merge together."""
        return self.voi_split + self.voi_merge

    @property
    def cremi(self) -> float:
        """The CREMI score: geometric mean of variation of information (bits) and adapted Rand error.

        As on the leaderboard of the CREMI challenge (Funke et al., MICCAI 2016, cremi.org).  The challenge
        sets voxels of the truth within 25 nm of a border to 0 in each section; to be compared with it, a
        truth must come with them already 0.
        """
        return sqrt(max(0.0, self.adapted_rand_error) * self.voi)

    def values(self) -> dict[str, Any]:
        """Return all scores as plain values for JSON."""
        own = ("voi_split", "voi_merge", "adapted_rand_error", "adapted_rand_precision", "adapted_rand_recall")
        return {"voi": self.voi, "cremi": self.cremi, **{name: getattr(self, name) for name in own}}

    @classmethod
    def of(cls, table: Contingency) -> "Agreement":
        """Score a merged table with at least one row."""
        return cls(*variation_of_information(table), *adapted_rand(table))


@dataclass(frozen=True)
class InstanceScores(Agreement):
    """Scores of a segmentation, and what they were taken over.

    `voxels` were scored, of which the prediction leaves `unlabelled` 0; `prediction_segments` touch them;
    `truth_bodies` are the labels of the truth and `truth_segments` their connected components (the
    bodies themselves where components were not asked for); `left_out_bodies` had less than `min_size`
    voxels.  `floor` is the score of the truth's connected components against its bodies, None where
    components were not asked for: the share of a cut-out in the error, as cells leave and re-enter it.
    `mistakes` are the worst splits and merges, as many of each as were asked for.
    """

    voxels: int
    unlabelled: int
    prediction_segments: int
    truth_segments: int
    truth_bodies: int
    left_out_bodies: int
    min_size: int
    floor: Agreement | None
    mistakes: tuple[Mistake, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, and `voi` and `cremi`, as plain values for JSON."""
        values = {**self.values(), **asdict(self)}
        if self.floor is not None:
            values["floor"] = self.floor.values()
        values["mistakes"] = [mistake.as_dict() for mistake in self.mistakes]
        return values


def variation_of_information(table: Contingency) -> tuple[float, float]:
    """Return VOI split, H(prediction | truth), and VOI merge, H(truth | prediction), in bits.

    Prediction 0 is a segment like any other, as in the CREMI challenge (Meila, J. Multivariate Analysis
    98:873, 2007).
    """
    _, truth_size, truth_row = table.sizes(table.truth)
    _, prediction_size, prediction_row = table.sizes(table.prediction)
    voxels = int(table.count.sum())
    # fsum rounds once, so that the value depends on the rows and not on their order
    split = fsum(table.count * np.log2(truth_size[truth_row] / table.count)) / voxels
    merge = fsum(table.count * np.log2(prediction_size[prediction_row] / table.count)) / voxels
    return split, merge


def adapted_rand(table: Contingency) -> tuple[float, float, float]:
    """Return the adapted Rand error, 1 - F1, and the precision and recall of voxel pairs behind it.

    As in SNEMI3D and CREMI, each voxel with prediction 0 is a segment of its own (Rand, JASA 66:846,
    1971; Arganda-Carreras et al., Frontiers in Neuroanatomy 9:142, 2015).
    """
    labelled = table.prediction != 0
    alone = int(table.count[~labelled].sum())
    _, truth_size, _ = table.sizes(table.truth)
    segments = table.where(labelled)
    _, prediction_size, _ = segments.sizes(segments.prediction)
    in_both = _sum_of_squares(segments.count) + alone
    in_prediction = _sum_of_squares(prediction_size) + alone
    in_truth = _sum_of_squares(truth_size)
    return 1 - 2 * in_both / (in_truth + in_prediction), in_both / in_prediction, in_both / in_truth


def evaluate_instances(
    prediction: Volume,
    truth: Volume,
    *,
    min_size: int = 0,
    components: bool = True,
    worst: int = 0,
    start: Vector = (0, 0, 0),
    block: Vector = BLOCK,
    quiet: bool = False,
) -> InstanceScores:
    """Score a segmentation against the truth where the truth is not 0.

    Truth bodies of less than `min_size` voxels are left out.  With `components`, right for a cut-out of
    a larger volume, the truth is first relabelled by 6-connected components: a cell that leaves the
    volume and enters it again is then two.  The `worst` splits and the `worst` merges are named and placed,
    which takes a second look at the volumes; `start` is the first voxel (z, y, x) of a cut-out, from which
    their places count.  Voxels are compared `block` (z, y, x) at a time, which changes memory and speed and
    not the result.

    Raises:
        UsageError: where `min_size` is negative, or `worst` is, or is above 1000.
        DataError: where the volumes are not label volumes of the same voxels, or nothing is left to score.
    """
    if not 0 <= worst <= MOST:
        raise UsageError(f"worst {worst}: give a number of splits and merges to list, from 0 to {MOST}")
    pairs = _pairs(prediction, truth, block, quiet=quiet)
    counts = _count(pairs, components)
    scores, table, kept = _scored(counts, min_size)
    return replace(scores, mistakes=find_mistakes(pairs, table, kept, worst, start)) if worst else scores


@dataclass(frozen=True, eq=False)
class Counts:
    """What a segmentation is scored by: the voxels that it shares with the truth.

    `table` counts labels of the prediction and segments of the truth, `parts` these segments and their bodies.
    """

    truth_url: str
    components: bool
    table: Contingency
    parts: Contingency

    def joined(self, labels: Labels, segments: Labels) -> "Counts":
        """Return the counts of a prediction in which `labels`, ascending, are `segments`, (n,) each; 0 stays 0."""
        names = np.concatenate([np.zeros(1, np.uint64), segments])
        where = np.where(self.table.prediction, np.searchsorted(labels, self.table.prediction) + 1, 0)
        table = Contingency(names[where], self.table.truth, self.table.count)
        return replace(self, table=Contingency.merged([table]))

    def scores(self, min_size: int = 0) -> InstanceScores:
        """Return what `evaluate_instances` does, and raise what it raises."""
        return _scored(self, min_size)[0]


def count_instances(
    prediction: Volume, truth: Volume, *, components: bool = True, block: Vector = BLOCK, quiet: bool = False
) -> Counts:
    """Return what the two share, from which the prediction, and whatever joins its labels, can be scored.

    Raises:
        DataError: as `evaluate_instances` does where the volumes do not fit.
    """
    return _count(_pairs(prediction, truth, block, quiet=quiet), components)


def _pairs(prediction: Volume, truth: Volume, block: Vector, *, quiet: bool) -> PairedBlocks:
    require_labels(prediction, truth)
    return PairedBlocks(prediction, truth, block, quiet=quiet)


def _scored(counts: Counts, min_size: int) -> tuple[InstanceScores, Contingency, Contingency]:
    """Return the scores, and the rows of both tables that are of bodies of at least `min_size` voxels."""
    if min_size < 0:
        raise UsageError(f"minimum size {min_size}: give 0 or a number of voxels")
    table, parts = counts.table, counts.parts
    if not len(table):
        raise DataError(
            f"{counts.truth_url}: every voxel is 0 (no label), so there is nothing to score; check the file"
        )
    bodies, size, body_row = parts.sizes(parts.truth)
    kept = parts.where(size[body_row] >= min_size)
    if not len(kept):
        raise DataError(f"{counts.truth_url}: no body has {min_size} voxels or more; choose a smaller --min-size")
    table = table.where(np.isin(table.truth, kept.prediction))
    truth_bodies = int(np.count_nonzero(size >= min_size))
    scores = InstanceScores(
        **asdict(Agreement.of(table)),
        voxels=int(table.count.sum()),
        unlabelled=int(table.count[table.prediction == 0].sum()),
        prediction_segments=int(np.count_nonzero(np.unique(table.prediction))),
        truth_segments=len(kept),
        truth_bodies=truth_bodies,
        left_out_bodies=bodies.size - truth_bodies,
        min_size=min_size,
        floor=Agreement.of(kept) if counts.components else None,
    )
    return scores, table, kept


def _count(pairs: PairedBlocks, components: bool) -> Counts:
    total, found = ContingencySum(), Components(pairs.grid)
    for cell, predicted, true in pairs:
        labels = as_labels(pairs.truth, true)
        segments = found.add(cell, labels) if components else labels
        total.add(Contingency.of(as_labels(pairs.prediction, predicted), segments))
    table = total.result()
    if not components:
        parts = Contingency.merged([Contingency(table.truth, table.truth, table.count)])
        return Counts(pairs.truth.url, components, table, parts)
    names, bodies = found.resolve()
    segment, body = names[table.truth], bodies[table.truth]
    parts = Contingency.merged([Contingency(segment, body, table.count)])
    return Counts(
        pairs.truth.url, components, Contingency.merged([Contingency(table.prediction, segment, table.count)]), parts
    )


def _sum_of_squares(sizes: NDArray[np.int64]) -> float:
    # in float64, as the square of a large body's size does not fit into 64-bit integers
    return fsum(sizes.astype(np.float64) ** 2)
