import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from neurokube.blocks import Box, Grid
from neurokube.errors import ConfigurationError
from neurokube.stages import Source, TableOutput, VolumeOutput
from neurokube.stages.fragments import Fragments, first_id, squared_distance
from neurokube.stages.graph import fragment_ids
from neurokube.volumes import VolumeSpec

PROPERTY = settings(max_examples=40, deadline=None)
COARSE, FINE = (40.0, 8.0, 8.0), (8.0, 8.0, 8.0)
SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
MAPS = hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 0, 100, 255]))


def flooded(boundaries, voxel_size=FINE, inner=None, mask=None, **options):
    stage = Fragments(**({"threshold": 110, "smallest": 0} | options))
    return stage.fragments_of(boundaries, inner or Box.of(boundaries.shape), voxel_size, mask)


def walls(shape, *, every):
    """A boundary map with a wall, two voxels thick, across x at multiples of `every`."""
    boundaries = np.zeros(shape, np.uint8)
    for x in range(every, shape[2], every):
        boundaries[..., x - 1 : x + 1] = 255
    return boundaries


def is_connected(part):
    return ndimage.label(part)[1] == 1


@PROPERTY
@given(MAPS, st.sampled_from([COARSE, FINE]), st.data())
def test_fragments_are_connected_and_numbered_from_one(boundaries, voxel_size, data):
    edges = [sorted(data.draw(st.sets(st.integers(0, n), min_size=2, max_size=2))) for n in boundaries.shape]
    start, stop = zip(*edges, strict=True)
    inner = Box(start, stop)
    labels = flooded(boundaries, voxel_size, inner=inner)
    assert labels.shape == inner.shape
    found = np.unique(labels[labels > 0]).tolist()
    assert found == list(range(1, len(found) + 1))
    assert all(is_connected(labels == label) for label in found)


@PROPERTY
@given(MAPS)
def test_every_voxel_is_in_a_fragment_even_where_all_is_boundary(boundaries):
    assert (flooded(boundaries) > 0).all()


@PROPERTY
@given(MAPS)
def test_sections_that_are_coarse_are_flooded_one_by_one(boundaries):
    labels = flooded(boundaries, COARSE)
    for z, section in enumerate(labels):
        alone = flooded(boundaries[z : z + 1], COARSE)
        offset = labels[:z].max(initial=0)
        np.testing.assert_array_equal(section, np.where(alone[0], alone[0] + offset, 0))


@PROPERTY
@given(MAPS, st.data())
def test_all_inside_the_mask_is_in_a_fragment_and_nothing_else(boundaries, data):
    mask = data.draw(hnp.arrays(bool, boundaries.shape))
    np.testing.assert_array_equal(flooded(boundaries, mask=mask) > 0, mask)


@pytest.mark.parametrize("voxel_size", [COARSE, FINE])
def test_fragments_do_not_cross_a_wall(voxel_size):
    boundaries = walls((8, 64, 64), every=16)
    labels = flooded(boundaries, voxel_size)
    rooms = [labels[..., x + 2 : x + 14] for x in range(0, 64, 16)]
    for k, room in enumerate(rooms):
        for other in rooms[k + 1 :]:
            assert not np.intersect1d(room, other).size


def test_a_room_without_walls_inside_is_few_fragments():
    assert flooded(walls((8, 64, 64), every=32)).max() <= 8
    assert flooded(np.zeros((8, 64, 64), np.uint8)).max() == 1


def test_a_wall_just_outside_the_tile_decides_where_fragments_meet():
    boundaries = walls((8, 64, 64), every=16)
    inner = Box((0, 0, 0), (8, 64, 35))
    labels = flooded(boundaries, inner=inner)
    whole = flooded(boundaries)[inner.slices]
    pairs = {pair for pair in zip(labels.ravel().tolist(), whole.ravel().tolist(), strict=True)}
    assert len(pairs) == labels.max()


@pytest.mark.parametrize("setting", ["smoothing", "depth", "smallest"])
def test_more_smoothing_depth_or_size_makes_fewer_fragments(setting):
    boundaries = np.clip(128 + 400 * gaussian_noise((8, 96, 96)), 0, 255).astype(np.uint8)
    settings = {"smoothing": 0.0, "depth": 0.0, "smallest": 0}
    more = {"smoothing": (0.0, 8.0, 24.0), "depth": (0.0, 0.03, 0.2), "smallest": (0, 100, 2000)}[setting]
    counts = [flooded(boundaries, **(settings | {setting: value})).max() for value in more]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 0


