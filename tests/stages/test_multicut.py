import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Grid
from neurokube.errors import ConfigurationError
from neurokube.stages import Source, TableOutput, VolumeOutput
from neurokube.stages.graph import WholeGraph
from neurokube.stages.multicut import Multicut, absorb_small, edge_costs, solve
from neurokube.volumes import VolumeSpec

PROPERTY = settings(max_examples=60, deadline=None)


def graph(edges, boundaries=None, sizes=None, nodes=None):
    """A graph with mean boundary values, 0 to 1, along its edges."""
    nodes = nodes or 1 + max(max(edge) for edge in edges)
    boundaries = np.full(len(edges), 0.5) if boundaries is None else np.array(boundaries)
    stats = np.zeros((len(edges), 5), np.int64)
    stats[:, 0], stats[:, 1] = 100, np.rint(boundaries * 100 * 510)
    sizes = np.full(nodes, 100) if sizes is None else np.array(sizes)
    return WholeGraph(np.array(edges, np.uint64).reshape(-1, 2), stats, sizes.astype(np.uint64))


def cost(mean, pairs=100, *, bias=0.5, size_weight=0.5):
    stats = np.array([[pairs, round(mean * pairs * 510), 0, 0, 0]])
    return float(edge_costs(stats, bias=bias, size_weight=size_weight)[0])


def cut_cost(edges, costs, segments):
    return sum(c for (a, b), c in zip(edges, costs, strict=True) if segments[a] != segments[b])


def changed_by_one(segments):
    """Yield the partitions in which one node moves, or two segments are joined."""
    labels = [*dict.fromkeys(segments), max(segments) + 1]
    for node in range(len(segments)):
        for label in labels:
            yield [*segments[:node], label, *segments[node + 1 :]]
    for one in labels:
        for other in labels:
            yield [other if label == one else label for label in segments]


def test_a_weak_boundary_is_better_joined_and_a_strong_one_better_cut():
    assert cost(0.1) > 0
    assert cost(0.9) < 0
    assert cost(0.5) == pytest.approx(0)


@PROPERTY
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 0.95))
def test_the_stronger_the_boundary_the_lower_the_cost_of_cutting(one, other, bias):
    weaker, stronger = sorted((one, other))
    assert cost(weaker, bias=bias) >= cost(stronger, bias=bias)


