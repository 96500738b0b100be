from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from stagewise import computed, stored

from neurokube.blocks import Box, Grid
from neurokube.errors import ConfigurationError, DataError
from neurokube.stages import Fragments, Source, TableOutput, VolumeOutput
from neurokube.stages.fragments import first_id
from neurokube.stages.graph import STATISTICS, Graph, edge_statistics, numbered
from neurokube.volumes import VolumeSpec

PROPERTY = settings(max_examples=60, deadline=None)
SHAPES = st.tuples(*[st.integers(1, 5)] * 3)
VOLUMES = SHAPES.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint32, shape, elements=st.sampled_from([0, 1, 2, 3, 7, 2**20])),
        hnp.arrays(np.uint8, shape),
    )
)


def naive(fragments, boundaries, own):
    """Count pair by pair: {(first, second): statistics}."""
    values = defaultdict(list)
    for lower in np.ndindex(*fragments.shape):
        if not own.contains(Box(lower, tuple(k + 1 for k in lower))):
            continue
        for axis in range(3):
            upper = tuple(k + (a == axis) for a, k in enumerate(lower))
            if upper[axis] < fragments.shape[axis]:
                pair = sorted((int(fragments[lower]), int(fragments[upper])))
                if pair[0] != pair[1] and pair[0] != 0:
                    values[tuple(pair)].append((int(boundaries[lower]) + int(boundaries[upper]), axis == 0))
    return {pair: statistics(found) for pair, found in values.items()}


def statistics(found):
    values = [value for value, _ in found]
    across = [value for value, is_across in found if is_across]
    ranked = [sorted(values)[int(q * (len(values) - 1))] for q in (0.1, 0.25, 0.5, 0.75, 0.9)]
    squares = sum(v * v for v in values)
    return [len(values), sum(values), squares, min(values), *ranked, max(values), len(across), sum(across)]


def as_dict(edges, stats):
    return {tuple(edge): row for edge, row in zip(edges.tolist(), stats.tolist(), strict=True)}


@PROPERTY
@given(VOLUMES)
def test_statistics_are_the_exact_integers_of_a_count_by_hand(volumes):
    fragments, boundaries = volumes
    edges, (stats,) = edge_statistics(fragments, [boundaries], Box.of(fragments.shape))
    assert (edges.dtype, stats.dtype) == (np.uint64, np.int64)
    assert as_dict(edges, stats) == naive(fragments, boundaries, Box.of(fragments.shape))
    assert edges.tolist() == sorted(edges.tolist())


@PROPERTY
@given(VOLUMES, st.data())
def test_owned_boxes_that_are_disjoint_add_up_to_the_whole(volumes, data):
    fragments, boundaries = volumes
    cut = data.draw(st.tuples(*[st.integers(1, n) for n in fragments.shape]))
    grid = Grid(fragments.shape, cut)
    expected, found = naive(fragments, boundaries, Box.of(fragments.shape)), defaultdict(lambda: np.zeros(5, int))
    for cell in range(len(grid)):
        own = grid.box(cell)
        outer = Box(own.start, tuple(b + 1 for b in own.stop)).clip(Box.of(fragments.shape))
        edges, (stats,) = edge_statistics(fragments[outer.slices], [boundaries[outer.slices]], Box.of(own.shape))
        for edge, row in as_dict(edges, stats).items():
            found[edge] += np.take(row, SUMS)
    assert {edge: row.tolist() for edge, row in found.items()} == {
        edge: np.take(row, SUMS).tolist() for edge, row in expected.items()
    }


SUMS = [STATISTICS.index(name) for name in ("pairs", "sum", "squares", "pairs_z", "sum_z")]


@PROPERTY
@given(VOLUMES)
def test_each_map_is_measured_as_if_it_were_alone(volumes):
    fragments, boundaries = volumes
    own = Box.of(fragments.shape)
    edges, (first, second) = edge_statistics(fragments, [boundaries, 255 - boundaries], own)
    for values, stats in ((boundaries, first), (255 - boundaries, second)):
        alone, (expected,) = edge_statistics(fragments, [values], own)
        np.testing.assert_array_equal(edges, alone)
        np.testing.assert_array_equal(stats, expected)


