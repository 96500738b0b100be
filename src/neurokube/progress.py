"""The one progress reporter and the one logger."""

import logging
import os
import threading
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

from .words import human_time

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

    What is no terminal, as the log of a job, gets a line for each from time to time, and one when it is full.  Those
    that are `transient` are gone when all is done, and are for a terminal only.
    """
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=transient, disable=hidden) as bars:
        if quiet or transient or not hidden:
            yield bars
            return
        with _lines(bars):
            yield bars


LINE_EVERY = 30.0
"""Seconds between two lines of a bar where there is no terminal."""


@contextmanager
def _lines(bars: Progress) -> Iterator[None]:
    """Say in lines what bars would show."""
    shown: dict[int, tuple[float, float]] = {}
    ended = threading.Event()

    def tell(last: bool = False) -> None:
        for task in bars.tasks:
            when, completed = shown.setdefault(task.id, (bars.get_time(), -1.0))
            due = last or task.finished or bars.get_time() - when >= LINE_EVERY
            if due and task.completed != completed:
                shown[task.id] = (bars.get_time(), task.completed)
                console.print(_line(task), markup=False)

    def follow() -> None:
        while not ended.wait(0.5):
            tell()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        tell(last=True)


def _line(task: Task) -> str:
    unit = task.fields.get("unit", "")
    total = "" if task.total is None else f" of {task.total:g}"
    parts = [f"{task.description}: {task.completed:g}{total} {unit}".rstrip()]
    if speed := task.finished_speed or task.speed:
        parts.append(f"{speed:.3g} {unit}/s")
    if task.finished and task.elapsed is not None:
        parts.append(f"in {human_time(task.elapsed)}")
    elif task.time_remaining is not None:
        parts.append(f"{human_time(task.time_remaining)} left")
    return ", ".join(parts)
