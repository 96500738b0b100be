import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Box, parse_region
from neurokube.errors import UsageError

PROPERTY = settings(max_examples=50, deadline=None)

VECTORS = st.tuples(*[st.integers(0, 8)] * 3)
BOXES = st.builds(lambda a, b: Box(tuple(map(min, a, b)), tuple(map(max, a, b))), VECTORS, VECTORS)


def marked(box):
    canvas = np.zeros((8, 8, 8), bool)
    canvas[box.slices] = True
    return canvas


@PROPERTY
@given(BOXES, BOXES)
def test_clipping_keeps_exactly_the_common_voxels(one, other):
    common = one.clip(other)
    np.testing.assert_array_equal(marked(common), marked(one) & marked(other))
    assert common.size == np.count_nonzero(marked(common))


@PROPERTY
@given(BOXES, BOXES)
def test_a_box_contains_another_if_all_its_voxels_are_inside(one, other):
    if other.size:
        assert one.contains(other) == bool((marked(one) | ~marked(other)).all())


@PROPERTY
@given(BOXES, VECTORS)
def test_growing_by_a_halo_adds_it_on_either_side(box, halo):
    grown = box.grow(halo)
    assert grown.contains(box)
    assert grown.shape == tuple(n + 2 * h for n, h in zip(box.shape, halo, strict=True))


@PROPERTY
@given(BOXES, VECTORS)
def test_relative_coordinates_shift_back(box, origin):
    assert box.relative_to(origin).shift(origin) == box


@PROPERTY
@given(BOXES)
def test_a_region_reads_back_as_the_box_it_was_written_from(box):
    if box.size:
        assert parse_region(str(box)) == box


@pytest.mark.parametrize(
    "text",
    ["", "0:5", "0:5,0:5", "0:5,0:5,0:5,0:5", "a:5,0:5,0:5", "0-5,0-5,0-5", "0:5,0:5,0", "1:2:3,0:5,0:5"],
)
def test_a_region_of_another_form_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"^region '.*': write it as Z0:Z1,Y0:Y1,X0:X1 in voxels, as 0:50"):
        parse_region(text)


@pytest.mark.parametrize("text", ["5:5,0:5,0:5", "5:0,0:5,0:5", "-1:5,0:5,0:5"])
def test_an_empty_or_negative_region_is_refused(text):
    with pytest.raises(UsageError, match="each axis needs 0 <= start < stop"):
        parse_region(text)
