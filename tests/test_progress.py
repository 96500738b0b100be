import io
from contextlib import suppress

from rich.table import Table

from neurokube.progress import page, progress, show

LINE = "a remark that goes on, " * 20


def test_lines_are_broken_for_a_terminal_only(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for terminal, lines in ((False, 1), (True, 6)):
        file = io.StringIO()
        page(file=file, force_terminal=terminal, width=None if not terminal else 80).print(LINE)
        assert len(file.getvalue().splitlines()) == lines


def test_a_table_is_as_wide_as_its_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("step", "time")
    table.add_row("a-long-name/" * 5, "2026-01-31 12:00:00")
    show(table)
    said = capsys.readouterr().out
    assert "a-long-name/" * 5 in said and "2026-01-31 12:00:00" in said


def test_bars_in_a_pipe_are_lines_now_and_then_and_when_they_are_full(capsys, monkeypatch):
    monkeypatch.setattr("neurokube.progress.LINE_EVERY", 0.0)
    with progress() as bars:
        first = bars.add_task("first", total=2, unit="blocks")
        bars.advance(first)
        said = ""
        while "first: 1 of 2 blocks" not in said:
            said += capsys.readouterr().err
        bars.advance(first)
        bars.add_task("second", total=3, unit="blocks")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["first: 2 of 2 blocks", "second: 0 of 3 blocks"]
    assert " in " in lines[0]


def test_nothing_is_said_before_a_mistake(capsys):
    for quiet in (False, True):
        with suppress(ValueError), progress(quiet=quiet) as bars:
            if quiet:
                bars.add_task("work", total=2, completed=2)
            raise ValueError
        assert capsys.readouterr().err == ""
