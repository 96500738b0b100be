from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurokube.blocks import Vector
from neurokube.errors import DataError
from neurokube.evaluation import evaluate_mask
from neurokube.volumes import Volume

TRUTH = np.array([[[0, 0, 1, 1], [0, 7, 7, 0]]], np.uint8)


def test_counts_and_scores_are_those_computed_by_hand(make_volume: Callable[..., Volume]) -> None:
    prediction = np.array([[[0, 1, 1, 0], [0, 1, 0, 0]]], np.uint8)
    scores = evaluate_mask(make_volume(prediction), make_volume(TRUTH), quiet=True)
    assert scores.as_dict() == {
        "true_positives": 2,
        "false_positives": 1,
        "false_negatives": 2,
        "true_negatives": 3,
        "precision": 2 / 3,
        "recall": 1 / 2,
        "f1": 4 / 7,
        "iou": 2 / 5,
        "threshold": 1.0,
    }


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(3, 9)] * 3))
def test_counts_do_not_depend_on_blocks(make_volume: Callable[..., Volume], seed: int, block: Vector) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = rng.integers(0, 256, (6, 7, 8), np.uint8), rng.integers(0, 2, (6, 7, 8), np.uint8)
    scores = evaluate_mask(make_volume(prediction, kind="image"), make_volume(truth), block=block, quiet=True)
    assert scores.true_positives == np.count_nonzero((prediction >= 128) & (truth == 1))
    assert scores.false_positives == np.count_nonzero((prediction >= 128) & (truth == 0))
    assert scores.false_negatives == np.count_nonzero((prediction < 128) & (truth == 1))
    assert scores.true_negatives == np.count_nonzero((prediction < 128) & (truth == 0))


@pytest.mark.parametrize(
    ("dtype", "kind", "lowest"),
    [
        ("uint8", "image", 128),
        ("uint16", "image", 32768),
        ("float32", "image", 0.5),
        ("uint8", "labels", 1),
        ("uint64", "labels", 1),
    ],
)
def test_without_a_threshold_the_foreground_starts_where_the_type_says(
    make_volume: Callable[..., Volume], dtype: str, kind: str, lowest: float
) -> None:
    below = lowest / 2 if dtype == "float32" else lowest - 1
    prediction = np.array([[[below, lowest]]]).astype(dtype)
    truth = make_volume(np.array([[[0, 1]]], np.uint8))
    scores = evaluate_mask(make_volume(prediction, kind=kind), truth, quiet=True)
    assert (scores.f1, scores.true_negatives, scores.threshold) == (1, 1, lowest)


def test_a_threshold_decides_from_which_value_on_a_voxel_is_foreground(
    make_volume: Callable[..., Volume],
) -> None:
    prediction = make_volume((TRUTH * 30).astype(np.uint8), kind="image")
    truth = make_volume(TRUTH)
    assert evaluate_mask(prediction, truth, threshold=30, quiet=True).f1 == 1
    assert evaluate_mask(prediction, truth, threshold=31, quiet=True).recall == 0.5


def test_an_empty_prediction_scores_zero(make_volume: Callable[..., Volume]) -> None:
    scores = evaluate_mask(make_volume(0 * TRUTH, kind="image"), make_volume(TRUTH), quiet=True)
    assert (scores.precision, scores.recall, scores.f1, scores.iou) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (TRUTH[:, :1], TRUTH, "1 x 1 x 4 .* 1 x 2 x 4"),
        (TRUTH, TRUTH.astype(np.float32), "float32, not a mask"),
        (TRUTH, 0 * TRUTH, "every voxel is 0"),
        ((TRUTH > 0).astype(np.uint8), TRUTH, "only 0 and 1.*--threshold 1"),
        (np.full(TRUTH.shape, np.nan, np.float32), TRUTH, "holds NaN"),
    ],
)
def test_input_that_cannot_be_scored_is_refused_in_one_line(
    make_volume: Callable[..., Volume], prediction: NDArray[Any], truth: NDArray[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        evaluate_mask(make_volume(prediction, kind="image"), make_volume(truth), quiet=True)
    assert "\n" not in str(refusal.value)
