import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from neurokube.stages.basins import LEVELS, basins

PROPERTY = settings(max_examples=60, deadline=None)
SHAPES = st.tuples(*[st.integers(1, 7)] * 3)
HEIGHTS = hnp.arrays(np.uint16, SHAPES, elements=st.sampled_from([0, 1, 2, 5, 9, LEVELS - 2]))


def flooded(height, mask=None, *, flat=False, depth=0, smallest=0):
    return basins(np.array(height, np.uint16, ndmin=3), mask, flat=flat, depth=depth, smallest=smallest)


def row(*heights, **options):
    return flooded([[heights]], **options)[0, 0].tolist()


def lowest_neighbour(height, place, flat):
    """The least of a voxel and its face neighbours by (height, position)."""
    found = [(int(height[place]), place)]
    for axis in range(1 if flat else 0, 3):
        for step in (-1, 1):
            other = tuple(k + step * (a == axis) for a, k in enumerate(place))
            if 0 <= other[axis] < height.shape[axis]:
                found.append((int(height[other]), other))
    return min(found)[1]


def by_hand(height, flat):
    """Follow the steepest way down from each voxel."""
    labels, minima = np.zeros(height.shape, int), {}
    ends = {}
    for place in np.ndindex(*height.shape):
        here = place
        while (lower := lowest_neighbour(height, here, flat)) != here:
            here = lower
        ends[place] = here
    for place in np.ndindex(*height.shape):
        if ends[place] == place:
            minima[place] = len(minima) + 1
    for place, end in ends.items():
        labels[place] = minima[end]
    return labels


@PROPERTY
@given(HEIGHTS, st.booleans())
def test_each_voxel_goes_where_the_steepest_way_down_leads(height, flat):
    # equal neighbours are one basin even at a depth of 0, so all heights are made different
    distinct = np.argsort(np.argsort(height.ravel(), kind="stable")).reshape(height.shape).astype(np.uint16)
    np.testing.assert_array_equal(flooded(distinct, flat=flat), by_hand(distinct, flat))


@PROPERTY
@given(HEIGHTS, st.booleans(), st.integers(0, 10), st.integers(0, 40))
def test_basins_are_connected_and_numbered_from_one(height, flat, depth, smallest):
    labels = flooded(height, flat=flat, depth=depth, smallest=smallest)
    found = list(dict.fromkeys(labels.ravel().tolist()))
    assert sorted(found) == list(range(1, len(found) + 1))
    for label in found:
        assert ndimage.label(labels == label)[1] == 1
    if flat:
        assert all(len({z for z in np.nonzero(labels == label)[0]}) == 1 for label in found)


@PROPERTY
@given(HEIGHTS, st.integers(0, 10))
def test_what_is_left_is_as_many_as_minima_that_are_deep(height, depth):
    """As many as h-minima: the regional minima of the reconstruction by erosion of the height raised by h."""
    filled = height.astype(int) + depth
    while True:
        lower = np.maximum(height, ndimage.grey_erosion(filled, footprint=FACES, mode="reflect"))
        if (lower == filled).all():
            break
        filled = np.minimum(filled, lower)
    regions = 0
    for level in np.unique(filled):
        parts, count = ndimage.label(filled == level, FACES)
        for part in range(1, count + 1):
            rim = ndimage.binary_dilation(parts == part, FACES) & (parts != part)
            regions += not (filled[rim] < level).any()
    assert flooded(height, depth=depth).max() == regions


FACES = ndimage.generate_binary_structure(3, 1)


def test_a_shallow_basin_joins_over_the_lower_of_its_saddles():
    assert row(0, 9, 5, 7, 1, depth=1) == [1, 1, 2, 3, 3]
    assert row(0, 9, 5, 7, 1, depth=2) == [1, 1, 2, 2, 2]
    assert row(0, 9, 5, 7, 1, depth=9) == [1, 1, 1, 1, 1]


def test_a_small_basin_joins_over_its_lowest_saddle_however_deep_it_is():
    assert row(0, 0, 0, 900, 1, 800, 0, 0, 0, smallest=2) == [1, 1, 1, 1, 2, 2, 2, 2, 2]


def test_a_small_basin_alone_stays():
    assert row(3, smallest=10) == [1]


def test_a_flat_height_is_one_basin():
    assert (flooded(np.full((6, 7, 8), 5)) == 1).all()
    ring = np.full((1, 9, 9), 5)
    ring[0, 3:6, 3:6] = 100
    assert flooded(ring)[ring == 5].max() == 1


@PROPERTY
@given(HEIGHTS, st.booleans(), st.data())
def test_nothing_outside_the_mask_is_in_a_basin_and_all_inside_is(height, flat, data):
    mask = data.draw(hnp.arrays(bool, height.shape))
    labels = flooded(height, mask, flat=flat, depth=2, smallest=3)
    np.testing.assert_array_equal(labels > 0, mask)
    for label in range(1, int(labels.max(initial=0)) + 1):
        assert ndimage.label(labels == label)[1] == 1


@pytest.mark.parametrize("flat", [False, True])
def test_a_basin_does_not_reach_through_the_mask(flat):
    height, mask = np.zeros((2, 5, 5), np.uint16), np.ones((2, 5, 5), bool)
    mask[:, 2] = False
    labels = flooded(height, mask, flat=flat, depth=LEVELS)
    assert labels.max() == (4 if flat else 2)
    assert not np.intersect1d(labels[:, :2], labels[:, 3:]).size
