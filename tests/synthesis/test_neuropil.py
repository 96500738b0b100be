"""Synthetic neuropil: the same however it is cut, without seams, and like tissue."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import binary_dilation, find_objects, label

from neurokube.blocks import Box
from neurokube.errors import ConfigurationError
from neurokube.synthesis import ARRAYS, Neuropil, neuropil, synthesize
from neurokube.synthesis.neurites import Neurites
from neurokube.synthesis.tissue import ORGANELLES, Density, Tissue

# the coarse one just misses tiles twice as thick
COARSE, FINE = (50.0, 10.0, 10.0), (10.0, 10.0, 10.0)
PLAIN = Neuropil(seed=3)
# across the edge where four tiles meet, and across the face of two
WHOLE = {COARSE: Box((1, 70, 4), (15, 200, 124)), FINE: Box((2, 10, 70), (60, 120, 190))}


@pytest.fixture(scope="module")
def wholes():
    return {voxel_size: synthesize(PLAIN, voxel_size, box, ARRAYS) for voxel_size, box in WHOLE.items()}


@st.composite
def cuts(draw, whole):
    start = [draw(st.integers(a, b - 1)) for a, b in zip(whole.start, whole.stop, strict=True)]
    stop = [draw(st.integers(a + 1, b)) for a, b in zip(start, whole.stop, strict=True)]
    return Box(tuple(start), tuple(stop))


@pytest.mark.parametrize("voxel_size", [COARSE, FINE])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_cut_is_the_same_bit_for_bit_whatever_box_it_was_cut_from(wholes, voxel_size, data):
    box = data.draw(cuts(WHOLE[voxel_size]))
    within = box.relative_to(WHOLE[voxel_size].start).slices
    for name, values in synthesize(PLAIN, voxel_size, box, ARRAYS).items():
        assert np.array_equal(values, wholes[voxel_size][name][within]), name


def test_a_cut_is_the_same_when_nothing_is_remembered(wholes):
    box = Box(WHOLE[COARSE].start, tuple(n + 3 for n in WHOLE[COARSE].start))
    neuropil._tile.cache_clear()
    for name, values in synthesize(PLAIN, COARSE, box, ARRAYS).items():
        assert np.array_equal(values, wholes[COARSE][name][:3, :3, :3]), name


@pytest.mark.parametrize("voxel_size", [COARSE, FINE])
def test_tiles_meet_without_a_seam(wholes, voxel_size):
    whole = WHOLE[voxel_size]
    for axis, tile in enumerate(neuropil.tile_shape(voxel_size)):
        face = -whole.start[axis] % tile
        if face < whole.shape[axis]:
            for name, bound in (("labels", 1), ("membranes", 1), ("image", 40)):
                values = wholes[voxel_size][name].astype(np.int64)
                changed = (np.abs(np.diff(values, axis=axis)) >= bound).mean(tuple({0, 1, 2} - {axis}))
                elsewhere = np.delete(changed, face - 1)
                assert 0.5 * np.median(elsewhere) < changed[face - 1] <= 1.1 * elsewhere.max(), (axis, name)


def test_pieces_of_tissue_agree_where_they_overlap():
    neurites, settings = Neurites(0, 320), {"density": Density(1, 1, 1, 1), "gap": 20}
    one = Tissue(neurites, np.array([0, 0, 0]), np.array([500, 500, 500]), **settings)
    other = Tissue(neurites, np.array([10, 20, 350]), np.array([500, 510, 900]), **settings)
    points = np.random.default_rng(0).uniform([10, 20, 350], [500, 500, 500], (20_000, 3))
    a, b = (piece.sample(*(points - piece.origin).T.astype(np.float32)) for piece in (one, other))
    assert (one.cells[a.cell] == other.cells[b.cell]).mean() > 0.9999
    distances = [[s.membrane, *(s.organelles[n].distance for n in sorted(ORGANELLES))] for s in (a, b)]
    for x, y in zip(*distances, strict=True):
        close = np.minimum(x, y) < 8
        assert (np.abs(x - y)[close] >= 1).sum() <= 0.005 * close.sum()


def test_tissue_is_the_same_at_another_voxel_size():
    still = Neuropil(shift=0)
    fine = synthesize(still, (11, 11, 11), Box((1, 10, 10), (31, 120, 120)), ("labels",))["labels"]
    coarse = synthesize(still, (33, 11, 11), Box((0, 10, 10), (10, 120, 120)), ("labels",))["labels"]
    assert (fine[::3] == coarse).mean() > 0.999


def test_every_voxel_belongs_to_a_cell_and_every_border_lies_in_a_membrane(wholes):
    for whole in wholes.values():
        labels, membranes = whole["labels"], whole["membranes"]
        assert labels.min() >= 1
        assert labels.max() < 2**53
        border = labels[:, :, 1:] != labels[:, :, :-1]
        assert ((membranes[:, :, 1:] | membranes[:, :, :-1])[border] == 1).mean() > 0.999


def test_cells_are_connected():
    labels = synthesize(PLAIN, (20, 20, 20), Box((0, 0, 0), (64, 64, 128)), ("labels",))["labels"]
    cells, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + 1
    in_few = 0
    for cell, place in enumerate(find_objects(dense), 1):
        parts = np.bincount(label(dense[place] == cell)[0].ravel())[1:]
        in_few += np.sort(parts)[-3:].sum()
    assert len(cells) > 30
    assert in_few > 0.995 * labels.size


def test_neurites_have_the_diameter_asked_for():
    for diameter in (280, 420):
        box = Box((0, 0, 0), (4, 128, 256))
        labels = synthesize(Neuropil(neurite_diameter=diameter), (150, 16, 16), box, ("labels",))["labels"]
        profiles = []
        for section in labels:
            dense = np.unique(section, return_inverse=True)[1].reshape(section.shape) + 1
            for cell, place in enumerate(find_objects(dense), 1):
                profiles.append(np.bincount(label(dense[place] == cell)[0].ravel())[1:])
        diameters = np.sqrt(np.concatenate(profiles) * 16 * 16 * 4 / np.pi)
        assert abs(np.median(diameters) - diameter) < 0.15 * diameter
        assert np.percentile(diameters, 90) > 1.8 * np.percentile(diameters, 20)


def test_mitochondria_and_vesicles_keep_off_membranes(wholes):
    organelles = wholes[FINE]["mitochondria"] | wholes[FINE]["vesicles"]
    assert wholes[FINE]["mitochondria"].mean() > 0.01
    assert wholes[FINE]["vesicles"].any()
    assert not (binary_dilation(organelles > 0) & (wholes[FINE]["membranes"] > 0)).any()


def test_grey_values_are_those_of_electron_microscopy(wholes):
    for whole in wholes.values():
        image, membranes, mitochondria = whole["image"], whole["membranes"] > 0, whole["mitochondria"] > 0
        cytosol = ~membranes & ~mitochondria & (whole["vesicles"] == 0)
        assert 150 < np.median(image[cytosol]) < 190
        assert 90 < np.median(image[mitochondria]) < 130
        assert np.median(image[membranes]) < 120
        assert np.median(image[cytosol]) - np.median(image[membranes]) > 5 * PLAIN.noise_deviation


def test_another_seed_is_another_tissue(wholes):
    box = WHOLE[COARSE]
    other = synthesize(Neuropil(seed=4), COARSE, Box(box.start, tuple(n + 7 for n in box.start)), ("labels",))
    assert not np.array_equal(other["labels"], wholes[COARSE]["labels"][:7, :7, :7])


def test_nothing_is_asked_for_and_nothing_returned():
    empty = synthesize(PLAIN, COARSE, Box((5, 5, 5), (5, 9, 9)))
    assert {name: values.shape for name, values in empty.items()} == dict.fromkeys(empty, (0, 4, 4))


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ConfigurationError, match="voxel_size"):
        synthesize(PLAIN, (40, 0, 8), Box((0, 0, 0), (1, 1, 1)))
    with pytest.raises(ValidationError, match="membrane_thickness"):
        Neuropil(membrane_thickness=60)
    with pytest.raises(ValidationError, match="neurites"):
        Neuropil.model_validate({"neurites": 3})
