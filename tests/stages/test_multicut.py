import json
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from stagewise import computed, file, stored

from neurokube.blocks import Box, Grid
from neurokube.errors import ConfigurationError
from neurokube.stages import Data, Fragments, Graph, Multicut, Source, TableOutput, VolumeOutput
from neurokube.stages.graph import fragment_ids
from neurokube.synthesis import Neuropil, synthesize
from neurokube.volumes import VolumeSpec

SHAPE, TILE, SIZE = (48, 96, 96), (16, 32, 32), (12.0, 12.0, 12.0)
LEVELLED = {"first_block": TILE, "bias": 0.5}


@lru_cache(maxsize=1)
def graph():
    """Fragments and graph of a boundary map with gaps."""
    neuropil = Neuropil(seed=5, boundary_gaps=0.1, microscope="fib-sem")
    boundaries = stored("boundaries", synthesize(neuropil, SIZE, Box.of(SHAPE), ("boundaries",))["boundaries"], TILE)
    fragments, _ = computed(Fragments(tile=TILE, smallest=0, sections="together"), {"boundaries": boundaries})
    found, data = computed(Graph(), {"fragments": fragments, "boundaries": boundaries})
    return fragments, found, data


def cut(*, seed=0, **settings):
    """Return the segment of each fragment, in the order of their ids, and the summary."""
    fragments, found, _ = graph()
    own, data = computed(Multicut(**settings), {"graph": found, "fragments": fragments}, seed=seed)
    tiles = range(len(fragments.volume.grid()))
    return np.concatenate([data.table("segments", t) for t in tiles]), json.loads(file(own, "summary.json"))


def edges():
    """Return the ids of all fragments, and the edges between them as places among these."""
    fragments, _, data = graph()
    grid = fragments.volume.grid()
    counts = [int(data.table("counts", t)[0]) for t in range(len(grid))]
    ids = np.concatenate([fragment_ids(grid, t, n) for t, n in enumerate(counts)])
    return ids, np.searchsorted(ids, np.concatenate([data.table("edges", t) for t in range(len(grid))]))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_levels_cost_hardly_more_than_all_at_once(levels):
    _, whole = cut(bias=0.5, levels=0)
    _, parts = cut(levels=levels, **LEVELLED)
    assert whole["energy"] < -100
    assert parts["energy"] <= whole["energy"] + 0.005 * abs(whole["energy"])
    assert parts["nodes"] < whole["nodes"]


def test_the_energy_is_that_of_all_fragments_whatever_the_levels():
    segments, summary = cut(**LEVELLED)
    fragments, found, _ = graph()
    _, data = computed(Multicut(**LEVELLED), {"graph": found, "fragments": fragments})
    costs = np.concatenate([data.table("values", t)[:, 0] for t in range(len(fragments.volume.grid()))])
    parted = segments[edges()[1]]
    assert summary["energy"] == costs[parted[:, 0] != parted[:, 1]].sum()


def test_segments_are_consecutive_from_one_in_the_order_of_their_first_fragments():
    segments, summary = cut(**LEVELLED)
    assert list(dict.fromkeys(segments.tolist())) == list(range(1, summary["segments"] + 1))


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000))
def test_segments_do_not_depend_on_the_order_of_blocks(seed):
    np.testing.assert_array_equal(cut(seed=seed, **LEVELLED)[0], cut(**LEVELLED)[0])


def test_each_segment_hangs_together():
    segments, summary = cut(**LEVELLED)
    ids, pairs = edges()
    inner = pairs[segments[pairs[:, 0]] == segments[pairs[:, 1]]]
    joined = coo_array((np.ones(len(inner)), inner.T), shape=(len(ids), len(ids)))
    assert connected_components(joined, directed=False)[0] == summary["segments"]


def test_without_a_margin_less_is_left_for_the_last():
    assert cut(margin=0.0, **LEVELLED)[1]["nodes"] < cut(margin=2.0, **LEVELLED)[1]["nodes"]


@pytest.mark.parametrize("solver", ["greedy-additive", "greedy-fixation", "fusion-moves", "mutex-watershed"])
def test_every_solver_solves_blocks_and_what_is_left(solver):
    _, best = cut(**LEVELLED)
    _, summary = cut(solver=[solver], **LEVELLED)
    assert best["energy"] * 1.005 <= summary["energy"] <= 0.95 * best["energy"]


def test_small_segments_join_a_neighbour():
    fragments, _, _ = graph()
    data = Data({"fragments": fragments}, Source("none", "none", {}, {}))
    sizes = np.concatenate([data.table("fragments.sizes", t) for t in range(len(fragments.volume.grid()))])
    for smallest in (0, 2000):
        segments, _ = cut(smallest=smallest, **LEVELLED)
        volumes = np.bincount(segments, sizes)[1:]
        assert (volumes.min() < 2000) == (smallest == 0)


TILES = Grid((24, 64, 64), (8, 32, 32))


def source(name="fragments", kind="fragments", cell=TILES.cell):
    spec = VolumeSpec(TILES.shape, "uint64", (40.0, 8.0, 8.0), kind="labels")
    return Source(name, kind, {name: VolumeOutput(name, spec, cell)}, {name: "/none"})


def graph_source(kind="graph"):
    return Source("graph", kind, {"edges": TableOutput("edges", TILES)}, {"edges": "/none"})


def steps(stage):
    return {step.name: len(step.grid) for step in stage.steps({"graph": graph_source(), "fragments": source()})}


def test_every_level_is_a_pass_over_blocks_twice_as_long():
    assert steps(Multicut(first_block=(8, 32, 32))) == {
        "costs": 12,
        "level-1": 12,
        "reduce-1": 12,
        "level-2": 2,
        "reduce-2": 2,
        "last": 1,
        "segments": 12,
    }
    assert list(steps(Multicut(first_block=(8, 32, 32), levels=1))) == [
        "costs",
        "level-1",
        "reduce-1",
        "last",
        "segments",
    ]


def test_a_first_block_is_rounded_up_to_whole_tiles():
    assert steps(Multicut(first_block=(9, 33, 1), levels=1))["level-1"] == 2 * 1 * 2


def test_what_fits_one_block_is_solved_at_once():
    assert list(steps(Multicut())) == list(steps(Multicut(levels=0))) == ["costs", "last", "segments"]


def test_levels_that_the_volume_is_too_small_for_are_told():
    read = {"graph": graph_source(), "fragments": source()}
    told = [Multicut(first_block=(8, 32, 32), levels=levels).remarks(read) for levels in (2, 3, 5)]
    assert told == [
        [],
        ["level 3 is left out, as one block of level 3 would hold all of the volume"],
        ["levels 3 to 5 are left out, as one block of level 3 would hold all of the volume"],
    ]
    assert Multicut(levels=None).remarks(read) == Multicut(levels=0).remarks(read) == []


def test_the_graph_must_be_a_graph():
    with pytest.raises(ConfigurationError, match="graph: 'graph' is not a graph stage; name one"):
        Multicut().steps({"graph": graph_source("multicut"), "fragments": source()})


@pytest.mark.parametrize("other", [source(kind="volume"), source(cell=(8, 64, 64))])
def test_the_fragments_must_be_those_of_the_graph(other):
    with pytest.raises(ConfigurationError, match="fragments: 'fragments' is not what the graph 'graph' was made of"):
        Multicut().steps({"graph": graph_source(), "fragments": other})
