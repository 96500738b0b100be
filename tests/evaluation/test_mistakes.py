"""The worst splits and merges, and their places."""

from collections.abc import Callable
from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurokube.blocks import Box, Vector
from neurokube.errors import UsageError
from neurokube.evaluation import InstanceScores, Mistake, Part, evaluate_instances
from neurokube.volumes import Volume

MakeVolume = Callable[..., Volume]


def score(make_volume: MakeVolume, prediction: NDArray[Any], truth: NDArray[Any], **options: Any) -> InstanceScores:
    options = {"worst": 10, "quiet": True, **options}
    return evaluate_instances(make_volume(prediction), make_volume(truth), **options)


def mistakes(make_volume: MakeVolume, prediction: NDArray[Any], truth: NDArray[Any], **options: Any) -> list[Mistake]:
    return list(score(make_volume, prediction, truth, **options).mistakes)


def test_the_cremi_score_is_the_geometric_mean_of_voi_and_adapted_rand_error(make_volume: MakeVolume) -> None:
    truth = np.ones((1, 2, 8), np.uint32)
    halves = np.where(np.arange(8) < 4, 1, 2) * truth
    scores = score(make_volume, halves.astype(np.uint32), truth)
    assert scores.voi == 1 and scores.adapted_rand_error == pytest.approx(1 / 3)
    assert scores.cremi == pytest.approx((1 / 3) ** 0.5)
    assert scores.as_dict()["cremi"] == scores.cremi
    assert score(make_volume, truth, truth).cremi == 0


def test_a_split_is_placed_where_the_pieces_of_a_body_touch(make_volume: MakeVolume) -> None:
    truth = np.zeros((5, 9, 20), np.uint32)
    truth[1:4, 2:7, 2:18] = 7
    pieces = np.where(np.arange(20) < 12, 30, 40) * (truth != 0)
    (split,) = mistakes(make_volume, pieces.astype(np.uint32), truth)
    assert (split.kind, split.label, split.meeting, split.between) == ("split", 7, "touch", (30, 40))
    assert split.parts == (Part(30, 150), Part(40, 90)) and split.voxels == 240
    assert split.bits == pytest.approx(150 / 240 * log2(240 / 150) + 90 / 240 * log2(240 / 90))
    # the middle of the plane between them, on its lower side
    assert split.voxel == (2, 4, 11)
    assert split.position == (20.0, 40.0, 110.0)
    assert (split.segments, split.bodies) == ((30, 40), (7,))


def test_a_merge_is_placed_in_the_gap_where_its_bodies_do_not_touch(make_volume: MakeVolume) -> None:
    truth = np.zeros((1, 7, 30), np.uint32)
    truth[:, :, :10], truth[:, 1:6, 13:] = 1, 2
    merged = np.full(truth.shape, 5, np.uint32)
    (merge,) = mistakes(make_volume, merged, truth)
    assert (merge.kind, merge.label, merge.meeting, merge.between) == ("merge", 5, "near", (2, 1))
    assert merge.voxel == (0, 3, 11)
    assert (merge.segments, merge.bodies) == ((5,), (2, 1))


def test_where_parts_are_far_apart_the_place_is_in_the_middle_of_the_second(make_volume: MakeVolume) -> None:
    truth = np.zeros((3, 9, 60), np.uint32)
    truth[:, :, :20], truth[:, 2:7, 50:55] = 1, 2
    (merge,) = mistakes(make_volume, np.full(truth.shape, 5, np.uint32), truth)
    assert (merge.meeting, merge.voxel) == ("apart", (1, 4, 52))


def test_a_merge_is_placed_at_the_body_that_joins_others_which_do_not_meet(make_volume: MakeVolume) -> None:
    truth = np.zeros((1, 8, 70), np.uint32)
    truth[:, :, :30], truth[:, :, 42:], truth[:, 3:5, 30:42] = 1, 2, 3
    (merge,) = mistakes(make_volume, np.full(truth.shape, 5, np.uint32), truth)
    assert [part.label for part in merge.parts] == [1, 2, 3]
    assert (merge.meeting, merge.between) == ("touch", (1, 3))
    assert merge.voxel == (0, 3, 29)


def test_what_the_prediction_leaves_0_is_neither_a_split_nor_a_merge(make_volume: MakeVolume) -> None:
    truth = np.where(np.arange(16) < 8, 1, 2).astype(np.uint32)[None, None].repeat(4, axis=1)
    prediction = truth.copy()
    prediction[:, :2] = 0
    assert mistakes(make_volume, prediction, truth) == []


