from collections.abc import Callable
from math import log2
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse
from bioimage_cpp.segmentation import label
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurokube.blocks import Box, Grid, Vector
from neurokube.errors import DataError, UsageError
from neurokube.evaluation import (
    Contingency,
    ContingencySum,
    adapted_rand,
    count_instances,
    evaluate_instances,
    variation_of_information,
)
from neurokube.volumes import Volume

FIB25 = Path(__file__).parents[3] / "shared/data/fib25/bodies.h5"


def u64(values: Any) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def random_labels(seed: int, shape: Vector, highest: int = 5) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, highest + 1, shape, np.uint64)


def straightforward_scores(prediction: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    """VOI and adapted Rand from a sparse matrix, as differences of entropies and as counts of voxel pairs."""
    p, t = prediction[truth != 0].astype(int), truth[truth != 0].astype(int)
    joint = scipy.sparse.coo_matrix((np.ones(p.size), (p, t))).tocsr()
    joint.sum_duplicates()

    def entropy(counts: Any) -> float:
        share = np.asarray(counts).ravel() / p.size
        return float(-(share[share > 0] * np.log2(share[share > 0])).sum())

    h_joint, h_p, h_t = entropy(joint.data), entropy(joint.sum(1)), entropy(joint.sum(0))
    # a voxel that the prediction leaves out is a segment of its own
    p = np.where(p == 0, p.max() + 1 + np.arange(p.size), p)
    alone = scipy.sparse.coo_matrix((np.ones(p.size), (p, t))).tocsr()
    both, of_p, of_t = (np.square(np.asarray(c)).sum() for c in (alone.data, alone.sum(1), alone.sum(0)))
    precision, recall = both / of_p, both / of_t
    return {
        "voi_split": h_joint - h_t,
        "voi_merge": h_joint - h_p,
        "adapted_rand_error": 1 - 2 * precision * recall / (precision + recall),
        "adapted_rand_precision": precision,
        "adapted_rand_recall": recall,
    }


def test_cutting_a_body_in_halves_costs_one_bit_of_split_and_no_merge() -> None:
    table = Contingency.of(u64([1, 1, 2, 2]), u64([9, 9, 9, 9]))
    assert variation_of_information(table) == (1.0, 0.0)
    # pairs of voxels together: 2 * 2^2 in both, 4^2 in the truth
    assert adapted_rand(table) == (1 - 2 * 8 / (16 + 8), 1.0, 0.5)


def test_joining_a_body_of_one_voxel_with_one_of_three_gives_the_merge_computed_by_hand() -> None:
    table = Contingency.of(u64([4, 4, 4, 4]), u64([1, 2, 2, 2]))
    split, merge = variation_of_information(table)
    assert split == 0
    assert merge == pytest.approx(0.25 * log2(4) + 0.75 * log2(4 / 3), abs=1e-15)
    assert adapted_rand(table) == (1 - 2 * 10 / (10 + 16), 10 / 16, 1.0)


def test_voxels_without_truth_are_not_scored() -> None:
    scored = Contingency.of(u64([1, 1, 2, 2, 3, 1]), u64([1, 1, 1, 1, 0, 0]))
    alone = Contingency.of(u64([1, 1, 2, 2]), u64([1, 1, 1, 1]))
    assert adapted_rand(scored) == adapted_rand(alone)
    assert variation_of_information(scored) == variation_of_information(alone)


def test_unlabelled_voxels_are_one_segment_for_voi_and_single_segments_for_rand() -> None:
    table = Contingency.of(u64([0, 0, 5, 5]), u64([1, 1, 1, 1]))
    assert variation_of_information(table) == (1.0, 0.0)
    assert adapted_rand(table) == (1 - 2 * (4 + 2) / (16 + 4 + 2), 1.0, 6 / 16)


@given(st.integers(0, 2**32 - 1))
def test_swapping_prediction_and_truth_swaps_split_and_merge(seed: int) -> None:
    a, b = random_labels(seed, (3, 4, 5)) + 1, random_labels(seed + 1, (3, 4, 5)) + 1
    there, back = (Contingency.merged([Contingency.of(*pair)]) for pair in ((a, b), (b, a)))
    assert variation_of_information(there) == variation_of_information(back)[::-1]
    error, precision, recall = adapted_rand(there)
    assert adapted_rand(back) == (error, recall, precision)


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 12)] * 3), st.randoms(use_true_random=False))
def test_the_table_of_counts_does_not_depend_on_blocks_or_their_order(seed: int, cell: Vector, random: Any) -> None:
    shape = (7, 9, 10)
    prediction, truth = random_labels(seed, shape), random_labels(seed + 1, shape)
    grid = Grid(shape, cell)
    order = list(range(len(grid)))
    random.shuffle(order)
    total = ContingencySum()
    total._limit = 40
    for k in order:
        box = grid.box(k).slices
        total.add(Contingency.of(prediction[box], truth[box]))
    whole, sum_ = Contingency.merged([Contingency.of(prediction, truth)]), total.result()
    for column in ("prediction", "truth", "count"):
        np.testing.assert_array_equal(getattr(sum_, column), getattr(whole, column))


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(3, 12)] * 3),
    st.booleans(),
    st.sampled_from([0, 60, 90]),
)
def test_scores_do_not_depend_on_blocks(
    make_volume: Callable[..., Volume], seed: int, block: Vector, components: bool, min_size: int
) -> None:
    shape = (6, 9, 10)
    volumes = make_volume(random_labels(seed, shape)), make_volume(random_labels(seed + 1, shape))
    scores = [
        evaluate_instances(*volumes, min_size=min_size, components=components, block=b, quiet=True)
        for b in (shape, block)
    ]
    assert scores[0] == scores[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_agree_with_a_straightforward_computation(make_volume: Callable[..., Volume], seed: int) -> None:
    prediction, truth = random_labels(seed, (6, 7, 8)), random_labels(seed + 1, (6, 7, 8), 2)
    volumes = make_volume(prediction), make_volume(truth)
    as_given = evaluate_instances(*volumes, components=False, block=(4, 4, 4), quiet=True).as_dict()
    in_parts = evaluate_instances(*volumes, block=(4, 4, 4), quiet=True).as_dict()
    parts = label(truth, connectivity=1)
    for scores, expected in [
        (as_given, straightforward_scores(prediction, truth)),
        (in_parts, straightforward_scores(prediction, parts)),
        (in_parts["floor"], straightforward_scores(parts, truth)),
    ]:
        for name, value in expected.items():
            assert scores[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_counts_score_whatever_joins_labels_as_if_it_had_been_written(
    make_volume: Callable[..., Volume], seed: int, components: bool
) -> None:
    shape = (6, 9, 10)
    fragments, truth = random_labels(seed, shape, highest=9), random_labels(seed + 1, shape)
    ids = np.arange(1, 10, dtype=np.uint64)
    segments = random_labels(seed + 2, (1, 1, 9), highest=3).ravel() + np.uint64(1)
    joined = np.concatenate([u64([0]), segments])[fragments]
    counts = count_instances(make_volume(fragments), make_volume(truth), components=components, quiet=True)
    expected = evaluate_instances(make_volume(joined), make_volume(truth), components=components, quiet=True)
    assert counts.joined(ids, segments).scores() == expected


def test_a_perfect_segmentation_scores_zero(make_volume: Callable[..., Volume]) -> None:
    truth = random_labels(3, (9, 9, 9), 30)
    names = np.random.default_rng(0).permutation(31).astype(np.uint64) + np.uint64(2**40)
    scores = evaluate_instances(make_volume(names[truth]), make_volume(truth), components=False, quiet=True)
    assert (scores.voi_split, scores.voi_merge, scores.adapted_rand_error) == (0, 0, 0)
    assert scores.floor is None
    assert scores.voxels == np.count_nonzero(truth) and scores.unlabelled == 0


def test_a_cell_that_leaves_and_enters_again_is_two_and_the_floor_says_what_that_is_worth(
    make_volume: Callable[..., Volume],
) -> None:
    truth = np.zeros((4, 4, 8), np.uint32)
    truth[..., 0], truth[..., 7] = 3, 3
    parts = np.zeros_like(truth)
    parts[..., 0], parts[..., 7] = 1, 2
    scores = evaluate_instances(make_volume(parts), make_volume(truth), block=(4, 4, 4), quiet=True)
    assert (scores.voi, scores.adapted_rand_error) == (0, 0)
    assert scores.floor is not None
    assert (scores.floor.voi_split, scores.floor.voi_merge) == (1, 0)
    assert scores.floor.adapted_rand_error == pytest.approx(1 / 3)
    assert (scores.truth_bodies, scores.truth_segments, scores.prediction_segments) == (1, 2, 2)


def test_size_is_that_of_the_body_and_not_of_its_components(make_volume: Callable[..., Volume]) -> None:
    truth = np.zeros((1, 4, 8), np.uint16)
    truth[0, :, 0], truth[0, 0, 2], truth[0, :, 4] = 1, 1, 2
    volumes = make_volume(truth), make_volume(truth)
    scores = evaluate_instances(*volumes, min_size=5, quiet=True)
    assert (scores.voxels, scores.truth_bodies, scores.truth_segments, scores.left_out_bodies) == (5, 1, 2, 1)


def test_labels_of_any_integer_type_and_a_cut_out_can_be_scored(make_volume: Callable[..., Volume]) -> None:
    labels = random_labels(1, (8, 8, 8))
    box = Box((1, 2, 3), (7, 8, 8))
    whole = make_volume(labels.astype(np.int16))
    cut = make_volume(labels[box.slices], offset=(10.0, 20.0, 30.0))
    scores = evaluate_instances(whole.crop(box), cut, components=False, block=(4, 4, 4), quiet=True)
    assert scores.voi == 0 and scores.voxels == np.count_nonzero(labels[box.slices])


def test_scores_become_plain_json_values(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(random_labels(1, (4, 4, 4)))
    values = evaluate_instances(volume, volume, quiet=True).as_dict()
    assert values["voi"] == values["voi_split"] + values["voi_merge"]
    flat = [*values.items(), *values["floor"].items()]
    assert all(type(v) in (int, float) for k, v in flat if k not in ("floor", "mistakes"))


ONES = np.ones((4, 4, 4), np.uint32)


@pytest.mark.parametrize(
    ("prediction", "truth", "fields", "message"),
    [
        (np.ones((4, 4, 5), np.uint32), ONES, {}, "4 x 4 x 5 .* 4 x 4 x 4.*--region"),
        (ONES, ONES, {"voxel_size": (10.0, 10.0, 9.0)}, "10 x 10 x 9.*--voxel-size"),
        (ONES, ONES, {"offset": (0.0, 0.0, 40.0)}, "0 x 0 x 40.*--region"),
        (ONES.astype(np.float32), ONES, {}, "float32, not labels"),
        (ONES, ONES.astype(np.float32), {}, "float32, not labels"),
        (-ONES.astype(np.int32), ONES, {}, "negative labels"),
        (ONES, 0 * ONES, {}, "every voxel is 0"),
        (np.ones((2, 4, 4, 4), np.uint32), ONES, {"channels": 2}, "2 channels"),
    ],
)
def test_input_that_cannot_be_scored_is_refused_in_one_line(
    make_volume: Callable[..., Volume],
    prediction: NDArray[Any],
    truth: NDArray[Any],
    fields: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        evaluate_instances(make_volume(prediction, **fields), make_volume(truth), quiet=True)
    assert "\n" not in str(refusal.value)


def test_voxel_sizes_and_offsets_may_differ_by_rounding(make_volume: Callable[..., Volume]) -> None:
    rounded = make_volume(ONES, voxel_size=(10.0, 10.0, 10.000001), offset=(0.0, 0.0, 1e-4))
    assert evaluate_instances(rounded, make_volume(ONES), quiet=True).voi == 0


def test_a_minimum_size_that_leaves_nothing_or_is_negative_is_refused(
    make_volume: Callable[..., Volume],
) -> None:
    volume = make_volume(ONES)
    with pytest.raises(DataError, match="no body has 65 voxels or more"):
        evaluate_instances(volume, volume, min_size=65, quiet=True)
    with pytest.raises(UsageError, match="minimum size -1"):
        evaluate_instances(volume, volume, min_size=-1, quiet=True)


@pytest.mark.skipif(not FIB25.exists(), reason=f"needs the fib25 test data at {FIB25}")
def test_the_floor_of_real_bodies_is_what_their_components_in_the_whole_cube_score(
    make_volume: Callable[..., Volume],
) -> None:
    with h5py.File(FIB25) as file:
        bodies = file["bodies"][:50, :128, :128]
    sizes = np.bincount(bodies.ravel())
    kept = np.where(sizes[bodies] >= 1000, bodies, 0)
    volume = make_volume(bodies)
    scores = evaluate_instances(volume, volume, min_size=1000, block=(32, 64, 48), quiet=True)
    expected = straightforward_scores(label(kept, connectivity=1), kept)
    assert scores.floor is not None
    assert scores.floor.voi_split > 0.02
    assert scores.floor.voi_split == pytest.approx(expected["voi_split"], abs=1e-12)
    assert scores.floor.adapted_rand_error == pytest.approx(expected["adapted_rand_error"], abs=1e-12)
    assert scores.truth_bodies == np.count_nonzero(sizes[1:] >= 1000)