def test_no_fragment_is_small_unless_it_has_no_neighbour():
    boundaries = np.clip(128 + 400 * gaussian_noise((8, 96, 96)), 0, 255).astype(np.uint8)
    assert np.bincount(flooded(boundaries, smallest=0).ravel())[1:].min() < 100
    assert np.bincount(flooded(boundaries, smallest=100).ravel())[1:].min() >= 100


@PROPERTY
@given(hnp.arrays(bool, SHAPES), st.sampled_from([COARSE, FINE, (3.0, 2.0, 7.0)]), st.floats(1, 255), st.booleans())
def test_the_distance_is_that_of_the_nearest_outside_up_to_the_reach(inside, voxel_size, reach, flat):
    found = squared_distance(inside, voxel_size, reach, flat=flat)
    true = np.full(inside.shape, np.inf)
    for place in np.argwhere(~inside):
        ways = [(np.arange(n) - k) * v for n, k, v in zip(inside.shape, place, voxel_size, strict=True)]
        squares = [w * w for w in ways]
        if flat:
            squares[0] = np.where(ways[0] == 0, 0, np.inf)
        true = np.minimum(true, squares[0][:, None, None] + squares[1][:, None] + squares[2])
    # sides of whole nm, so that squares are whole numbers
    np.testing.assert_allclose(found, np.minimum(true, reach * reach), rtol=1e-6, atol=1)


def test_heights_near_the_face_of_a_tile_are_those_of_the_whole_volume():
    boundaries = np.clip(128 + 400 * gaussian_noise((40, 60, 60)), 0, 255).astype(np.uint8)
    stage = Fragments()
    whole = stage._height(boundaries, FINE, False)
    inner = Box((14, 20, 30), (30, 40, 60))
    outer = inner.grow(stage.halo(FINE, flat=False)).clip(Box.of(boundaries.shape))
    alone = stage._height(np.ascontiguousarray(boundaries[outer.slices]), FINE, False)
    # a smoothing that begins elsewhere adds in another order, and can round a half the other way
    np.testing.assert_allclose(alone[inner.relative_to(outer.start).slices], whole[inner.slices].astype(int), atol=1)


def gaussian_noise(shape):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2)
    return noise / np.abs(noise).max()


@PROPERTY
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 5)] * 3))
def test_ids_of_all_tiles_are_unique_and_tell_their_tile(shape, cell):
    grid = Grid(shape, cell)
    most = [grid.box(tile).size for tile in range(len(grid))]
    ids = np.concatenate([fragment_ids(grid, tile, count) for tile, count in enumerate(most)])
    assert len(np.unique(ids)) == len(ids)
    assert ids.min() >= 1
    np.testing.assert_array_equal((ids - 1) // (cell[0] * cell[1] * cell[2]), np.repeat(np.arange(len(grid)), most))
    assert [first_id(grid, tile) for tile in range(len(grid))] == [
        i * cell[0] * cell[1] * cell[2] for i in range(len(grid))
    ]


def source(name, shape=(24, 64, 64), voxel_size=COARSE):
    spec = VolumeSpec(shape, "uint8", voxel_size)
    return Source(name, "volume", {name: VolumeOutput(name, spec, (16, 64, 64))}, {name: "/none"})


def test_the_tile_is_the_grid_of_labels_and_sizes():
    outputs = Fragments(tile=(8, 32, 32)).outputs({"boundaries": source("boundaries")})
    assert outputs["fragments"].grid() == Grid((24, 64, 64), (8, 32, 32))
    assert outputs["sizes"] == TableOutput("sizes", Grid((24, 64, 64), (8, 32, 32)))
    assert (outputs["fragments"].spec.dtype, outputs["fragments"].spec.kind) == ("uint64", "labels")


@pytest.mark.parametrize("mask", [source("mask", shape=(24, 64, 65)), source("mask", voxel_size=FINE)])
def test_a_mask_of_another_grid_is_refused(mask):
    with pytest.raises(ConfigurationError, match=r"mask .* and boundaries .* must cover the same voxels"):
        Fragments(mask="mask").steps({"boundaries": source("boundaries"), "mask": mask})
