import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from stagewise import computed, source, stored, voxels

from neurokube.blocks import Box
from neurokube.errors import ConfigurationError
from neurokube.stages.objects import Objects, directions, grow, steps_between_neighbours
from neurokube.workflow import parse_workflow

PROPERTY = settings(max_examples=25)
SHAPES = st.tuples(st.integers(1, 4), st.integers(4, 7), st.integers(4, 8))
TILES = st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(2, 4))
VOXEL_SIZE = (2.5, 1.0, 1.0)


@st.composite
def channels(draw, *shares):
    """A channel of scattered voxels; `shares` are choices of how many are below and above two thresholds."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.array([127, 128, 199, 200], np.uint8)
    return generator.choice(values, draw(SHAPES), p=draw(st.sampled_from(shares)))


# so few that objects often meet at an edge or a corner only
SCATTERED = channels([0.92, 0.02, 0.02, 0.04], [0.65, 0.1, 0.1, 0.15])
# so many that cores have far to grow
CORES = channels([0.3, 0.3, 0.3, 0.1], [0.1, 0.42, 0.42, 0.06])


def objects_of(channel, tile, *, seed=0, voxel_size=VOXEL_SIZE, **settings):
    stage = Objects(semantics="channel", tile=tile, **settings)
    found = voxels(*computed(stage, {"semantics": stored("channel", channel, tile, voxel_size=voxel_size)}, seed=seed))
    assert found.dtype == np.uint64
    return found


def structure(connectivity):
    return ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)


def in_order(labels):
    """Number labels from 1 in the order of their first voxels."""
    found, first = np.unique(labels[labels > 0], return_index=True)
    numbers = np.zeros(labels.max(initial=0) + 1, int)
    numbers[found[np.argsort(first)]] = np.arange(1, len(found) + 1)
    return numbers[labels]


def without_small(labels, fewest):
    return in_order(np.where(np.bincount(labels.ravel())[labels] < fewest, 0, labels))


def grown_whole(channel, threshold, core, connectivity, reach):
    """Grow the cores of a whole volume: for each voxel and each voxel of a core, the length of the way between them."""
    mask = channel >= threshold
    number = np.arange(mask.size).reshape(mask.shape)
    rows, columns, lengths = [], [], []
    for step, length in steps_between_neighbours(VOXEL_SIZE, connectivity):
        here = Box.of(mask.shape).clip(Box.of(mask.shape).shift([-n for n in step]))
        there = here.shift(step)
        both = mask[here.slices] & mask[there.slices]
        rows.append(number[here.slices][both])
        columns.append(number[there.slices][both])
        lengths.append(np.full(both.sum(), float(length)))
    graph = coo_array(
        (np.concatenate(lengths), (np.concatenate(rows), np.concatenate(columns))), (mask.size, mask.size)
    )
    cores = ndimage.label(channel >= core, structure(connectivity))[0].ravel()
    starts = np.flatnonzero(cores)
    if not starts.size:
        return np.zeros(mask.shape, int)
    ways = dijkstra(graph.tocsr(), indices=starts, limit=reach)
    nearest = np.argmin(ways, axis=0)  # the first voxel of several at one distance
    labels = np.where(np.isfinite(ways.min(0)), cores[starts[nearest]], 0)
    return in_order(labels.reshape(mask.shape))


@PROPERTY
@given(SCATTERED, TILES, st.sampled_from([6, 26]), st.integers(0, 2**16))
def test_objects_of_any_tiles_are_the_components_of_the_whole_volume(channel, tile, connectivity, seed):
    expected = in_order(ndimage.label(channel >= 128, structure(connectivity))[0])
    np.testing.assert_array_equal(objects_of(channel, tile, connectivity=connectivity, seed=seed), expected)


@PROPERTY
@given(CORES, TILES, st.sampled_from([6, 26]), st.integers(1, 9), st.integers(0, 2**16))
def test_cores_of_any_tiles_grow_as_in_the_whole_volume(channel, tile, connectivity, reach, seed):
    found = objects_of(channel, tile, core=0.75, reach=reach, connectivity=connectivity, seed=seed)
    np.testing.assert_array_equal(found, grown_whole(channel, 128, 192, connectivity, 10 * reach))


@PROPERTY
@given(SCATTERED, TILES, st.integers(1, 12))
def test_small_objects_are_left_out_whole(channel, tile, fewest):
    components = ndimage.label(channel >= 128)[0]
    # the volume of a voxel is 2.5 nm^3
    found = objects_of(channel, tile, smallest_volume=fewest * 2.5e-9)
    np.testing.assert_array_equal(found, without_small(components, fewest))


def test_a_small_core_counts_with_all_that_grew_from_it():
    channel = np.full((1, 1, 9), 150, np.uint8)
    channel[..., 4] = 255
    assert objects_of(channel, (1, 1, 4), core=0.9, smallest_volume=9 * 2.5e-9).all()
    assert not objects_of(channel, (1, 1, 4), core=0.9, smallest_volume=10 * 2.5e-9).any()


@pytest.mark.parametrize("step", directions(26))
@pytest.mark.parametrize("connectivity", [6, 26])
def test_voxels_of_two_tiles_are_connected_as_those_of_one(step, connectivity):
    one, other = ([1 if n >= 0 else 2 for n in step], [1 + (n > 0) for n in step])
    channel = np.zeros((4, 4, 4), np.uint8)
    channel[*one], channel[*other] = 255, 255
    connected = connectivity == 26 or sum(map(abs, step)) == 1
    assert objects_of(channel, (2, 2, 2), connectivity=connectivity).max() == (1 if connected else 2)


def test_a_spiral_through_many_tiles_is_one_object():
    channel = np.zeros((1, 15, 15), np.uint8)
    y = x = 7
    for side, (dy, dx) in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)] * 3):
        for _ in range(2 * (side // 2 + 1)):
            if 0 <= y < 15 and 0 <= x < 15:
                channel[0, y, x] = 255
            y, x = y + dy, x + dx
    np.testing.assert_array_equal(objects_of(channel, (1, 2, 2)), channel // 255)


def dumbbell(bridge=150):
    """Two bright balls and a dim bridge between them, and a dim ball apart."""
    channel = np.zeros((9, 9, 40), np.uint8)
    z, y, x = np.indices(channel.shape)
    for middle, value in ((5, 255), (17, 255), (32, 150)):
        channel[(z - 4) ** 2 + (y - 4) ** 2 + (x - middle) ** 2 <= 16] = value
    channel[3:6, 3:6, 9:14] = bridge
    return channel


def test_without_cores_what_touches_is_one_object():
    assert objects_of(dumbbell(), (9, 9, 8)).max() == 2


def test_objects_that_touch_are_parted_between_their_cores():
    found = objects_of(dumbbell(), (9, 9, 8), core=0.9, reach=50.0)
    assert found.max() == 2
    np.testing.assert_array_equal(found[4, 4, 1:11], 1)
    np.testing.assert_array_equal(found[4, 4, 12:22], 2)


def test_what_has_no_core_is_left_out_and_no_object_grows_beyond_its_reach():
    found = objects_of(dumbbell(), (9, 9, 8), core=0.9, reach=1.0)
    assert not found[..., 25:].any()
    assert found[4, 4, 9:14].tolist() == [1, 1, 0, 2, 2] or found[4, 4, 9:14].tolist() == [1, 0, 0, 0, 2]


def test_steps_are_as_long_as_the_voxels():
    steps = dict(steps_between_neighbours((40.0, 8.0, 8.0), 26))
    assert len(steps) == 26
    assert (steps[-1, 0, 0], steps[0, 0, 1], steps[0, 1, -1]) == (400, 80, 113)
    assert len(steps_between_neighbours((40.0, 8.0, 8.0), 6)) == 6


def test_growth_follows_the_mask_around_a_corner():
    mask = np.array([[[1, 1, 1], [0, 0, 1], [1, 1, 1]]], bool)
    labels = np.zeros(mask.shape, np.uint64)
    labels[0, 0, 0] = 7
    steps = steps_between_neighbours((1.0, 1.0, 1.0), 6)
    assert grow(labels, mask, reach=50, steps=steps)[0].tolist() == [[7, 7, 7], [0, 0, 7], [0, 7, 7]]


def test_a_threshold_counts_from_the_first_value_that_reaches_it():
    channel = np.array([[[50, 51, 52]]], np.uint8)
    assert objects_of(channel, (1, 1, 3), threshold=0.2).ravel().tolist() == [0, 1, 1]
    assert objects_of(channel, (1, 1, 3), threshold=52 / 255).ravel().tolist() == [0, 0, 1]


# bad input


def workflow(**settings):
    stages = {"mitochondria": {"stage": "objects", "semantics": "channel", **settings}}
    return parse_workflow({"name": "run", "inputs": {"channel": {"path": "/none"}}, "stages": stages})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": 1.2}, "mitochondria.threshold: must be less than or equal to 1"),
        ({"threshold": 0}, "mitochondria.threshold: must be greater than 0"),
        ({"core": 0.4}, r"mitochondria.core: must be above the threshold of 0.5: raise it, or leave it out"),
        ({"connectivity": 18}, "mitochondria.connectivity: must be 6 or 26"),
        ({"reach": -1}, "mitochondria.reach: must be greater than 0"),
        ({"smallest_volume": -1}, "mitochondria.smallest_volume: must be greater than or equal to 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_a_line(given, words):
    with pytest.raises(ConfigurationError, match=words) as error:
        workflow(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channel", [source("channel", dtype="uint64"), source("channel", holds="labels")])
def test_a_channel_must_be_an_8_bit_image(channel):
    with pytest.raises(ConfigurationError, match=r"semantics: 'channel' holds uint\d+ labels; probabilities from 0 to"):
        Objects(semantics="channel").steps({"semantics": channel})


def test_of_several_channels_one_must_be_named():
    several = source("membranes", kind="semantics", others=("mitochondria",))
    with pytest.raises(ConfigurationError, match=r"name one: semantics\.membranes, semantics\.mitochondria"):
        Objects(semantics="semantics").steps({"semantics": several})
    assert Objects(semantics="semantics.membranes").steps({"semantics": several})


def test_a_reach_that_no_memory_would_hold_is_refused():
    with pytest.raises(ConfigurationError, match=r"reach: 100000 nm around a tile .* set a shorter reach"):
        Objects(semantics="channel", core=0.9, reach=1e5).steps({"semantics": source("channel")})


def test_the_channel_has_no_default():
    with pytest.raises(ValidationError, match="semantics"):
        Objects()
