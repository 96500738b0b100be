import pytest

from neurokube.words import counted, described, named


@pytest.mark.parametrize(("count", "said"), [(0, "0 blocks"), (1, "1 block"), (2000, "2,000 blocks")])
def test_a_noun_agrees_with_its_number(count, said):
    assert counted(count, "block") == said


def test_a_noun_agrees_with_what_it_names():
    assert (named("edit", [3]), named("edit", [3, 4])) == ("edit 3", "edits 3, 4")
    assert counted(2, "line or point", "lines and points") == "2 lines and points"


def test_of_many_names_the_first_few_are_told():
    assert described(range(1, 8)) == "1, 2, 3, 4 and 3 more"
