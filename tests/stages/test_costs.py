import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.stages.costs import UNIT, boundary_probability, edge_costs, exact
from neurokube.stages.graph import STATISTICS

PROPERTY = settings(max_examples=60, deadline=None)


def stats(mean, pairs=100, across=0.0):
    row = np.zeros((1, len(STATISTICS)), np.int64)
    for name, value in {"pairs": pairs, "sum": round(mean * pairs * 510), "pairs_z": round(across * pairs)}.items():
        row[0, STATISTICS.index(name)] = value
    return row


def cost(mean, pairs=100, across=0.0, *, bias=0.5, size_weight=0.5, **options):
    return float(edge_costs(stats(mean, pairs, across), bias=bias, size_weight=size_weight, **options)[0][0])


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
    assert cost(0.2, 10_000, size_weight=1) == pytest.approx(10 * cost(0.2, 100, size_weight=1), abs=10 * UNIT)
    assert cost(0.2, 10_000, size_weight=0) == pytest.approx(cost(0.2, 100, size_weight=0))
    assert cost(0.8, 10_000) < cost(0.8, 100) < 0


def test_a_boundary_of_nothing_or_all_has_a_finite_cost():
    assert np.isfinite([cost(0.0), cost(1.0)]).all()


def test_contacts_across_z_have_a_bias_and_a_weight_of_their_own():
    assert cost(0.5, across=0.0, z_bias=0.9) == pytest.approx(0)
    assert cost(0.5, across=1.0, z_bias=0.9) == pytest.approx(cost(0.5, bias=0.9))
    assert 0 > cost(0.5, across=0.5, z_bias=0.9) > cost(0.5, across=1.0, z_bias=0.9)
    assert cost(0.2, across=1.0, z_weight=3.0) == pytest.approx(3 * cost(0.2), abs=3 * UNIT)
    assert cost(0.2, across=1.0, z_weight=0.0) == 0


@PROPERTY
@given(st.floats(0, 1), st.integers(1, 10**6), st.floats(0, 1), st.floats(0.05, 0.95))
def test_the_weight_is_by_how_much_more_evidence_of_a_boundary_lowers_the_cost(mean, pairs, size_weight, bias):
    _, weight = edge_costs(stats(mean, pairs), bias=bias, size_weight=size_weight)
    higher = 1 / (1 + np.exp(-np.log(bias / (1 - bias)) - 1))
    lower = cost(mean, pairs, bias=higher, size_weight=size_weight)
    assert cost(mean, pairs, bias=bias, size_weight=size_weight) - lower == pytest.approx(
        weight[0], rel=1e-9, abs=2 * UNIT
    )


@PROPERTY
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=50), st.randoms())
def test_sums_of_costs_do_not_depend_on_their_order(values, order):
    costs = exact(np.array(values))
    shuffled = costs.copy()
    order.shuffle(shuffled)
    assert costs.sum() == shuffled.sum() == sum(shuffled.tolist())


def test_any_statistic_can_stand_for_the_probability():
    row = stats(0.25)
    row[0, STATISTICS.index("q90")] = 510
    assert boundary_probability(row)[0] == pytest.approx(0.25, abs=1e-4)
    assert boundary_probability(row, "q90")[0] == 1
    assert boundary_probability(row, "median")[0] == 0
