from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurokube.blocks import Box, Grid
from neurokube.errors import ConfigurationError
from neurokube.stages import Source, TableOutput, VolumeOutput
from neurokube.stages.graph import Graph, dense_numbers, edge_statistics, fragment_ids
from neurokube.volumes import VolumeSpec

PROPERTY = settings(max_examples=60, deadline=None)
SHAPES = st.tuples(*[st.integers(1, 5)] * 3)
VOLUMES = SHAPES.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint64, shape, elements=st.sampled_from([0, 1, 2, 3, 7, 2**40])),
        hnp.arrays(np.uint8, shape),
    )
)


def naive(fragments, boundaries, own):
    """Count pair by pair: {(first, second): [pairs, sum, sum of squares, minimum, maximum]}."""
    values = defaultdict(list)
    for lower in np.ndindex(*fragments.shape):
        if not own.contains(Box(lower, tuple(k + 1 for k in lower))):
            continue
        for axis in range(3):
            upper = tuple(k + (a == axis) for a, k in enumerate(lower))
            if upper[axis] < fragments.shape[axis]:
                pair = sorted((int(fragments[lower]), int(fragments[upper])))
                if pair[0] != pair[1] and pair[0] != 0:
                    values[tuple(pair)].append(int(boundaries[lower]) + int(boundaries[upper]))
    return {p: [len(v), sum(v), sum(n * n for n in v), min(v), max(v)] for p, v in values.items()}


def as_dict(edges, stats):
    return {tuple(edge): row for edge, row in zip(edges.tolist(), stats.tolist(), strict=True)}


@PROPERTY
@given(VOLUMES)
def test_statistics_are_the_exact_integers_of_a_count_by_hand(volumes):
    fragments, boundaries = volumes
    edges, stats = edge_statistics(fragments, boundaries, Box.of(fragments.shape))
    assert (edges.dtype, stats.dtype) == (np.uint64, np.int64)
    assert as_dict(edges, stats) == naive(fragments, boundaries, Box.of(fragments.shape))
    assert edges.tolist() == sorted(edges.tolist())


@PROPERTY
@given(VOLUMES, st.data())
def test_owned_boxes_that_are_disjoint_add_up_to_the_whole(volumes, data):
    fragments, boundaries = volumes
    cut = data.draw(st.tuples(*[st.integers(1, n) for n in fragments.shape]))
    merged = defaultdict(list)
    grid = Grid(fragments.shape, cut)
    for cell in range(len(grid)):
        own = grid.box(cell)
        outer = Box(own.start, tuple(b + 1 for b in own.stop)).clip(Box.of(fragments.shape))
        edges, stats = edge_statistics(fragments[outer.slices], boundaries[outer.slices], Box.of(own.shape))
        for edge, row in as_dict(edges, stats).items():
            merged[edge].append(row)
    added = {
        edge: [*(sum(row[k] for row in rows) for k in range(3)), min(r[3] for r in rows), max(r[4] for r in rows)]
        for edge, rows in merged.items()
    }
    assert added == naive(fragments, boundaries, Box.of(fragments.shape))


def test_statistics_stay_exact_for_a_contact_of_millions_of_voxel_pairs():
    fragments = np.indices((16, 256, 256)).sum(0).astype(np.uint64) % np.uint64(2) + np.uint64(1)
    boundaries = np.random.default_rng(0).integers(0, 256, fragments.shape, dtype=np.uint8)
    _, stats = edge_statistics(fragments, boundaries, Box.of(fragments.shape))
    values = np.concatenate(
        [(np.diff(boundaries.astype(int), axis=k) + 2 * lower(boundaries, k)).ravel() for k in range(3)]
    )
    expected = [len(values), values.sum(), (values**2).sum(), values.min(), values.max()]
    assert len(values) > 2_900_000
    np.testing.assert_array_equal(stats, [expected])


def lower(array, axis):
    return array.astype(int).take(range(array.shape[axis] - 1), axis)


def test_one_fragment_alone_has_no_edge():
    edges, stats = edge_statistics(np.ones((3, 3, 3), np.uint64), np.zeros((3, 3, 3), np.uint8), Box.of((3, 3, 3)))
    assert edges.shape == (0, 2)
    assert stats.shape == (0, 5)


@PROPERTY
@given(st.data())
def test_dense_numbers_count_all_fragments_in_the_order_of_their_ids(data):
    grid = Grid((4, 6, 5), (2, 3, 3))
    counts = [data.draw(st.integers(0, grid.box(tile).size)) for tile in range(len(grid))]
    ids = np.concatenate([fragment_ids(grid, tile, count) for tile, count in enumerate(counts)])
    offsets = np.zeros((len(grid) + 1, 2), np.uint64)
    offsets[1:, 0] = np.cumsum(counts)
    np.testing.assert_array_equal(dense_numbers(ids, grid, offsets), np.arange(sum(counts)))


def source(name, kind="volume", shape=(24, 64, 64)):
    labels = VolumeOutput(name, VolumeSpec(shape, "uint64", (40.0, 8.0, 8.0), kind="labels"), (8, 32, 32))
    return Source(name, kind, {name: labels}, {name: "/none"})


def test_the_tables_follow_the_tiles_of_the_fragments():
    outputs = Graph().outputs({"fragments": source("fragments", "fragments"), "boundaries": source("boundaries")})
    assert list(outputs) == ["edges", "stats", "counts", "offsets"]
    assert outputs["edges"] == TableOutput("edges", Grid((24, 64, 64), (8, 32, 32)))


def test_fragments_must_come_from_a_fragments_stage():
    with pytest.raises(ConfigurationError, match="fragments: 'labels' is not a fragments stage; name one"):
        Graph().steps({"fragments": source("labels"), "boundaries": source("boundaries")})


def test_boundaries_must_cover_the_fragments():
    with pytest.raises(ConfigurationError, match=r"fragments .* and boundaries .* must cover the same voxels"):
        Graph().steps(
            {"fragments": source("fragments", "fragments"), "boundaries": source("boundaries", shape=(24, 64, 65))}
        )
