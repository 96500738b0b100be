"""The one progress reporter and the one logger."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_ENDLESS = 100_000
"""Columns of what is no terminal."""


def page(**options: Any) -> Console:
    """Return a console that breaks lines for a terminal, or where COLUMNS is set: pipes and files get them whole."""
    console = Console(**options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _ENDLESS
    return console


def show(table: Table) -> None:
    """Print a table to standard output, wider than the terminal where it must be: names are copied, whole."""
    console = page()
    needed = console.measure(table, options=console.options.update(max_width=_ENDLESS)).maximum
    console.width = max(console.width, needed)
    console.print(table)


log = logging.getLogger("neurokube")
console = page(stderr=True, highlight=False)
"""Messages for a person go to standard error; results go to standard output."""


class RateColumn(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """Show the rate of one bar."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f} {task.fields.get('unit', '')}/s")


@contextmanager
def progress(*, quiet: bool = False, transient: bool = False) -> Iterator[Progress]:
    """Show progress bars with rate and time left; add bars with `add_task(name, total=n, unit="blocks")`.

    Those that are `transient` are gone when all is done, and are for a terminal only.
    """
    bars = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=transient,
        disable=quiet or (transient and not console.is_terminal),
    )
    with bars:
        yield bars
