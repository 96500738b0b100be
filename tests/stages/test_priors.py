import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from neurokube.errors import ConfigurationError
from neurokube.stages.graph import STATISTICS
from neurokube.stages.priors import (
    Prior,
    among,
    apart,
    class_sums,
    clear_classes,
    clear_contacts,
    log_odds,
    met,
    overlaps,
    parted,
    read_pairs,
    sharing,
)

PROPERTY = settings(max_examples=40, deadline=None)
SHAPE = (3, 4, 5)


def rows(*found):
    return np.array(found, np.int64).reshape(-1, len(found[0]) if found else 3)


@PROPERTY
@given(
    hnp.arrays(np.uint32, SHAPE, elements=st.integers(0, 4)),
    hnp.arrays(np.uint8, SHAPE),
    hnp.arrays(np.uint64, SHAPE, elements=st.sampled_from([0, 1, 2**40])),
)
def test_what_fragments_hold_is_counted_voxel_by_voxel(fragments, channel, objects):
    sums = class_sums(fragments, [channel, 255 - channel], 4)
    for k in range(1, 5):
        assert sums[k - 1].tolist() == [int(channel[fragments == k].sum()), int((255 - channel[fragments == k]).sum())]
    held = {(f, o): n for f, o, n in overlaps(fragments, objects)[0].tolist()}
    expected = {}
    for f, o in zip(fragments.ravel().tolist(), objects.ravel().tolist(), strict=True):
        if f and o:
            expected[f, o] = expected.get((f, o), 0) + 1
    assert held == expected


def test_a_class_is_clear_where_its_share_is():
    sums = 255 * rows((90, 10, 0), (50, 50, 0), (0, 30, 70))
    kinds, odds = clear_classes(sums, np.array([100, 100, 100]), 0.6)
    assert kinds.tolist() == [1, 0, 3]
    assert odds[0] == pytest.approx(np.log(9)) and odds[1] == 0 and 0 < odds[2] < odds[0]


def test_one_channel_tells_inside_from_outside():
    kinds, _ = clear_classes(255 * rows((90,), (5,), (50,)), np.array([100, 100, 100]), 0.6)
    assert kinds.tolist() == [1, 2, 0]


def test_noise_has_no_odds_and_what_parts_cells_has_many():
    noise = np.array([[[500, 300], [300, 200]], [[1000, 600], [600, 400]]])
    assert (log_odds(noise) == 0).all()
    clear = np.array([[[5000, 10], [10, 5000]], [[2000, 3000], [3000, 2000]]])
    odds = log_odds(clear)
    assert odds[0, 1] == odds[1, 0] > 2
    assert odds[0, 0] < 0


def test_a_few_contacts_do_not_make_odds():
    few = np.zeros((2, 3, 3), np.int64)
    few[:, 0, 0] = 9000, 1000
    few[1, 1, 2] = few[1, 2, 1] = 1
    assert (log_odds(few) <= 0.5).all()
    assert log_odds(few)[1, 1] == 0
    assert (log_odds(np.zeros((2, 3, 3), np.int64)) == 0).all()


def test_contacts_are_counted_in_both_directions():
    assert met(rows((1, 2), (2, 1), (0, 0)), 3).tolist() == [[2, 0, 0], [0, 0, 2], [0, 2, 0]]


def test_fragments_that_share_an_object_are_tied_to_the_one_that_holds_most():
    pairs, share = sharing(rows((7, 1, 60), (3, 1, 500), (9, 1, 40), (4, 2, 300)), 50)
    assert pairs.tolist() == [[3, 7]]
    assert 0 < share[0] < 1
    assert sharing(rows((7, 1, 10)), 50)[0].shape == (0, 2)


def test_different_objects_repel_by_the_fragments_that_hold_most_of_them():
    held = rows(
        (3, 1, 50, 0, 0, 0), (4, 1, 80, 0, 0, 10), (8, 2, 90, 0, 0, 1000), (9, 3, 90, 0, 0, 50_000), (4, 4, 60, 0, 0, 0)
    )
    assert sorted(map(tuple, np.sort(apart(held, 2000), axis=1).tolist())) == [(4, 8), (4, 8)]
    assert len(apart(held[:1], 2000)) == 0


