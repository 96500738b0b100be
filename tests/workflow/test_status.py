import re

import pytest

from neurokube.workflow.status import print_status

NAMES = [f"synthesis/mitochondria_labels-of-a-long-name-pyramid-{n}" for n in (1, 2)]


def in_one_piece(table):
    """Return the first column of a printed table, its lines joined."""
    return "".join(re.findall(r"^[│┃] *(\S+)", table, re.MULTILINE))


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_status_shows_all_of_a_name(capsys):
    step = {"done": 1, "blocks": 1, "seconds": 1.0, "bytes": 10, "peak_memory": 10}
    print_status(
        {"run": "r", "state": "done", "done": 2, "blocks": 2, "steps": dict.fromkeys(NAMES, step), "quarantined": []}
    )
    shown = in_one_piece(capsys.readouterr().out)
    assert all(name in shown for name in NAMES)
