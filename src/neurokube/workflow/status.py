"""How far a run is, and what a plan comes to, for people and for programs."""

import shlex
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from ..blocks import Blocks
from .driver import Summary
from .ledger import Record
from .plan import PlannedStep
from .quantities import human_bytes
from .run import Run


def read_status(run: Run) -> dict[str, Any]:
    """Return the state of every step: blocks done and in all, time and memory of its blocks, failures."""
    steps = {}
    quarantined = []
    for name, step in run.plan.steps.items():
        records = distinct(run, step)
        steps[name] = {"done": run.ledger(step).count(), "blocks": len(step.blocks), **cost(records)}
        quarantined += [{k: note[k] for k in ("step", "block", "voxels", "error")} for note in run.quarantined(step)]
    done = sum(step["done"] for step in steps.values())
    total = sum(step["blocks"] for step in steps.values())
    state = "done" if done == total else "failed" if quarantined else "unfinished"
    return {"run": run.url, "state": state, "done": done, "blocks": total, "steps": steps, "quarantined": quarantined}


def distinct(run: Run, step: PlannedStep) -> list[Record]:
    """Return the records of a step, one a block."""
    found: dict[tuple[Blocks, int], Record] = {}
    for blocks, record in run.ledger(step).records():
        found[blocks, record.block] = record
    return list(found.values())


def cost(records: list[Record]) -> dict[str, Any]:
    """Return what blocks cost together: seconds of work, bytes written, the most memory of a worker."""
    return {
        "seconds": round(sum(r.seconds for r in records), 3),
        "bytes": sum(r.bytes for r in records),
        "peak_memory": max((r.peak_memory for r in records), default=0),
        "hosts": sorted({r.host for r in records}),
    }


def print_status(state: dict[str, Any]) -> None:
    """Print the state as a table."""
    table = Table(_step_column(), "blocks", "work", "written", "worker's peak memory")
    for name, step in state["steps"].items():
        table.add_row(
            name,
            f"{step['done']}/{step['blocks']}",
            f"{step['seconds']:.1f} s",
            human_bytes(step["bytes"]),
            human_bytes(step["peak_memory"]),
        )
    console = Console()
    console.print(f"{state['run']}: {state['state']}, {state['done']} of {state['blocks']} blocks", highlight=False)
    console.print(table)
    for note in state["quarantined"]:
        error = note["error"].splitlines()[0]
        console.print(
            f"failed: {note['step']} block {note['block']} (voxels {note['voxels']}): {error}",
            style="red",
            markup=False,
        )


def _step_column() -> Column:
    """Return a column that wraps names: cut off, those of two steps may look alike."""
    return Column("step", overflow="fold")


def print_summary(run: Run, summary: Summary) -> None:
    """Say in two lines what a run did and what to do next."""
    computed, found = sum(summary.computed.values()), sum(summary.found.values())
    print(f"{run.url}: done; {computed} blocks computed, {found} found done")
    print(f"look at it with: neurokube view {shlex.quote(run.url)}")
