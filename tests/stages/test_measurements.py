import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from scipy import ndimage
from stagewise import VOXEL_SIZE, computed, file, source, stored, voxels

from neurokube.blocks import Box
from neurokube.errors import ConfigurationError
from neurokube.stages.measurements import DIRECTIONS, Measurements, area_of_crossing, summed
from neurokube.stages.objects import Objects
from neurokube.synthesis import Neuropil, synthesize

PROPERTY = settings(max_examples=15)
OFFSET = (100.0, 20.0, 30.0)
CELLS = (3, 4, 2**60 + 1)
NO_CELLS = ["id", "z_nm", "y_nm", "x_nm", "volume_um3", "voxels", "surface_um2"]
NO_CELLS += ["z_start", "y_start", "x_start", "z_stop", "y_stop", "x_stop", "at_border"]


@st.composite
def tissues(draw):
    """Scattered voxels of two objects and three cells, and a channel."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)))
    objects = generator.choice(np.array([0, 1, 2**53], np.uint64), shape, p=[0.8, 0.1, 0.1])
    cells = generator.choice(np.array([0, *CELLS], np.uint64), shape)
    return objects, cells, generator.integers(0, 256, shape, np.uint8)


def measured(objects, cells=None, channel=None, *, tile=(16, 64, 64), voxel_size=VOXEL_SIZE, seed=0):
    """Return the table of instances as rows by id, that of contacts as rows by id and cell, and the stage's output."""
    given = {"objects": objects, "cells": cells, "semantics": channel}
    place = {"voxel_size": voxel_size, "offset": OFFSET}
    sources = {role: stored(role, v, tile, **place) for role, v in given.items() if v is not None}
    own, _ = computed(Measurements(**{role: role for role in sources}), sources, seed=seed)
    table = {row["id"]: row for row in rows_of(own, "table")}
    pairs = {(row["id"], row["cell"]): row for row in rows_of(own, "contacts")} if cells is not None else {}
    return table, pairs, own


def rows_of(own, name):
    return parquet.read_table(io.BytesIO(file(own, f"{name}.parquet")), use_threads=False).to_pylist()


def crossings(objects, one, cells=None, cell=None):
    """Count the pairs of voxels, one in an object and the other not but in a cell, along each direction."""
    counts = np.zeros(len(DIRECTIONS), int)
    for k, step in enumerate(DIRECTIONS):
        here = Box.of(objects.shape).clip(Box.of(objects.shape).shift([-n for n in step])).slices
        there = Box.of(objects.shape).clip(Box.of(objects.shape).shift(step)).slices
        for inside, outside in ((here, there), (there, here)):
            pairs = (objects[inside] == one) & (objects[outside] != one)
            counts[k] += (pairs if cell is None else pairs & (cells[outside] == cell)).sum()
    return counts


@PROPERTY
@given(tissues(), st.tuples(*[st.integers(2, 6)] * 3), st.integers(0, 2**16))
def test_measurements_of_any_tiles_are_those_of_the_whole_volume(tissue, tile, seed):
    objects, cells, channel = tissue
    table, pairs, _ = measured(objects, cells, channel, tile=tile, seed=seed)
    ids = np.unique(objects[objects > 0]).tolist()
    assert list(table) == ids
    area = area_of_crossing(VOXEL_SIZE) / 1e6
    for one in ids:
        row, inside = table[one], objects == one
        place = np.argwhere(inside)
        size = len(place)
        assert row["voxels"] == size
        assert row["volume_um3"] == pytest.approx(size * 40 * 8 * 8 / 1e9)
        centre = place.mean(0) * VOXEL_SIZE + OFFSET
        assert [row["z_nm"], row["y_nm"], row["x_nm"]] == pytest.approx(centre.tolist())
        start, stop = place.min(0), place.max(0) + 1
        assert [row[f"{a}_start"] for a in "zyx"] == start.tolist()
        assert [row[f"{a}_stop"] for a in "zyx"] == stop.tolist()
        assert row["at_border"] == bool((start == 0).any() or (stop == objects.shape).any())
        assert row["mean_probability"] == pytest.approx(channel[inside].mean() / 255)
        assert row["surface_um2"] == pytest.approx((crossings(objects, one) * area).sum())
        held = {c: int((inside & (cells == c)).sum()) for c in CELLS}
        touched = {c: crossings(objects, one, cells, c) for c in held}
        assert {c for i, c in pairs if i == one} == {c for c in held if held[c] or touched[c].any()}
        for c in held:
            if pair := pairs.get((one, c)):
                assert pair["voxels"] == held[c]
                assert pair["share"] == pytest.approx(held[c] / size)
                assert pair["area_um2"] == pytest.approx((touched[c] * area).sum())
        most = max(held.values())
        assert row["cell"] == (min(c for c in held if held[c] == most) if most else 0)
        assert row["cell_share"] == pytest.approx(most / size)
        assert row["contacts"] == len([c for i, c in pairs if i == one])


