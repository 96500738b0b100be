"""The history of a segmentation: its log of edits, for people and for programs."""

from typing import Any

from rich.table import Column, Table

from ..progress import show
from ..words import described
from .editor import editable_stage
from .edits import EditLog
from .run import Run

_NOTE = 40
"""Columns of state and note, the only ones that are broken."""


def history(url: str, stage: str | None = None) -> list[dict[str, Any]]:
    """Return a row an edit, the first one first; `counts` and `state` say whether it counts, and why not.

    Raises:
        UsageError: where the stage is not there, or must be named.
    """
    run = Run.open(url)
    planned = editable_stage(run, stage)
    log = EditLog.read(run.store, planned.name)
    on, undone = planned.reads["fragments"].partition(".")[0], log.undone()
    rows = []
    for edit in log.entries:
        state = f"undone by {undone[edit.number]}" if edit.number in undone else ""
        state = state or ("" if edit.on == on else "on other fragments")
        rows.append(
            {
                "number": edit.number,
                "time": edit.time,
                "author": edit.author,
                "action": edit.action,
                **({"undoes": edit.undoes} if edit.undoes is not None else {}),
                "segments": list(edit.segments),
                "became": list(edit.became),
                "voxels": edit.voxels,
                "fragments": list(edit.fragments),
                "note": edit.note,
                "counts": not state,
                "state": state,
            }
        )
    return rows


def print_history(rows: list[dict[str, Any]]) -> None:
    """Print the history as a table without lines, which fits a terminal where there are no notes."""
    what = ("author", "what", "segments", "became", "voxels")
    table = Table("edit", "time (UTC)", *what, Column(max_width=_NOTE), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(
            str(row["number"]),
            row["time"][:19].replace("T", " "),
            row["author"],
            f"undo {row['undoes']}" if "undoes" in row else row["action"],
            described(row["segments"]),
            described(row["became"]),
            f"{row['voxels']:,}",
            "; ".join(part for part in (row["state"], row["note"]) if part),
            style="dim" if row["state"] else "",
        )
    show(table)
