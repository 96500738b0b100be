"""The structures inside synthetic cells: where they lie, how much of them there is, and who is who."""

from functools import lru_cache

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import binary_dilation, find_objects, label

from neurokube.blocks import Box
from neurokube.errors import ConfigurationError
from neurokube.synthesis import ARRAYS, BASIC, Neuropil, cell_class, dtype_of, synapse_table, synthesize
from neurokube.synthesis.neuropil import _tile

CONFIG, VOXEL_SIZE, BOX = Neuropil(seed=1), (16.0, 16.0, 16.0), Box((-32, 0, 0), (64, 128, 128))
MASKS = ("membranes", "mitochondria", "vesicles", "vesicle_clouds", "synapses", "nuclei", "er", "cytoskeleton")
WITH_BODIES = Neuropil(seed=1, somata=1)
# just too large for tiles twice as wide, so that one tile is little tissue
SMALL, SMALL_TILE = (17.0, 17.0, 17.0), Box((0, 0, 0), (32, 64, 64))


@pytest.fixture(scope="module")
def truth():
    return synthesize(CONFIG, VOXEL_SIZE, BOX, ARRAYS)


@pytest.fixture(scope="module")
def table():
    return synapse_table(CONFIG, VOXEL_SIZE, BOX)


@pytest.fixture(scope="module")
def body():
    """A few coarse sections through the middle of a cell body, and its cell."""
    one = a_body()
    z, y, x = (int(n) for n in one.centres[0] // 64)
    box = Box((z // 8 * 8, y - 16, x - 16), (z // 8 * 8 + 8, y + 16, x + 16))
    return synthesize(WITH_BODIES, (64.0, 64.0, 64.0), box, ("labels", "nuclei", "nucleus_labels")), one.cells[0]


@lru_cache
def a_body():
    """Return the body, of several, whose middle is best within a tile."""
    return WITH_BODIES.neurites.bodies(np.zeros(3), np.full(3, 15_000.0))[-1:]


def test_there_is_as_much_of_everything_as_in_tissue(truth):
    bounds = {
        "membranes": (0.08, 0.3),
        "mitochondria": (0.01, 0.12),
        "vesicles": (0.0005, 0.03),
        "vesicle_clouds": (0.005, 0.06),
        "synapses": (0.003, 0.015),
        "er": (0.005, 0.06),
        "cytoskeleton": (0.003, 0.04),
        "cytosol": (0.5, 0.85),
    }
    for name, (low, high) in bounds.items():
        assert low < truth[name].mean() < high, name


def test_masks_are_of_zero_and_one_and_labels_cover_the_same_voxels(truth):
    for name in (*MASKS, "cytosol"):
        assert truth[name].dtype == np.uint8
        assert set(np.unique(truth[name])) <= {0, 1}
    for labels, mask in (
        ("mitochondria_labels", "mitochondria"),
        ("vesicle_cloud_labels", "vesicle_clouds"),
        ("synapse_labels", "synapses"),
        ("nucleus_labels", "nuclei"),
    ):
        assert truth[labels].dtype == np.uint64
        assert np.array_equal(truth[labels] > 0, truth[mask] > 0), labels


def test_cytosol_is_what_no_other_structure_is(truth):
    structures = np.logical_or.reduce([truth[name] > 0 for name in MASKS])
    assert np.array_equal(truth["cytosol"] > 0, ~structures)


def test_organelles_lie_apart_and_inside_cells(truth):
    inner = [truth[name] > 0 for name in ("mitochondria", "vesicle_clouds", "er", "cytoskeleton")]
    assert np.sum(inner, axis=0).max() == 1
    for mask in inner:
        assert not (mask & (truth["membranes"] > 0)).any()


@pytest.mark.parametrize("name", ["mitochondria_labels", "vesicle_cloud_labels"])
def test_an_instance_belongs_to_one_cell(truth, name):
    found = truth[name] > 0
    pairs = np.unique(np.stack([truth[name][found], truth["labels"][found]]), axis=1)
    assert len(pairs[0]) > 20
    assert len(pairs[0]) == len(np.unique(pairs[0]))


def test_a_mitochondrion_is_one_piece_or_few(truth):
    dense = np.unique(truth["mitochondria_labels"], return_inverse=True)[1].reshape(BOX.shape)
    for mitochondrion, place in enumerate(find_objects(dense), 1):
        sizes = np.bincount(label(dense[place] == mitochondrion, np.ones((3, 3, 3)))[0].ravel())[1:]
        assert sizes.max() > 0.5 * sizes.sum()


def test_a_synapse_lies_where_its_two_cells_meet(truth, table):
    partners = {i: {a, b} for i, a, b in zip(table.ids, table.presynaptic, table.postsynaptic, strict=True)}
    assert len(partners) > 15
    for synapse, position in zip(table.ids, table.positions, strict=True):
        place = np.floor(position / VOXEL_SIZE).astype(int) - BOX.start
        around = tuple(slice(max(0, n - 2), n + 3) for n in place)
        assert (truth["synapse_labels"][around] == synapse).any()
        where = truth["synapse_labels"] == synapse
        assert set(truth["labels"][where]) <= partners[synapse]
        if all(6 < n < size - 6 for n, size in zip(place, BOX.shape, strict=True)):
            assert set(truth["labels"][where]) == partners[synapse]


def test_a_synapse_leads_from_an_axon_to_another_cell_mostly_a_dendrite(table):
    assert (table.presynaptic != table.postsynaptic).all()
    assert (cell_class(CONFIG, table.presynaptic) == 1).all()
    after = cell_class(CONFIG, table.postsynaptic)
    assert (after == 2).mean() > 0.75
    assert not (after == 3).any()


def test_a_synapse_has_the_cloud_of_its_presynaptic_cell_next_to_it(truth, table):
    with_cloud = [synapse in truth["vesicle_cloud_labels"] for synapse in table.ids]
    assert np.mean(with_cloud) > 0.8
    for synapse, cell in zip(table.ids[with_cloud], table.presynaptic[with_cloud], strict=True):
        assert set(truth["labels"][truth["vesicle_cloud_labels"] == synapse]) == {cell}


def test_synapses_of_a_box_are_those_of_its_parts(table):
    low, high = Box(BOX.start, (20, 128, 128)), Box((20, 0, 0), BOX.stop)
    parts = [synapse_table(CONFIG, VOXEL_SIZE, part) for part in (low, high)]
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids)
    assert np.array_equal(ids[order], table.ids)
    for name in ("presynaptic", "postsynaptic"):
        assert np.array_equal(np.concatenate([getattr(p, name) for p in parts])[order], getattr(table, name))
    assert np.allclose(np.concatenate([p.positions for p in parts])[order], table.positions)
    assert len(synapse_table(CONFIG, VOXEL_SIZE, Box((5, 5, 5), (5, 9, 9))).ids) == 0


def test_a_cell_has_one_class_and_axons_alone_hold_vesicles(truth):
    pairs = np.divmod(np.unique(truth["labels"] * 4 + truth["classes"]), 4)
    assert len(pairs[0]) == len(np.unique(pairs[0]))
    assert np.array_equal(cell_class(CONFIG, pairs[0]), pairs[1])
    assert set(pairs[1]) == {1, 2, 3}
    assert set(truth["classes"][truth["vesicles"] > 0]) == {1}
    assert 3 not in truth["classes"][truth["cytoskeleton"] > 0]


def test_classes_can_be_told_apart_in_the_image(truth):
    shade = [np.median(truth["image"][(truth["classes"] == kind) & (truth["cytosol"] > 0)]) for kind in (1, 2, 3)]
    assert shade[2] < min(shade[:2]) - 15
    tubes = [truth["cytoskeleton"][truth["classes"] == kind].mean() for kind in (1, 2)]
    assert tubes[1] > 1.2 * tubes[0]


def test_a_nucleus_lies_in_the_body_of_its_cell(body):
    truth, cell = body
    nucleus = truth["nucleus_labels"] == cell
    assert nucleus.sum() / 8 * 0.064**2 > 2  # square micrometres
    assert set(truth["labels"][binary_dilation(nucleus, iterations=2)]) == {cell}
    assert np.array_equal(truth["nucleus_labels"] > 0, truth["nuclei"] > 0)


def test_a_cell_body_lets_neurites_pass_it_whole(body):
    neurites = WITH_BODIES.neurites
    centre = a_body()
    low, high = (centre.centres[0] + sign * 2 * centre.radii[0] for sign in (-1, 1))
    balls, places = neurites.balls(low, high)
    others = balls.cells != centre.cells[0]
    depth = centre.radii[0] - np.sqrt(((balls.centres - centre.centres[0]) ** 2).sum(1))
    assert depth[others].max() < 0
    near = depth > -neurites.diameter
    follows = (places[1:, :3] == places[:-1, :3]).all(1) & (np.abs(np.diff(places[:, 3])) < 0.5)
    follows &= (places[1:, 0] >= 0) & others[1:] & near[1:] & (balls.cells[1:] == balls.cells[:-1])
    gaps = np.sqrt((np.diff(balls.centres, axis=0) ** 2).sum(1))[follows]
    assert len(gaps) > 500
    assert gaps.max() < neurites.diameter
    assert (body[0]["labels"] == body[1]).mean() > 0.9


def test_a_cube_of_two_micrometres_seldom_holds_a_cell_body():
    corners = np.random.default_rng(0).uniform(-2e5, 2e5, (200, 3))
    held = [len(CONFIG.neurites.bodies(corner, corner + 2000)) > 0 for corner in corners]
    assert 0 < np.mean(held) < 0.1


@pytest.fixture(scope="module")
def everything():
    return synthesize(CONFIG, SMALL, SMALL_TILE, ARRAYS)


@pytest.mark.parametrize("name", ["labels", "er", "synapse_labels", "vesicles", "cytosol"])
def test_an_array_is_the_same_whatever_else_is_asked_for(everything, name):
    assert everything[name].any()
    assert np.array_equal(synthesize(CONFIG, SMALL, SMALL_TILE, (name,))[name], everything[name])


def test_only_what_is_asked_for_is_returned():
    voxel_size, box = (44.0, 33.0, 33.0), Box((0, 0, 0), (1, 2, 3))
    assert tuple(synthesize(CONFIG, voxel_size, box)) == BASIC
    arrays = synthesize(CONFIG, voxel_size, box, ("classes", "image"))
    assert {name: (a.shape, str(a.dtype)) for name, a in arrays.items()} == {
        name: ((1, 2, 3), dtype_of(name)) for name in ("classes", "image")
    }
    with pytest.raises(ConfigurationError, match="no array is called 'axons'") as caught:
        synthesize(CONFIG, voxel_size, box, ("image", "axons"))
    assert "\n" not in str(caught.value)


def test_what_is_set_to_nothing_is_absent():
    bare = Neuropil(mitochondria=0, vesicles=0, reticulum=0, microtubules=0, somata=0)
    truth = synthesize(bare, SMALL, SMALL_TILE, ARRAYS)
    for name in (*MASKS[1:], "vesicle_cloud_labels", "synapse_labels"):
        assert not truth[name].any(), name


# how it looks

PICTURE = Box((0, 0, 0), (8, 64, 64))


@lru_cache
def image_of(voxel_size=(60.0, 17.0, 17.0), box=PICTURE, **settings):
    return synthesize(Neuropil(seed=2, **settings), voxel_size, box, ("image",))["image"].astype(float)


def test_each_microscope_has_its_own_contrast():
    deviation = {kind: image_of(microscope=kind, noise=0).std() for kind in ("fib-sem", "sbf-sem", "sstem")}
    assert deviation["sbf-sem"] < deviation["fib-sem"] < deviation["sstem"]


def test_noise_of_serial_sections_is_correlated_and_that_of_block_faces_is_not():
    def neighbours(kind):
        noise = image_of(microscope=kind) - image_of(microscope=kind, noise=0)
        return np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]

    assert neighbours("sstem") > 0.3
    assert abs(neighbours("sbf-sem")) < 0.05
    assert abs(neighbours("fib-sem")) < 0.05


def test_serial_sections_jump_in_brightness_and_place_more_than_block_faces():
    def jumps(kind):
        image = image_of(microscope=kind)
        return np.abs(np.diff(image.mean((1, 2)))).mean()

    assert jumps("sstem") > 2 * jumps("fib-sem")


def test_defects_spoil_the_share_of_sections_asked_for():
    box = Box((0, 0, 0), (32, 32, 32))
    whole, spoiled = (image_of((11.0, 33.0, 33.0), box, defects=share) for share in (0, 0.5))
    changed = (whole != spoiled).any((1, 2))
    assert 0.2 < changed.mean() < 0.65


def test_a_cleft_shows_between_membranes():
    settings = {"neurite_diameter": 600, "noise": 0, "contrast": 0, "microscope": "fib-sem"}
    box = Box((0, 0, 0), (8, 128, 128))
    voxel_size = (80.0, 9.0, 9.0)
    wide = Neuropil(cleft=20, **settings)
    truth = synthesize(wide, voxel_size, box, ("image", "labels"))
    narrow = synthesize(Neuropil(**settings), voxel_size, box, ("image", "labels"))
    assert np.array_equal(truth["labels"], narrow["labels"])
    border = truth["labels"][:, :, 1:] != truth["labels"][:, :, :-1]
    assert truth["image"][:, :, 1:][border].mean() > narrow["image"][:, :, 1:][border].mean() + 10


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"microscope": "light"}, "microscope"),
        ({"somata": 2}, "somata"),
        ({"defects": 0.9}, "defects"),
        ({"reticulum": -0.1}, "reticulum"),
        ({"cleft": 10}, "membrane_thickness"),
        ({"cleft": float("nan")}, "cleft"),
        ({"microtubules": "many"}, "microtubules"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValidationError, match=named) as caught:
        Neuropil(**settings)
    assert len(caught.value.errors()) == 1


def test_a_tile_is_remembered_for_each_set_of_arrays():
    _tile.cache_clear()
    for _ in range(2):
        synthesize(CONFIG, SMALL, Box((0, 0, 0), (1, 1, 1)), ("labels",))
    assert _tile.cache_info().hits == 1
