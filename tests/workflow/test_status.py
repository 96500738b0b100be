import pytest
from rich.text import Text

from neurokube.workflow.history import print_history
from neurokube.workflow.status import print_status

NAMES = [f"synthesis/mitochondria_labels-of-a-long-name-pyramid-{n}" for n in (1, 2)]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal that is narrower than the tables."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")


def test_status_shows_all_of_a_name(capsys):
    step = {"done": 1, "blocks": 1, "seconds": 1.0, "bytes": 10, "peak_memory": 10}
    state = {"run": "r", "state": "done", "done": 2, "blocks": 2, "chosen": {}, "quarantined": []}
    print_status(state | {"steps": dict.fromkeys(NAMES, step)})
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)


def test_the_log_of_edits_shows_all_of_a_time_and_fits_a_terminal(capsys):
    row = {"number": 1, "time": "2026-01-31T12:00:00+00:00", "author": "Ada Lovelace", "action": "merge"}
    print_history([{**row, "segments": [2, 4], "became": [4], "voxels": 34425, "state": "", "note": ""}])
    lines = [Text.from_ansi(line).plain.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and "2026-01-31 12:00:00" in lines[1]
    assert max(map(len, lines)) < 80
