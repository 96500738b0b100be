"""The one progress reporter and the one logger."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
from rich.text import Text

log = logging.getLogger("neurokube")
console = Console(stderr=True, highlight=False)
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
