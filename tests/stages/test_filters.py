import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Box
from neurokube.stages.filters import Filter, filter_halo, filtered

KINDS = ("gaussian", "gradient", "laplacian", "hessian")
FINE, COARSE = (8.0, 8.0, 8.0), (40.0, 8.0, 8.0)
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 50, 50), dtype=np.uint8)


def whole(image, kind, *, width=10.0, voxel_size=FINE, flat=False):
    return filtered(image, Box.of(image.shape), voxel_size, Filter(filter=kind, width=width), flat=flat)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("voxel_size", [FINE, COARSE])
def test_a_cut_out_with_its_halo_is_filtered_as_the_whole_image(kind, voxel_size):
    chosen, flat = Filter(filter=kind, width=6.0), voxel_size == COARSE
    inner = Box((7, 20, 20), (12, 33, 30))
    outer = inner.grow(filter_halo([chosen], voxel_size, flat=flat)).clip(Box.of(IMAGE.shape))
    image = np.ascontiguousarray(IMAGE[outer.slices])
    part = filtered(image, inner.relative_to(outer.start), voxel_size, chosen, flat=flat)
    expected = whole(IMAGE, kind, width=6.0, voxel_size=voxel_size, flat=flat)[inner.slices]
    # sums of floats in another order can fall to the other side of a half
    assert np.abs(part.astype(int) - expected).max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 255), st.sampled_from(KINDS))
def test_a_flat_image_has_no_edges(value, kind):
    found = whole(np.full((6, 12, 12), value, np.uint8), kind)
    assert (found == {"gaussian": value, "gradient": 0, "laplacian": 128, "hessian": 128}[kind]).all()


def test_a_dark_sheet_is_above_the_middle_and_a_bright_one_below():
    dark = np.full((9, 21, 21), 200, np.uint8)
    dark[:, :, 10] = 40
    for kind in ("laplacian", "hessian"):
        assert whole(dark, kind)[4, 10, 10] > 140
    assert whole(255 - dark, "laplacian")[4, 10, 10] < 116
    assert whole(dark, "gradient")[4, 10, 8] > whole(dark, "gradient")[4, 10, 10]


def test_thick_sections_are_filtered_one_by_one():
    image = IMAGE.copy()
    image[1::2] = 0
    np.testing.assert_array_equal(whole(image, "gaussian", flat=True)[::2], whole(IMAGE, "gaussian", flat=True)[::2])
