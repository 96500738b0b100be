import io

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


def test_bars_in_a_pipe_leave_short_lines(capsys):
    with progress() as bars:
        bars.add_task("work", total=2, completed=2, unit="blocks")
    assert all(len(line.rstrip()) < 120 for line in capsys.readouterr().err.splitlines())