@PROPERTY
@given(tissues(), st.tuples(*[st.integers(2, 6)] * 3), st.integers(0, 2**16))
def test_the_files_are_the_same_bytes_for_any_tiles_in_any_order(tissue, tile, seed):
    objects, cells, channel = tissue
    _, _, one = measured(objects, cells, channel, tile=tile, seed=seed)
    _, _, other = measured(objects, cells, channel, tile=(6, 6, 6))
    for name in ("table.parquet", "table.csv", "contacts.parquet", "contacts.csv"):
        assert file(one, name) == file(other, name)


def test_the_csv_holds_what_the_parquet_holds():
    generator = np.random.default_rng(0)
    objects = generator.integers(0, 5, (4, 20, 20)).astype(np.uint64)
    cells = generator.integers(0, 3, objects.shape).astype(np.uint64)
    _, _, own = measured(objects, cells, np.full(objects.shape, 51, np.uint8), tile=(4, 8, 8))
    for name in ("table", "contacts"):
        found = list(csv.DictReader(io.StringIO(file(own, f"{name}.csv").decode())))
        expected = rows_of(own, name)
        assert len(found) == len(expected) > 0
        for row, other in zip(found, expected, strict=True):
            assert list(row) == list(other)
            assert {k: float({"true": 1, "false": 0}.get(v, v)) for k, v in row.items()} == other


def test_without_cells_and_channel_their_columns_are_left_out():
    table, _, own = measured(np.ones((2, 3, 3), np.uint64))
    assert list(table[1]) == NO_CELLS
    assert "contacts.csv" not in own.outputs


def test_a_volume_without_objects_has_a_table_without_rows():
    nothing = np.zeros((2, 3, 3), np.uint64)
    table, pairs, own = measured(nothing, nothing)
    assert not table and not pairs
    header = file(own, "table.csv").decode().strip().split(",")
    assert header == [*NO_CELLS, "cell", "cell_share", "contacts"]


def ball(radius, voxel_size):
    n = [int(radius / v) + 2 for v in voxel_size]
    z, y, x = (a * v for a, v in zip(np.indices([2 * k + 1 for k in n]), voxel_size, strict=True))
    middle = [k * v + 0.3 for k, v in zip(n, voxel_size, strict=True)]
    inside = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < radius**2
    return inside.astype(np.uint64)


@pytest.mark.parametrize(
    ("radius", "voxel_size", "off"),
    [(80, (8.0, 8.0, 8.0), 0.01), (160, (8.0, 8.0, 8.0), 0.01), (240, VOXEL_SIZE, 0.05)],
)
def test_the_surface_of_a_ball_is_nearly_that_of_a_ball(radius, voxel_size, off):
    table, _, _ = measured(ball(radius, voxel_size), voxel_size=voxel_size)
    assert table[1]["surface_um2"] == pytest.approx(4e-6 * np.pi * radius**2, rel=off)


def test_the_surface_ends_where_the_volume_does():
    slab = np.zeros((1, 40, 40), np.uint64)
    slab[:, :, :20] = 1
    # of a plane across an axis the 13 directions see a little less than there is
    table, _, _ = measured(slab, voxel_size=(8.0, 8.0, 8.0))
    assert table[1]["at_border"]
    assert table[1]["surface_um2"] < 40 * 8 * 8 / 1e6
    deep = np.zeros((40, 40, 40), np.uint64)
    deep[:, :, :20] = 1
    table, _, _ = measured(deep, voxel_size=(8.0, 8.0, 8.0))
    assert table[1]["surface_um2"] == pytest.approx(320 * 320 / 1e6, rel=0.1)