@PROPERTY
@given(st.floats(0, 1), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_more_bias_makes_cutting_cheaper(mean, one, other):
    low, high = sorted((one, other))
    assert cost(mean, bias=low) >= cost(mean, bias=high)


def test_a_large_contact_counts_more_unless_all_count_alike():
    assert cost(0.2, 10_000, size_weight=1) == pytest.approx(10 * cost(0.2, 100, size_weight=1))
    assert cost(0.2, 10_000, size_weight=0) == pytest.approx(cost(0.2, 100, size_weight=0))
    assert cost(0.8, 10_000) < cost(0.8, 100) < 0


def test_a_boundary_of_nothing_or_all_has_a_finite_cost():
    assert np.isfinite([cost(0.0), cost(1.0)]).all()


def test_a_chain_falls_apart_where_its_boundary_is_strong():
    edges = [(0, 1), (1, 2), (2, 3)]
    chain = graph(edges, [0.1, 0.9, 0.1])
    segments = solve(chain, edge_costs(chain.stats, bias=0.5, size_weight=0.5))
    assert segments.tolist() == [1, 1, 2, 2]
    assert segments.dtype == np.uint64


def test_a_weak_contact_cannot_join_what_a_strong_boundary_parts():
    edges = [(0, 1), (1, 2), (0, 2)]
    assert solve(graph(edges), np.array([2.0, 1.0, -5.0])).tolist() == [1, 1, 2]


def test_a_graph_without_edges_keeps_every_fragment():
    alone = graph(np.zeros((0, 2)), nodes=3)
    assert solve(alone, np.zeros(0)).tolist() == [1, 2, 3]


def test_a_graph_without_nodes_has_no_segments():
    nothing = WholeGraph(np.zeros((0, 2), np.uint64), np.zeros((0, 5), np.int64), np.zeros(0, np.uint64))
    assert solve(nothing, np.zeros(0)).size == 0
    assert absorb_small(nothing, np.zeros(0, np.uint64), 10).size == 0


@PROPERTY
@given(st.integers(2, 6), st.data())
def test_no_move_of_one_node_and_no_join_of_two_segments_would_cost_less(nodes, data):
    pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    edges = sorted(data.draw(st.sets(st.sampled_from(pairs), min_size=1)))
    costs = data.draw(st.lists(st.integers(-5, 5), min_size=len(edges), max_size=len(edges)))
    segments = solve(graph(edges, nodes=nodes), np.array(costs, float)).tolist()
    assert cut_cost(edges, costs, segments) <= min(cut_cost(edges, costs, s) for s in changed_by_one(segments))
    assert list(dict.fromkeys(segments)) == list(range(1, len(set(segments)) + 1))


def test_a_small_segment_joins_the_neighbour_behind_the_weakest_boundary():
    row = graph([(0, 1), (1, 2)], [0.8, 0.3], sizes=[500, 5, 500])
    assert absorb_small(row, np.array([1, 2, 3], np.uint64), 10).tolist() == [1, 2, 2]


def test_small_segments_join_until_none_is_left():
    row = graph([(0, 1), (1, 2), (2, 3)], [0.2, 0.3, 0.9], sizes=[3, 3, 3, 500])
    assert absorb_small(row, np.array([1, 2, 3, 4], np.uint64), 10).tolist() == [1, 1, 1, 1]


def test_a_small_segment_without_a_neighbour_stays():
    pair = graph([(1, 2)], sizes=[1, 500, 500])
    assert absorb_small(pair, np.array([1, 2, 3], np.uint64), 10).tolist() == [1, 2, 3]


def test_nothing_is_absorbed_unless_asked():
    row = graph([(0, 1)], sizes=[1, 1])
    assert absorb_small(row, np.array([1, 2], np.uint64), 0).tolist() == [1, 2]


@PROPERTY
@given(st.integers(2, 6), st.integers(0, 30), st.data())
def test_absorbing_joins_whole_segments_and_leaves_none_small_that_touches_another(nodes, smallest, data):
    pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    edges = sorted(data.draw(st.sets(st.sampled_from(pairs), min_size=1)))
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=nodes, max_size=nodes))
    boundaries = data.draw(st.lists(st.floats(0, 1), min_size=len(edges), max_size=len(edges)))
    before = data.draw(st.lists(st.integers(1, nodes), min_size=nodes, max_size=nodes))
    after = absorb_small(graph(edges, boundaries, sizes, nodes), np.array(before, np.uint64), smallest).tolist()
    assert len(set(zip(before, after, strict=True))) == len(set(before))
    volume = {label: sum(s for s, a in zip(sizes, after, strict=True) if a == label) for label in after}
    for a, b in edges:
        if after[a] != after[b]:
            assert min(volume[after[a]], volume[after[b]]) >= smallest


TILES = Grid((24, 64, 64), (8, 32, 32))


def fragments(name="fragments", kind="fragments", cell=TILES.cell):
    spec = VolumeSpec(TILES.shape, "uint64", (40.0, 8.0, 8.0), kind="labels")
    return Source(name, kind, {name: VolumeOutput(name, spec, cell)}, {name: "/none"})


def graph_source(kind="graph"):
    return Source("graph", kind, {"edges": TableOutput("edges", TILES)}, {"edges": "/none"})


def test_the_segments_follow_the_tiles_of_the_graph():
    outputs = Multicut().outputs({"graph": graph_source(), "fragments": fragments()})
    assert outputs == {"segments": TableOutput("segments", TILES)}


def test_the_graph_must_be_a_graph():
    with pytest.raises(ConfigurationError, match="graph: 'graph' is not a graph stage; name one"):
        Multicut().steps({"graph": graph_source("multicut"), "fragments": fragments()})


@pytest.mark.parametrize("other", [fragments(kind="volume"), fragments(cell=(8, 64, 64))])
def test_the_fragments_must_be_those_of_the_graph(other):
    with pytest.raises(ConfigurationError, match="fragments: 'fragments' is not what the graph 'graph' was made of"):
        Multicut().steps({"graph": graph_source(), "fragments": other})
