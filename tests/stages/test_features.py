"""What a forest sees of an edge, and a multicut that asks a forest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagewise import VOXEL_SIZE, computed, stored

from neurokube.errors import ConfigurationError
from neurokube.networks.bundle import write_forest
from neurokube.stages.costs import edge_costs
from neurokube.stages.features import edge_features, feature_names, read_features
from neurokube.stages.fragments import Fragments
from neurokube.stages.graph import Graph
from neurokube.stages.multicut import Multicut
from neurokube.stages.problem import COST, PAIRS, SUM

TILE = (8, 32, 32)
SHAPE = (16, 64, 64)
FILTERS = [{"filter": "gaussian", "width": 16}]


def statistics(values, across):
    """Return the row of the graph's table for pairs of these values, of which some lie across z."""
    values, across = np.array(values, np.int64), np.array(across, bool)
    ordered = np.sort(values)
    ranks = [ordered[int(q * (len(values) - 1))] for q in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)]
    row = [len(values), values.sum(), (values**2).sum(), *ranks, across.sum(), values[across].sum()]
    return np.array([row], np.int64)


PAIRS_OF_VOXELS = st.lists(st.tuples(st.integers(0, 510), st.booleans()), min_size=1, max_size=50)
SIZES = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6))


def seen(pairs, sizes, voxel_size=VOXEL_SIZE):
    """Return the features of one edge, by name."""
    row = edge_features([statistics(*zip(*pairs, strict=True))], np.array([sizes], np.uint64), voxel_size)
    return dict(zip(feature_names([]), row[0].tolist(), strict=True))


@given(PAIRS_OF_VOXELS, SIZES)
def test_features_are_what_their_names_say(pairs, sizes):
    values, across = np.array(pairs).T
    found = seen(pairs, sizes)
    assert found["mean"] == pytest.approx(values.mean() / 510, abs=1e-6)
    assert found["deviation"] == pytest.approx(values.std() / 510, abs=1e-6)
    assert (found["lowest"], found["highest"]) == pytest.approx((values.min() / 510, values.max() / 510))
    assert found["across_z"] == pytest.approx(across.mean())
    area = across.sum() * 64 + (1 - across).sum() * 320
    assert found["contact"] == pytest.approx(np.log(area), rel=1e-6)
    assert found["smaller"] == pytest.approx(np.log(min(sizes) * 2560), rel=1e-6)
    assert found["larger"] == pytest.approx(np.log(max(sizes) * 2560), rel=1e-6)


@given(PAIRS_OF_VOXELS, SIZES)
def test_features_do_not_tell_which_fragment_comes_first(pairs, sizes):
    assert seen(pairs, sizes) == seen(pairs, sizes[::-1])


@given(PAIRS_OF_VOXELS, SIZES, st.integers(2, 5))
def test_a_larger_contact_of_the_same_values_changes_its_size_only(pairs, sizes, times):
    one, many = seen(pairs, sizes), seen(pairs * times, sizes)
    for name in ("mean", "deviation", "lowest", "highest", "across_z", "smaller", "larger"):
        assert many[name] == pytest.approx(one[name], abs=1e-6)
    assert many["contact"] - one["contact"] == pytest.approx(np.log(times), abs=1e-5)


@given(PAIRS_OF_VOXELS, SIZES)
def test_finer_voxels_of_the_same_tissue_give_the_same_sizes(pairs, sizes):
    one = seen(pairs, sizes)
    finer = seen(pairs * 4, [8 * n for n in sizes], tuple(v / 2 for v in VOXEL_SIZE))
    names = ("contact", "across_z", "smaller", "larger", "relative_contact")
    assert [finer[name] for name in names] == pytest.approx([one[name] for name in names], abs=1e-4)


@pytest.fixture(scope="module")
def measured():
    """Fragments and a graph of a boundary map, over several tiles, as sources of a multicut."""
    random = np.random.default_rng(0)
    z, y, x = np.indices(SHAPE)
    walls = (y % 24 < 3) | (x % 20 < 3) | (z == 7)
    boundaries = np.clip(200 * walls + random.normal(30, 25, SHAPE), 0, 255).astype(np.uint8)
    image = stored("image", boundaries, TILE)
    fragments, _ = computed(Fragments(tile=TILE), {"boundaries": image})
    graph, _ = computed(
        Graph(filters=FILTERS, image="image"), {"fragments": fragments, "boundaries": image, "image": image}
    )
    return {"fragments": fragments, "graph": graph}


def stump(folder, filters=("gaussian-16",), feature=0, **fields):
    """Write a forest of one tree that asks whether a feature, by default the mean, is above a half."""
    names = feature_names((*fields.get("channels", ()), *filters))
    arrays = {
        "roots": np.array([0], np.int32),
        "feature": np.array([feature, 0, 0], np.int32),
        "threshold": np.array([0.5, np.inf, np.inf]),
        "children": np.array([[1, 2], [1, 1], [2, 2]], np.int32),
        "probability": np.array([0.5, 0.125, 0.875]),
    }
    card = {
        "name": "stump",
        "architecture": {"kind": "forest", "trees": 1, "features": names},
        "voxel_size": VOXEL_SIZE,
        "filters": [{"name": name, "filter": "gaussian", "width": 16} for name in filters],
    }
    return str(write_forest(folder, {**card, **fields}, arrays).folder)


def settled(sources, forest, **fields):
    return Multicut(forest=forest, **fields).settle(sources, None)


