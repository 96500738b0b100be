import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Blend, Box, WindowGrid, quantized
from neurokube.blocks.blending import ramp
from neurokube.errors import UsageError

PROPERTY = settings(max_examples=50, deadline=None)

GRID = WindowGrid((5, 14, 17), (3, 7, 8), (2, 3, 4), (0, 1, 2))
PREDICTIONS = np.random.default_rng(0).random((len(GRID), 2, *GRID.window), np.float32)


def vectors(*limits):
    return st.tuples(*[st.integers(0, n) for n in limits])


CPU = torch.device("cpu")
"""Where a device adds up that is here whether or not there is a card."""


def blend(box, predictions, grid=GRID, device=None):
    merged = Blend(grid, box, predictions.shape[1], device)
    for index in grid.touching(box):
        merged.add(index, predictions[index])
    return merged.sum


WHOLE = blend(Box.of(GRID.shape), PREDICTIONS)


@PROPERTY
@given(vectors(*GRID.shape), vectors(*GRID.shape))
def test_the_blend_of_a_box_is_bitwise_that_of_the_whole(a, b):
    box = Box(tuple(map(min, a, b)), tuple(map(max, a, b)))
    np.testing.assert_array_equal(blend(box, PREDICTIONS), WHOLE[(slice(None), *box.slices)])


@PROPERTY
@given(vectors(*GRID.shape), vectors(*GRID.shape))
def test_a_device_makes_the_same_bits(a, b):
    box = Box(tuple(map(min, a, b)), tuple(map(max, a, b)))
    found = blend(box, torch.from_numpy(PREDICTIONS), device=CPU).numpy()
    np.testing.assert_array_equal(found, WHOLE[(slice(None), *box.slices)])


@PROPERTY
@given(st.lists(st.floats(-1, 2, width=32), min_size=1))
def test_a_device_rounds_to_the_same_bytes(values):
    array = np.array([*values, *(np.arange(511, dtype=np.float32) / 510)], np.float32)
    found = quantized(torch.from_numpy(array)).numpy()
    np.testing.assert_array_equal(found, quantized(array))


@st.composite
def window_grids(draw):
    stride, overlap, halo = (tuple(draw(st.integers(least, 5)) for _ in range(3)) for least in (1, 0, 0))
    overlap = tuple(min(o, s) for o, s in zip(overlap, stride, strict=True))
    window = tuple(s + o + 2 * h for s, o, h in zip(stride, overlap, halo, strict=True))
    return WindowGrid(tuple(draw(st.integers(1, 30)) for _ in range(3)), window, stride, halo)


@PROPERTY
@given(window_grids(), st.floats(0.125, 1000, width=32))
def test_constant_predictions_blend_to_that_constant(grid, value):
    for axis in range(3):
        total = np.zeros(grid.shape[axis])
        for k in range(len(grid.starts[axis])):
            start, stop = grid.span(axis, k)
            total[start:stop] += ramp(grid, axis, k) * np.float32(value)
        np.testing.assert_allclose(total, value, rtol=1e-6)


def test_a_blend_lies_between_the_predictions_it_merges():
    low, high = np.full(GRID.shape, np.inf, np.float32), np.full(GRID.shape, -np.inf, np.float32)
    for index in range(len(GRID)):
        core = GRID.core(index)
        inner = PREDICTIONS[index, 0][core.relative_to(GRID.box(index).start).slices]
        low[core.slices] = np.minimum(low[core.slices], inner)
        high[core.slices] = np.maximum(high[core.slices], inner)
    assert (WHOLE[0] >= low - 1e-6).all()
    assert (WHOLE[0] <= high + 1e-6).all()


def test_halos_count_only_at_the_faces_of_the_volume():
    grid = WindowGrid((1, 1, 40), (1, 1, 12), (1, 1, 6), (0, 0, 3))
    numbered = np.broadcast_to(np.arange(len(grid), dtype=np.float32).reshape(-1, 1, 1, 1, 1), (len(grid), 1, 1, 1, 12))
    values = blend(Box.of(grid.shape), numbered, grid)[0, 0, 0]
    np.testing.assert_array_equal(values, np.minimum(np.arange(40) // 6, len(grid) - 1))


def test_windows_that_leave_gaps_are_refused():
    with pytest.raises(UsageError, match="leave gaps"):
        WindowGrid((5, 14, 17), (3, 7, 8), (2, 3, 4), (1, 1, 2))