@PROPERTY
@given(st.data())
def test_small_numbers_keep_the_order_of_ids_and_lead_back_to_them(data):
    grid = Grid(data.draw(SHAPES), data.draw(st.tuples(*[st.integers(1, 3)] * 3)))
    ids = np.zeros(grid.shape, np.uint64)
    for cell in range(len(grid)):
        box = grid.box(cell)
        ids[box.slices] = data.draw(hnp.arrays(np.uint64, box.shape, elements=st.integers(0, min(3, box.size))))
        ids[box.slices] += np.where(ids[box.slices] > 0, np.uint64(first_id(grid, cell)), np.uint64(0))
    cell = data.draw(st.integers(0, len(grid) - 1))
    box = grid.box(cell)
    outer = Box(box.start, tuple(b + 1 for b in box.stop)).clip(Box.of(grid.shape))
    labels, starts, firsts = numbered(ids[outer.slices], grid, cell, min(3, box.size))
    seen = labels > 0  # what touches the tile at an edge or a corner only is left out
    numbers = labels[seen].astype(np.uint64)
    part = np.searchsorted(starts, numbers, side="right") - 1
    np.testing.assert_array_equal(numbers - starts[part] + firsts[part], ids[outer.slices][seen])
    np.testing.assert_array_equal(
        np.argsort(numbers, kind="stable"), np.argsort(ids[outer.slices][seen], kind="stable")
    )
    assert (labels[Box.of(box.shape).slices] > 0).sum() == (ids[box.slices] > 0).sum()


def test_one_fragment_alone_has_no_edge():
    edges, (stats,) = edge_statistics(np.ones((3, 3, 3), np.uint32), [np.zeros((3, 3, 3), np.uint8)], Box.of((3, 3, 3)))
    assert edges.shape == (0, 2)
    assert stats.shape == (0, len(STATISTICS))


def source(name, kind="volume", shape=(24, 64, 64), dtype=None):
    dtype = dtype or ("uint64" if kind == "fragments" else "uint8")
    holds = "image" if dtype == "uint8" else "labels"
    labels = VolumeOutput(name, VolumeSpec(shape, dtype, (40.0, 8.0, 8.0), kind=holds), (8, 32, 32))
    return Source(name, kind, {name: labels}, {name: "/none"})


def test_the_tables_follow_the_tiles_of_the_fragments():
    outputs = Graph().outputs({"fragments": source("fragments", "fragments"), "boundaries": source("boundaries")})
    assert list(outputs) == ["edges", "stats", "counts", "totals"]
    assert outputs["edges"] == TableOutput("edges", Grid((24, 64, 64), (8, 32, 32)))


def test_fragments_must_come_from_a_fragments_stage():
    with pytest.raises(ConfigurationError, match="fragments: 'labels' is not a fragments stage; name one"):
        Graph().steps({"fragments": source("labels"), "boundaries": source("boundaries")})


def test_boundaries_must_cover_the_fragments():
    with pytest.raises(ConfigurationError, match=r"fragments .* and boundaries .* must cover the same voxels"):
        Graph().steps(
            {"fragments": source("fragments", "fragments"), "boundaries": source("boundaries", shape=(24, 64, 65))}
        )


@pytest.mark.parametrize("value", [0, 255])
def test_boundaries_that_are_the_same_everywhere_are_refused(value):
    constant = stored("edges", np.full((16, 32, 32), value, np.uint8), (16, 32, 32))
    fragments, _ = computed(Fragments(tile=(16, 32, 32)), {"boundaries": constant})
    with pytest.raises(DataError, match=f"boundaries: 'edges' is {value} everywhere, so there is nothing"):
        computed(Graph(), {"fragments": fragments, "boundaries": constant})


def test_channels_and_filters_are_measured_beside_the_boundaries():
    image = np.random.default_rng(0).integers(0, 256, (16, 64, 64), dtype=np.uint8)
    boundaries = stored("edges", image, (16, 32, 32))
    fragments, _ = computed(Fragments(tile=(16, 32, 32)), {"boundaries": boundaries})
    stage = Graph(channels={"synapses": "x"}, image="y", filters=({"filter": "gaussian", "width": 20},))
    others = {"channels.synapses": stored("x", 255 - image, (16, 32, 32)), "image": stored("y", image, (16, 32, 32))}
    _, data = computed(stage, {"fragments": fragments, "boundaries": boundaries, **others})
    for cell in range(4):
        stats, inverse = data.table("stats", cell), data.table("stats-synapses", cell)
        assert len(stats) == len(inverse) == len(data.table("stats-gaussian-20", cell)) > 0
        np.testing.assert_array_equal(stats[:, 1] + inverse[:, 1], 510 * stats[:, 0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": "image"}, "give 'image' and 'filters' together"),
        ({"filters": [{"filter": "gaussian", "width": 20}]}, "give 'image' and 'filters' together"),
        ({"image": "image", "filters": [{"filter": "gaussian", "width": 20}] * 2}, "'gaussian-20' is there twice"),
    ],
)
def test_filters_and_their_image_go_together(given, message):
    with pytest.raises(ValidationError, match=message):
        Graph(**given)