def test_a_cell_that_leaves_and_comes_back_is_no_mistake_whatever_its_parts_are_called(make_volume: MakeVolume) -> None:
    truth = np.zeros((2, 4, 12), np.uint32)
    truth[..., :3], truth[..., 9:] = 1, 1
    one, two = truth.copy(), truth.copy()
    two[..., 9:] = 2 * (truth[..., 9:] != 0)
    for prediction in (one, two):
        assert mistakes(make_volume, prediction, truth) == []
    (split,) = mistakes(make_volume, two, truth, components=False)
    assert split.kind == "split"


def test_the_worst_come_first_and_as_many_of_each_kind_as_were_asked_for(make_volume: MakeVolume) -> None:
    truth = np.random.default_rng(0).integers(1, 9, (6, 20, 20)).repeat(2, axis=2).astype(np.uint32)
    prediction = np.random.default_rng(1).integers(1, 9, truth.shape).astype(np.uint32)
    found = mistakes(make_volume, prediction, truth, worst=3, components=False)
    assert [m.kind for m in found] == ["split"] * 3 + ["merge"] * 3
    everything = score(make_volume, prediction, truth, worst=1000, components=False)
    for kind, total in (("split", everything.voi_split), ("merge", everything.voi_merge)):
        bits = [m.bits for m in everything.mistakes if m.kind == kind]
        assert bits == sorted(bits, reverse=True)
        assert [m.bits for m in found if m.kind == kind] == bits[:3]
        # nothing is labelled 0 here, so that the shares add up to the score
        assert sum(bits) == pytest.approx(total)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(2, 24)] * 3),
    st.booleans(),
    st.sampled_from([(10.0, 10.0, 10.0), (40.0, 8.0, 8.0)]),
)
def test_mistakes_and_their_places_do_not_depend_on_blocks(
    make_volume: MakeVolume, seed: int, block: Vector, components: bool, voxel_size: Any
) -> None:
    random = np.random.default_rng(seed)
    shape = (8, 20, 24)

    def labels() -> NDArray[np.uint64]:
        coarse = random.integers(0, 5, (2, 4, 4), np.uint64)
        fine = coarse.repeat(4, 0).repeat(5, 1).repeat(6, 2)
        fine[random.random(shape) < 0.05] = 0
        return fine

    volumes = [make_volume(labels(), voxel_size=voxel_size) for _ in range(2)]
    found = [
        evaluate_instances(*volumes, components=components, worst=4, block=b, quiet=True).mistakes
        for b in (shape, block)
    ]
    assert found[0] == found[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_parts_touch_at_a_place_that_says_so_and_nowhere_if_it_does_not(make_volume: MakeVolume, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, prediction = (random.integers(0, 4, (3, 5, 5)).repeat(2, 1).repeat(2, 2).astype(np.uint32) for _ in range(2))
    for found in mistakes(make_volume, prediction, truth, components=False, block=(2, 4, 4)):
        outer, inner = (truth, prediction) if found.kind == "split" else (prediction, truth)
        parts = np.where(outer == found.label, inner, 0)
        touching = set()
        for axis in range(3):
            low, high = np.swapaxes(parts, 0, axis)[:-1], np.swapaxes(parts, 0, axis)[1:]
            touching |= set(zip(low.ravel().tolist(), high.ravel().tolist(), strict=True))
        meets = [
            p.label
            for p in found.parts[1:]
            if {(found.parts[0].label, p.label), (p.label, found.parts[0].label)} & touching
        ]
        assert (found.meeting == "touch") == bool(meets)
        if meets:
            assert found.between == (found.parts[0].label, meets[0])
            assert parts[found.voxel] in found.between


def test_places_in_a_cut_out_are_those_of_the_whole(make_volume: MakeVolume) -> None:
    truth = np.ones((8, 20, 20), np.uint32)
    prediction = np.where(np.arange(20) < 10, 1, 2).astype(np.uint32) * truth
    box = Box((2, 5, 5), (7, 16, 20))
    whole = [make_volume(a, offset=(100.0, 0.0, 0.0)) for a in (prediction, truth)]
    (split,) = evaluate_instances(*(v.crop(box) for v in whole), worst=1, start=box.start, quiet=True).mistakes
    assert split.voxel == (4, 10, 9)
    assert split.position == (100 + 40.0, 100.0, 90.0)


def test_only_a_sensible_number_of_mistakes_can_be_asked_for(make_volume: MakeVolume) -> None:
    volume = make_volume(np.ones((2, 2, 2), np.uint32))
    for worst in (-1, 1001):
        with pytest.raises(UsageError, match="from 0 to 1000"):
            evaluate_instances(volume, volume, worst=worst, quiet=True)
