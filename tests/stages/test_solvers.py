from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.stages.solvers import SolverName, energy, solve

PROPERTY = settings(max_examples=60, deadline=None)
SOLVERS = get_args(SolverName)


def solved(nodes, edges, costs, *solvers, lifted=(), lifted_costs=()):
    found = solve(
        nodes,
        np.array(edges, np.uint64).reshape(-1, 2),
        np.array(costs, float),
        solvers or ("greedy-additive", "kernighan-lin"),
        np.array(lifted, np.uint64).reshape(-1, 2),
        np.array(lifted_costs, float),
    )
    return found.tolist()


def same(labels):
    """The partition, whatever its labels."""
    first = {}
    return [first.setdefault(label, len(first)) for label in labels]


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


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_chain_falls_apart_where_cutting_is_better(solver):
    assert same(solved(4, [(0, 1), (1, 2), (2, 3)], [2, -2, 2], solver)) == [0, 0, 1, 1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_weak_contact_cannot_join_what_a_strong_boundary_parts(solver):
    assert same(solved(3, [(0, 1), (0, 2), (1, 2)], [2.0, -5.0, 1.0], solver)) == [0, 0, 1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_lifted_edge_parts_what_does_not_touch(solver):
    edges, costs = [(0, 1), (1, 2)], [3.0, 1.0]
    assert same(solved(3, edges, costs, solver)) == [0, 0, 0]
    assert same(solved(3, edges, costs, solver, lifted=[(0, 2)], lifted_costs=[-5.0])) == [0, 0, 1]


@pytest.mark.parametrize("solver", ["greedy-additive", "greedy-fixation", "kernighan-lin"])
def test_a_lifted_edge_can_hold_together_what_is_better_cut(solver):
    held = solved(3, [(0, 1), (1, 2)], [1.0, -1.0], solver, lifted=[(0, 2)], lifted_costs=[5.0])
    assert same(held) == [0, 0, 0]


def test_a_graph_without_edges_keeps_every_node_alone():
    assert same(solved(3, [], [])) == [0, 1, 2]
    assert solved(0, [], []) == []


@PROPERTY
@given(st.integers(2, 6), st.data())
def test_no_move_of_one_node_and_no_join_of_two_segments_would_cost_less(nodes, data):
    pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    edges = sorted(data.draw(st.sets(st.sampled_from(pairs), min_size=1)))
    costs = data.draw(st.lists(st.integers(-5, 5), min_size=len(edges), max_size=len(edges)))
    segments = solved(nodes, edges, costs)
    assert cut_cost(edges, costs, segments) <= min(cut_cost(edges, costs, s) for s in changed_by_one(segments))
    assert energy(np.array(segments, np.uint64), np.array(edges), np.array(costs, float)) == cut_cost(
        edges, costs, segments
    )


@PROPERTY
@given(st.integers(2, 6), st.sampled_from(SOLVERS), st.sampled_from(SOLVERS), st.data())
def test_a_chain_of_solvers_is_never_worse_than_its_first(nodes, first, second, data):
    pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    edges = sorted(data.draw(st.sets(st.sampled_from(pairs), min_size=1)))
    costs = data.draw(st.lists(st.integers(-5, 5), min_size=len(edges), max_size=len(edges)))
    improving = {"kernighan-lin", "fusion-moves"}
    if second in improving:
        alone, chained = solved(nodes, edges, costs, first), solved(nodes, edges, costs, first, second)
        assert cut_cost(edges, costs, chained) <= cut_cost(edges, costs, alone)