@PROPERTY
@given(
    st.sets(st.tuples(st.integers(0, 5), st.integers(6, 9))), st.sets(st.tuples(st.integers(0, 5), st.integers(6, 9)))
)
def test_edges_are_found_among_pairs(edges, pairs):
    ordered = sorted(edges)
    found = among(*(np.array(sorted(p), np.uint64).reshape(-1, 2) for p in (edges, pairs)))
    assert found.tolist() == [edge in pairs for edge in ordered]


def test_a_contact_is_across_what_its_upper_quarter_shows():
    stats = np.zeros((2, len(STATISTICS)), np.int64)
    stats[0, STATISTICS.index("q75")] = 500
    assert clear_contacts(stats, 0.6).tolist() == [True, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of channels, objects, contacts and pairs"),
        ({"objects": "a", "pairs": "b"}, "give one of channels, objects, contacts and pairs"),
        ({"channels": {"axon": "a"}}, "channels: give 'repel'"),
        ({"objects": "a"}, "objects: give 'attract' or 'repel'"),
        ({"contacts": "a", "repel": 1, "attract": 1}, "attract: goes with objects"),
    ],
)
def test_a_prior_is_one_thing_with_a_weight(given, message):
    with pytest.raises(ValidationError, match=message):
        Prior(**given)


HEADER = "z1,y1,x1,z2,y2,x2,cost\n"


def test_pairs_are_read_from_a_table(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(HEADER + "0,0,0, 10,20,30, -2.5\n")
    assert read_pairs(str(path)).tolist() == [[0, 0, 0, 10, 20, 30, -2.5]]
    path.write_text(HEADER)
    assert read_pairs(str(path)).shape == (0, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "0,0,0,1,1,1\n", "a field is missing or no number"),
        (HEADER + "0,0,0,1,1,one,1\n", "a field is missing or no number"),
        (HEADER + "0,0,0,1,1,1,inf\n", "holds what is not finite"),
        ("z1,y1,x1,z2,y2,x2\n", "has no column 'cost'"),
        (None, "name a CSV file"),
    ],
)
def test_a_file_that_is_no_table_of_pairs_is_refused(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_pairs(str(path))


def test_a_fragment_is_of_what_it_holds_most_of():
    # fragment 1 is of object 5 and touches 7; 2 and 3 are of 7; 4 holds two objects alike
    rows = np.array([[1, 5, 1000], [1, 7, 60], [2, 7, 50], [3, 7, 55], [4, 5, 90], [4, 7, 100]], np.int64)
    pairs, _ = sharing(rows, 50)
    assert sorted(map(sorted, pairs.tolist())) == [[1, 4], [2, 4], [3, 4]]
    edges = np.array([[1, 2], [2, 3], [2, 4], [1, 9]], np.uint64)
    assert parted(edges, rows, 50).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "z1;y1;x1;z2;y2;x2;cost\n1;1;1;2;2;2;3\n",
            "no column 'z1'; it needs z1, y1, x1, z2, y2, x2, cost, with commas",
        ),
        (
            "z1,y1,x1,z2,y2,x2,cost\n1,1,1,2,2,2,3\n1,1,1\n",
            "line 3: a field is missing or no number; mend or leave it out",
        ),
    ],
)
def test_a_file_of_pairs_that_is_none_is_told(tmp_path, text, words):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        read_pairs(str(tmp_path / "pairs.csv"))


def test_a_file_of_pairs_may_begin_as_spreadsheets_write_it(tmp_path):
    (tmp_path / "pairs.csv").write_text("z1,y1,x1,z2,y2,x2,cost\n1,1,1,2,2,2,3\n", encoding="utf-8-sig")
    assert read_pairs(str(tmp_path / "pairs.csv")).tolist() == [[1, 1, 1, 2, 2, 2, 3]]


@pytest.mark.parametrize("wrong", [{"pairs": "p.csv", "repel": 5}, {"objects": "o", "attract": 1, "least": 0.9}])
def test_a_setting_that_does_not_apply_is_refused(wrong):
    with pytest.raises(ValidationError, match="leave it out of"):
        Prior.model_validate(wrong)