def tables(own, data, *names):
    return [data.table(name, cell) for name in names for cell in range(len(own.table(name).cells))]


def test_features_of_a_tile_have_the_sizes_of_fragments_beyond_it(measured):
    fragments = measured["fragments"]
    grid = fragments.volume.grid()
    _, data = computed(Multicut(), measured)
    voxels = data.volume("fragments").read(fragments.spec.box)
    sizes = dict(zip(*(each.tolist() for each in np.unique(voxels, return_counts=True)), strict=True))
    beyond = 0
    for cell in range(len(grid)):
        edges = data.table("graph.edges", cell)
        found = read_features(cell, data, grid, ["gaussian-16"], VOXEL_SIZE)
        expected = np.log([[sizes[a] * 2560, sizes[b] * 2560] for a, b in edges.tolist()]).reshape(-1, 2)
        names = feature_names(["gaussian-16"])
        assert np.allclose(found[:, names.index("smaller")], expected.min(1), rtol=1e-6)
        assert np.allclose(found[:, names.index("larger")], expected.max(1), rtol=1e-6)
        beyond += int(((edges - 1) // np.uint64(np.prod(TILE)) != cell).any(1).sum())
    assert beyond


def test_probability_of_the_forest_takes_the_place_of_the_mean(measured, tmp_path):
    own, data = computed(settled(measured, stump(tmp_path / "stump"), bias=0.6, size_weight=0.5), measured)
    for cell in range(len(own.table("values").cells)):
        stats, values = data.table("graph.stats", cell), data.table("values", cell)
        probability = np.where((stats[:, 1] / (stats[:, 0] * 510)).astype(np.float32) > 0.5, 0.875, 0.125)
        assert np.array_equal(values[:, COST], edge_costs(stats, probability, bias=0.6, size_weight=0.5)[0])
        # what small segments go by, and whole, so that sums are exact
        assert np.array_equal(values[:, SUM], np.rint(probability * 510 * values[:, PAIRS]))


def test_result_does_not_depend_on_the_order_of_tiles(measured, tmp_path):
    stage = settled(measured, stump(tmp_path / "stump"), first_block=(8, 32, 32))
    one, other = (tables(*computed(stage, measured, seed=seed), "values", "segments") for seed in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_settings_name_the_weights_and_not_where_they_lie(measured, tmp_path):
    one, moved = (settled(measured, stump(tmp_path / name)) for name in ("one", "moved"))
    other = settled(measured, stump(tmp_path / "other", feature=1))
    keyed = [stage.model_dump(exclude=set(stage.unkeyed)) for stage in (one, moved, other)]
    assert keyed[0] == keyed[1] != keyed[2]


def test_graph_without_the_filter_is_refused_with_what_to_add(measured, tmp_path):
    forest = stump(tmp_path / "stump", ("gaussian-16", "gaussian-32"))
    with pytest.raises(ConfigurationError, match=r"forest: .* learned from gaussian-32 too.*\{filter: gaussian, width"):
        settled(measured, forest)


def test_graph_without_the_channel_is_refused_with_what_to_add(measured, tmp_path):
    forest = stump(tmp_path / "stump", (), channels=["membranes"])
    with pytest.raises(ConfigurationError, match=r"learned from membranes too.*add membranes to its channels"):
        settled(measured, forest)


def test_unknown_features_are_refused(measured, tmp_path):
    architecture = {"kind": "forest", "trees": 1, "features": ["colour"]}
    with pytest.raises(ConfigurationError, match="sees features that this version does not know"):
        settled(measured, stump(tmp_path / "stump", (), architecture=architecture))


def test_voxels_that_are_too_different_are_refused_and_others_remarked(measured, tmp_path):
    with pytest.raises(ConfigurationError, match="is for voxels of 10 x 8 x 8 nm, the fragments have 40 x 8 x 8 nm"):
        settled(measured, stump(tmp_path / "far", voxel_size=(10.0, 8.0, 8.0)))
    near = settled(measured, stump(tmp_path / "near", voxel_size=(30.0, 8.0, 8.0)))
    assert "not resampled" in near.remarks(measured)[0]
    assert settled(measured, stump(tmp_path / "same")).remarks(measured) == []


def test_network_in_place_of_a_forest_is_refused(measured):
    with pytest.raises(ConfigurationError, match="forest: synthetic-40-8-8 is a network"):
        settled(measured, "synthetic-40-8-8")


def test_forest_that_is_not_there_is_refused(measured):
    with pytest.raises(ConfigurationError, match=r"forest: there is no model 'nothing'.*neurokube train"):
        settled(measured, "nothing")


def test_best_of_a_comparison_is_no_forest(measured):
    with pytest.raises(ConfigurationError, match="forest: 'best of' chooses among networks"):
        settled(measured, "best of evaluation.json")


def test_forest_that_changed_since_the_run_was_planned_is_refused(measured, tmp_path):
    stage = settled(measured, stump(tmp_path / "stump"))
    stage.check_worker()
    stump(tmp_path / "stump", feature=1)
    with pytest.raises(ConfigurationError, match="the forest changed since the run was planned"):
        stage.model_copy().model_validate(stage.model_dump()).check_worker()


def test_forest_beside_the_workflow_is_found_from_anywhere(tmp_path):
    folder = stump(tmp_path / "stump")
    assert Multicut(forest="stump").placed(tmp_path).forest == folder
    assert Multicut(forest="a-name").placed(tmp_path).forest == "a-name"
