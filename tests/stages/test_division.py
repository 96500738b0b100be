"""Division of a segment by its graph: seeds part it along the highest boundaries between them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neurokube.stages.division import divided
from neurokube.stages.graph import STATISTICS


def stats_of(means, pairs=None):
    stats = np.zeros((len(means), len(STATISTICS)), np.int64)
    stats[:, STATISTICS.index("pairs")] = 10 if pairs is None else pairs
    stats[:, STATISTICS.index("sum")] = np.array(means) * stats[:, 0]
    return stats


def seeds_at(count, **places):
    seeds = np.full(count, -1)
    for part, place in places.items():
        seeds[place] = int(part[1:])
    return seeds


CHAIN = np.array([[5, 6], [6, 7], [7, 9], [9, 12]], np.uint64)
IDS = np.array([5, 6, 7, 9, 12], np.uint64)


def test_a_chain_is_cut_at_its_highest_boundary():
    assert divided(IDS, CHAIN, stats_of([10, 50, 200, 20]), seeds_at(5, p0=0, p1=4)).tolist() == [0, 0, 0, 1, 1]


def test_of_equal_boundaries_the_larger_contact_joins_first():
    parts = divided(IDS, CHAIN, stats_of([100, 100, 100, 100], [9, 9, 3, 9]), seeds_at(5, p0=0, p1=4))
    assert parts.tolist() == [0, 0, 0, 1, 1]


def test_several_seeds_of_one_part_need_not_touch():
    seeds = np.array([0, -1, 1, -1, 0])
    assert divided(IDS, CHAIN, stats_of([10, 50, 200, 20]), seeds).tolist() == [0, 0, 1, 0, 0]


def test_what_no_seed_leads_to_has_no_part():
    seeds = seeds_at(5, p0=0, p1=1)
    assert divided(IDS, CHAIN[:2], stats_of([10, 50]), seeds).tolist() == [0, 1, 1, -1, -1]


def test_a_boundary_of_nothing_still_joins():
    assert divided(IDS, CHAIN, stats_of([0, 0, 7, 0]), seeds_at(5, p0=0, p1=4)).tolist() == [0, 0, 0, 1, 1]


@given(st.data())
def test_parts_are_those_of_a_naive_flood_and_do_not_depend_on_the_order_of_edges(data):
    count = data.draw(st.integers(2, 12))
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), unique=True, min_size=1))
    heights = data.draw(st.lists(st.integers(0, 510), min_size=len(chosen), max_size=len(chosen), unique=True))
    seeds = np.array(data.draw(st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=count, max_size=count)))
    ids = np.arange(10, 10 + count, dtype=np.uint64)
    edges = np.array(chosen, np.uint64) + np.uint64(10)
    # from the lowest boundary up, two groups join unless both have a seed
    groups = {k: ({k}, int(seeds[k])) for k in range(count)}
    for (a, b), _ in sorted(zip(chosen, heights, strict=True), key=lambda pair: pair[1]):
        (one, first), (other, second) = groups[a], groups[b]
        if one is not other and (first < 0 or second < 0):
            joined = (one | other, max(first, second))
            groups |= {k: joined for k in joined[0]}
    expected = [groups[k][1] for k in range(count)]
    assert divided(ids, edges, stats_of(heights), seeds).tolist() == expected
    order = data.draw(st.permutations(range(len(chosen))))
    assert divided(ids, edges[order], stats_of(np.array(heights)[order]), seeds).tolist() == expected
