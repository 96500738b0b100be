from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurokube.blocks import Box
from neurokube.stages import Source, VolumeOutput
from neurokube.stages.boundaries import Boundaries, filter_halo, ridge_filter
from neurokube.volumes import VolumeSpec

SCALES = (10.0, 16.0)
COARSE, FINE = (40.0, 8.0, 8.0), (8.0, 8.0, 8.0)


def tissue(shape, sheet, voxel_size, *, seed=0):
    """Noisy bright cytosol with a dark sheet, 20 nm thick, where `sheet` gives the distance to it in nm."""
    axes = np.meshgrid(*[np.arange(n) * v for n, v in zip(shape, voxel_size, strict=True)], indexing="ij")
    image = 170 - 110 * np.exp(-((sheet(*axes) / 10) ** 2))
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.7) * 15
    return np.clip(image + noise, 0, 255).astype(np.uint8), sheet(*axes)


def ridges(image, voxel_size, **options):
    options = {"scales": SCALES, "flat": voxel_size == COARSE, **options}
    return ridge_filter(image, Box.of(image.shape), voxel_size, **options)


SHEETS = [
    pytest.param(lambda z, y, x: np.abs(x - 240), id="across x"),
    pytest.param(lambda z, y, x: np.abs(x + y - 480) / np.sqrt(2), id="oblique"),
    pytest.param(lambda z, y, x: np.abs(np.hypot(x - 240, y - 240) - 150), id="curved"),
]


@pytest.mark.parametrize("voxel_size", [COARSE, FINE], ids=["section by section", "in 3D"])
@pytest.mark.parametrize("sheet", SHEETS)
def test_a_dark_sheet_is_found_and_cytosol_is_not(sheet, voxel_size):
    image, distance = tissue((4 if voxel_size == COARSE else 32, 64, 64), sheet, voxel_size)
    found = ridges(image, voxel_size)
    assert np.mean(found[distance < 5] > 110) > 0.95
    assert np.mean(found[distance > 60] > 110) < 0.01


def test_a_sheet_across_z_is_found_in_3d():
    image, distance = tissue((32, 64, 64), lambda z, y, x: np.abs(z - 120), FINE)
    found = ridges(image, FINE)
    assert np.mean(found[distance < 5] > 110) > 0.95
    assert np.mean(found[distance > 60] > 110) < 0.01


def test_bright_sheets_are_found_when_the_image_is_inverted():
    image, distance = tissue((2, 64, 64), lambda z, y, x: np.abs(x - 240), COARSE)
    assert ridges(255 - image, COARSE)[distance < 5].mean() < 20
    np.testing.assert_array_equal(ridges(255 - (255 - image), COARSE), ridges(image, COARSE))


def test_more_contrast_counts_more_as_membrane():
    image, _ = tissue((2, 64, 64), lambda z, y, x: np.abs(x - 240), COARSE)
    assert (ridges(image, COARSE, contrast=2.0) >= ridges(image, COARSE, contrast=1.0)).all()


@pytest.mark.parametrize("gray", [0, 128, 255])
def test_a_blank_image_has_no_boundaries(gray):
    assert not ridges(np.full((2, 64, 64), gray, np.uint8), COARSE).any()


@pytest.mark.parametrize("change", [lambda i: i // 2, lambda i: i // 2 + 100])
def test_brightness_and_contrast_of_the_image_matter_little(change):
    image, distance = tissue((2, 64, 64), lambda z, y, x: np.abs(x - 240), COARSE)
    changed = ridges(change(image), COARSE)
    assert np.mean(changed[distance < 5] > 110) > 0.95
    assert np.mean(changed[distance > 60] > 110) < 0.01


def test_a_section_alone_does_not_see_its_neighbours():
    image, _ = tissue((3, 64, 64), lambda z, y, x: np.abs(x - 240), COARSE)
    before = ridges(image, COARSE)[1]
    image[[0, 2]] = 0
    np.testing.assert_array_equal(ridges(image, COARSE)[1], before)


def test_a_tile_with_its_halo_nearly_equals_the_same_part_of_the_whole():
    image, _ = tissue((1, 160, 160), lambda z, y, x: np.abs(np.hypot(x - 640, y - 640) - 300), COARSE)
    box = Box((0, 48, 48), (1, 112, 112))
    outer = box.grow(filter_halo(SCALES, COARSE, flat=True)).clip(Box.of(image.shape))
    tile = ridge_filter(image[outer.slices], box.relative_to(outer.start), COARSE, scales=SCALES, flat=True)
    difference = np.abs(tile.astype(int) - ridges(image, COARSE)[box.slices])
    assert np.mean(difference) < 2
    assert np.mean(difference > 16) < 0.02


def test_the_halo_is_the_same_length_along_each_axis_and_none_across_sections():
    assert filter_halo(SCALES, (40.0, 8.0, 4.0), flat=True) == (0, 30, 60)
    assert filter_halo(SCALES, (40.0, 8.0, 4.0), flat=False) == (6, 30, 60)
    assert filter_halo((100.0,), (8.0, 8.0, 8.0), flat=False) == (57, 57, 57)


def source(spec, folder="/none"):
    return Source("image", "volume", {"image": VolumeOutput("image", spec, (16, 64, 64))}, {"image": str(Path(folder))})


def test_the_output_has_the_place_of_the_image_and_a_pyramid():
    image = VolumeSpec((20, 600, 700), "uint8", COARSE, offset=(40.0, 80.0, 0.0))
    output = Boundaries().outputs({"image": source(image)})["boundaries"]
    assert output.spec == image
    assert [step.name for step in Boundaries().steps({"image": source(image)})] == [
        "boundaries",
        *(f"pyramid-{level}" for level in range(1, len(output.factors))),
    ]
    assert len(output.factors) > 1