def test_an_instance_between_two_cells_touches_both():
    cells = np.ones((20, 20, 40), np.uint64)
    cells[..., 20:] = 2
    objects = np.zeros_like(cells)
    objects[8:12, 5:15, 17:22] = 1
    table, pairs, _ = measured(objects, cells, voxel_size=(8.0, 8.0, 8.0))
    assert (table[1]["cell"], table[1]["cell_share"], table[1]["contacts"]) == (1, 0.6, 2)
    assert pairs[1, 1]["area_um2"] + pairs[1, 2]["area_um2"] == pytest.approx(table[1]["surface_um2"])
    assert pairs[1, 1]["area_um2"] > pairs[1, 2]["area_um2"]


def test_tables_are_added_up_in_parts():
    rows = [np.array([[n % 3, 1]]) for n in range(10)]

    def merged(table):
        return np.stack([np.arange(3), np.bincount(table[:, 0], table[:, 1], 3)], axis=1).astype(np.int64)

    assert summed(rows, merged).tolist() == [[0, 4], [1, 3], [2, 3]]


TISSUE = Neuropil(seed=5, mitochondria=1.0)
NEUROPIL_VOXELS = (40.0, 20.0, 20.0)


@pytest.fixture(scope="module")
def neuropil():
    """Synthetic tissue with truth: cells, and mitochondria as instances."""
    return synthesize(TISSUE, NEUROPIL_VOXELS, Box.of((16, 128, 128)), ("labels", "mitochondria_labels"))


def test_mitochondria_of_synthetic_tissue_are_found_and_assigned_to_their_cells(neuropil):
    cells, truth = neuropil["labels"], neuropil["mitochondria_labels"]
    # what a network might predict: blurred, so that objects spill over the membranes
    channel = np.rint(255 * ndimage.gaussian_filter((truth > 0).astype(float), (0.3, 2, 2))).astype(np.uint8)
    tile = (8, 48, 48)
    found = stored("channel", channel, tile, voxel_size=NEUROPIL_VOXELS)
    own, data = computed(Objects(semantics="channel", threshold=0.1, core=0.6, tile=tile), {"semantics": found})
    labels = voxels(own, data)
    sources = {"objects": own, "cells": stored("cells", cells, tile, voxel_size=NEUROPIL_VOXELS), "semantics": found}
    measurements, _ = computed(Measurements(objects="o", cells="c", semantics="channel"), sources)
    table = rows_of(measurements, "table")
    assert len(table) == labels.max() > 10
    for row in table:
        mitochondria, counts = np.unique(truth[(labels == row["id"]) & (truth > 0)], return_counts=True)
        mitochondrion = mitochondria[counts.argmax()]
        assert np.unique(cells[truth == mitochondrion]).tolist() == [row["cell"]]
    assert np.mean([row["cell_share"] < 1 and row["contacts"] > 1 for row in table]) > 0.5


# bad input


def measure(**changes):
    sources = {"objects": source("objects", dtype="uint64"), **changes}
    return Measurements(**dict.fromkeys(sources, "channel")).steps(sources)


def test_instances_must_be_labels():
    with pytest.raises(ConfigurationError, match="objects: 'image' holds uint8 image; a volume of labels is needed"):
        measure(objects=source("image"))


def test_cells_must_be_labels_of_the_same_voxels():
    with pytest.raises(ConfigurationError, match="cells: 'image' holds uint8 image; a volume of labels is needed"):
        measure(cells=source("image"))
    with pytest.raises(ConfigurationError, match=r"cells .* and objects .* must cover the same voxels: import them"):
        measure(cells=source("cells", dtype="uint64", shape=(24, 64, 65)))


def test_the_channel_must_be_one_of_the_same_voxels():
    with pytest.raises(ConfigurationError, match="semantics: 'channel' holds uint64 labels; probabilities from 0 to"):
        measure(semantics=source("labels", dtype="uint64"))
    with pytest.raises(ConfigurationError, match=r"semantics .* must cover the same voxels"):
        measure(semantics=source("channel", shape=(25, 64, 64)))
