import numpy as np
import pytest
from blobs import QUIET
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from neurokube.training.augmentation import deform, expose, margin, permute_window
from neurokube.training.config import Augmentation

WINDOW = (6, 48, 48)
CUBIC, FLAT = (10.0, 10.0, 10.0), (40.0, 8.0, 8.0)
ALL, NONE = Augmentation(), Augmentation(**QUIET)


def source(augmentation, voxel_size, seed=0):
    """Return a bright structure as wide as `deform` needs it, and the bits of where it is."""
    reach = margin(augmentation, voxel_size, WINDOW)
    shape = tuple(w + 2 * m for w, m in zip(WINDOW, reach, strict=True))
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (1, 6, 6))
    mask = field > 0
    return mask.astype(np.float32), mask.astype(np.uint32) * 5


def overlap(image, bits):
    bright, marked = image > 0.5, bits == 5
    return (bright & marked).sum() / (bright | marked).sum()


@settings(max_examples=10)
@given(st.sampled_from([CUBIC, FLAT]), st.integers(0, 99))
def test_truth_moves_with_the_image(voxel_size, seed):
    random = np.random.default_rng(seed)
    image, bits = source(ALL, voxel_size, seed)
    moved, (marks,) = deform(ALL, voxel_size, WINDOW, image, [bits], random)
    turned, (marks,) = permute_window(voxel_size, WINDOW, moved, [marks], random)
    assert turned.shape == marks.shape == WINDOW and set(np.unique(marks)) <= {0, 5}
    assert overlap(turned, marks) > 0.95


@pytest.mark.parametrize("part", ["rotation", "scale", "elastic", "shift"])
def test_each_part_of_the_deformation_does_something(part):
    settings = Augmentation(**{**QUIET, part: getattr(ALL, part)})
    image, bits = source(settings, FLAT)
    plain = image[tuple(slice(m, m + w) for m, w in zip(margin(settings, FLAT, WINDOW), WINDOW, strict=True))]
    changes = []
    for seed in range(5):
        moved, (marks,) = deform(settings, FLAT, WINDOW, image, [bits], np.random.default_rng(seed))
        assert overlap(moved, marks) > 0.95
        changes.append(np.abs(moved - plain).mean())
    assert max(changes) > 0.02


def test_the_margin_holds_all_that_a_window_can_need():
    image, bits = source(ALL, FLAT)
    for seed in range(20):
        _, (known,) = deform(ALL, FLAT, WINDOW, image, [np.ones_like(bits)], np.random.default_rng(seed))
        assert known.all()


def test_sections_shift_only_where_they_are_thick():
    settings = Augmentation(**{**QUIET, "shift": 60})
    assert margin(settings, CUBIC, WINDOW) == (0, 0, 0)
    image, bits = source(settings, FLAT)
    image[:] = image[0]
    moved, _ = deform(settings, FLAT, WINDOW, image, [bits], np.random.default_rng(0))
    assert np.abs(np.diff(moved, axis=0)).mean() > 0.01


def test_no_augmentation_changes_nothing():
    image, bits = source(NONE, FLAT)
    moved, (marks,) = deform(NONE, FLAT, WINDOW, image, [bits], np.random.default_rng(0))
    assert np.abs(moved - image).max() < 1e-4 and np.array_equal(marks, bits)
    assert np.array_equal(expose(NONE, image, np.random.default_rng(0)), image)


@settings(max_examples=20)
@given(st.integers(0, 999), st.sampled_from([WINDOW, (1, 8, 8)]))
def test_exposures_keep_shape_and_finiteness(seed, shape):
    image = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    exposed = expose(ALL, image, np.random.default_rng(seed))
    assert exposed.shape == shape and exposed.dtype == np.float32 and np.isfinite(exposed).all()
    constant = expose(ALL, np.zeros(shape, np.float32), np.random.default_rng(seed))
    assert np.isfinite(constant).all()


@pytest.mark.parametrize("part", ["contrast", "gamma", "section_contrast", "noise", "blur", "dark", "missing"])
def test_each_part_of_the_exposure_does_something(part):
    settings = Augmentation(**{**QUIET, part: max(0.5, getattr(ALL, part))})
    image = np.random.default_rng(0).standard_normal(WINDOW).astype(np.float32)
    changed = [np.abs(expose(settings, image, np.random.default_rng(n)) - image).mean() > 0.01 for n in range(10)]
    assert sum(changed) >= 3


def test_sections_are_missing_and_dark_as_often_as_asked():
    image = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
    missing = Augmentation(**{**QUIET, "missing": 0.2})
    blank = [(np.ptp(expose(missing, image, np.random.default_rng(n)), (1, 2)) == 0).mean() for n in range(300)]
    assert 0.15 < np.mean(blank) < 0.25
    dark = Augmentation(**{**QUIET, "dark": 0.2})
    weak = [(expose(dark, image, np.random.default_rng(n)).std((1, 2)) < 0.85 * image.std((1, 2))) for n in range(300)]
    assert 0.15 < np.mean(weak) < 0.25
