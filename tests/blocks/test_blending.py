import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Blend, Box, WindowGrid, blending_weights

PROPERTY = settings(max_examples=50, deadline=None)

GRID = WindowGrid((5, 14, 17), (3, 6, 6), (2, 3, 4))
OVERLAP = (1, 3, 2)
PREDICTIONS = np.random.default_rng(0).random((len(GRID), 2, *GRID.window), np.float32)


def vectors(*limits):
    return st.tuples(*[st.integers(0, n) for n in limits])


def blend(box, predictions):
    weights = blending_weights(GRID.window, OVERLAP)
    merged = Blend(box, 2, weights)
    for index in GRID.touching(box):
        merged.add(GRID.box(index), predictions[index])
    return merged.result()


WHOLE = blend(Box.of(GRID.shape), PREDICTIONS)


@PROPERTY
@given(vectors(*GRID.shape), vectors(*GRID.shape))
def test_the_blend_of_a_box_is_bitwise_that_of_the_whole(a, b):
    box = Box(tuple(map(min, a, b)), tuple(map(max, a, b)))
    np.testing.assert_array_equal(blend(box, PREDICTIONS), WHOLE[(slice(None), *box.slices)])


@PROPERTY
@given(st.floats(0.125, 1000, width=32))
def test_constant_predictions_blend_to_that_constant(value):
    constant = np.full_like(PREDICTIONS, value)
    np.testing.assert_allclose(blend(Box.of(GRID.shape), constant), value, rtol=1e-6)


def test_a_blend_lies_between_the_predictions_it_merges():
    low, high = np.full(GRID.shape, np.inf, np.float32), np.full(GRID.shape, -np.inf, np.float32)
    for index in range(len(GRID)):
        part = GRID.box(index).slices
        low[part] = np.minimum(low[part], PREDICTIONS[index, 0])
        high[part] = np.maximum(high[part], PREDICTIONS[index, 0])
    assert (WHOLE[0] >= low - 1e-6).all()
    assert (WHOLE[0] <= high + 1e-6).all()


def test_a_window_outside_the_box_changes_nothing():
    merged = Blend(Box.of((2, 2, 2)), 1, blending_weights((2, 2, 2), (0, 0, 0)))
    merged.add(Box((2, 0, 0), (4, 2, 2)), np.ones((1, 2, 2, 2), np.float32))
    assert not merged.result().any()


@PROPERTY
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(0, 9)] * 3))
def test_weights_are_positive_symmetric_and_at_most_one(window, overlap):
    weights = blending_weights(window, overlap)
    assert weights.shape == window
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])


def test_without_overlap_every_voxel_weighs_the_same():
    assert (blending_weights((3, 4, 5), (0, 0, 0)) == 1).all()
