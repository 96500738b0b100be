import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.stages.problem import COST, PAIRS, SUM, Part, absorb_small, consecutive, joined, lookup, summed

PROPERTY = settings(max_examples=60, deadline=None)


def part(nodes, edges, boundaries=None, sizes=None, costs=None):
    """A problem with mean boundary values, 0 to 1, along its edges."""
    pairs = np.array(edges, np.uint64).reshape(-1, 2)
    values = np.zeros((len(pairs), 4))
    values[:, COST] = 0 if costs is None else costs
    values[:, PAIRS] = 100
    values[:, SUM] = 100 * 510 * np.array([0.5] * len(pairs) if boundaries is None else boundaries)
    nodes = np.arange(nodes, dtype=np.uint64) if isinstance(nodes, int) else np.array(nodes, np.uint64)
    sizes = np.full(len(nodes), 100) if sizes is None else np.array(sizes)
    return Part(nodes, sizes, pairs, values, np.zeros((0, 2), np.uint64), np.zeros(0))


pairs_of = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


@PROPERTY
@given(pairs_of, st.randoms())
def test_sums_of_pairs_are_the_same_in_any_order_and_direction(pairs, order):
    values = [float(k) for k in range(len(pairs))]
    mixed = list(zip(pairs, values, strict=True))
    order.shuffle(mixed)
    one = summed(np.array(pairs, np.uint64).reshape(-1, 2), np.array(values))
    two = summed(np.array([p[::-1] for p, _ in mixed], np.uint64).reshape(-1, 2), np.array([v for _, v in mixed]))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    expected = {}
    for (a, b), v in zip(pairs, values, strict=True):
        if a != b:
            expected[min(a, b), max(a, b)] = expected.get((min(a, b), max(a, b)), 0) + v
    assert dict(zip(map(tuple, one[0].tolist()), one[1].tolist(), strict=True)) == expected
    assert one[0].tolist() == sorted(one[0].tolist())


@PROPERTY
@given(st.sets(st.integers(1, 50), min_size=1), st.data())
def test_what_is_joined_is_called_by_its_first(ids, data):
    nodes = sorted(ids)
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(nodes), st.sampled_from(nodes)), max_size=20))
    found = joined(np.array(nodes, np.uint64), np.array(pairs, np.uint64).reshape(-1, 2)).tolist()
    group = {n: {n} for n in nodes}
    for a, b in pairs:
        both = group[a] | group[b]
        for n in both:
            group[n] = both
    assert found == [min(group[n]) for n in nodes]


def test_ids_are_looked_up_in_several_tables_and_stay_where_none_has_them():
    tables = [np.array([[1, 1], [3, 1]], np.uint64), np.array([[7, 5]], np.uint64)]
    found = lookup(np.array([[3, 7], [8, 1]], np.uint64), tables)
    assert found.tolist() == [[1, 5], [8, 1]]


def test_the_neighbourhood_grows_by_one_edge_a_step():
    chain = part(6, [(k, k + 1) for k in range(5)])
    start = np.array([2], np.uint64)
    assert chain.neighbourhood(start, 0).tolist() == [2]
    assert chain.neighbourhood(start, 1).tolist() == [1, 2, 3]
    assert chain.neighbourhood(start, 2).tolist() == [0, 1, 2, 3, 4]


def test_an_edge_that_leads_out_of_what_is_known_is_left_out():
    some = part([4, 5], [(4, 5), (5, 9)])
    assert some.neighbourhood(some.nodes, 3).tolist() == [4, 5]
    assert some.within(some.nodes).edges.tolist() == [[4, 5]]


def test_a_margin_joins_less():
    pair = part(2, [(0, 1)], costs=[0.5])
    pair.values[:, 1] = 1.0
    assert len(set(pair.solve(["greedy-additive"]).tolist())) == 1
    assert len(set(pair.solve(["greedy-additive"], margin=1.0).tolist())) == 2


def segments(*labels):
    return np.array(labels, np.uint64)


def test_a_small_segment_joins_the_neighbour_behind_the_weakest_boundary():
    row = part(3, [(0, 1), (1, 2)], [0.8, 0.3], sizes=[500, 5, 500])
    assert consecutive(absorb_small(row, segments(1, 2, 3), 10)).tolist() == [1, 2, 2]


def test_small_segments_join_until_none_is_left():
    row = part(4, [(0, 1), (1, 2), (2, 3)], [0.2, 0.3, 0.9], sizes=[3, 3, 3, 500])
    assert consecutive(absorb_small(row, segments(1, 2, 3, 4), 10)).tolist() == [1, 1, 1, 1]


def test_a_small_segment_without_a_neighbour_stays():
    pair = part(3, [(1, 2)], sizes=[1, 500, 500])
    assert absorb_small(pair, segments(1, 2, 3), 10).tolist() == [1, 2, 3]


def test_nothing_is_absorbed_unless_asked():
    row = part(2, [(0, 1)], sizes=[1, 1])
    assert absorb_small(row, segments(1, 2), 0).tolist() == [1, 2]


@PROPERTY
@given(st.integers(2, 6), st.integers(0, 30), st.data())
def test_absorbing_joins_whole_segments_and_leaves_none_small_that_touches_another(nodes, smallest, data):
    pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    edges = sorted(data.draw(st.sets(st.sampled_from(pairs), min_size=1)))
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=nodes, max_size=nodes))
    boundaries = data.draw(st.lists(st.floats(0, 1), min_size=len(edges), max_size=len(edges)))
    before = data.draw(st.lists(st.integers(1, nodes), min_size=nodes, max_size=nodes))
    after = absorb_small(part(nodes, edges, boundaries, sizes), segments(*before), smallest).tolist()
    assert len(set(zip(before, after, strict=True))) == len(set(before))
    volume = {label: sum(s for s, a in zip(sizes, after, strict=True) if a == label) for label in after}
    for a, b in edges:
        if after[a] != after[b]:
            assert min(volume[after[a]], volume[after[b]]) >= smallest


def test_segments_count_from_one_in_the_order_of_their_first_nodes():
    assert consecutive(segments(9, 4, 9, 7, 4)).tolist() == [1, 2, 1, 3, 2]
    assert consecutive(segments()).tolist() == []
