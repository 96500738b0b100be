"""How far a run is, and what a plan comes to, for people and for programs."""

import shlex
from pathlib import Path
from typing import Any

from rich.table import Table

from ..blocks import Blocks, Box
from ..errors import ConfigurationError, DataError
from ..progress import page, show
from ..volumes import Store, Volume
from ..words import counted, described, human_bytes
from .driver import Summary
from .ledger import Record
from .plan import PlannedStep
from .run import Run


def read_status(run: Run) -> dict[str, Any]:
    """Return the state of every step: blocks done and in all, time and memory of its blocks, failures."""
    steps = {}
    quarantined = []
    for name, step in run.plan.steps.items():
        records = distinct(run, step)
        steps[name] = {"done": run.ledger(step).count(), "blocks": len(step.blocks), **cost(records)}
        if (mishaps := run.at(step.planned).read_json(f"jobs/{step.step.name}.tally.json")) is not None:
            steps[name]["mishaps"] = mishaps
        quarantined += [{k: note[k] for k in ("step", "block", "voxels", "error")} for note in run.quarantined(step)]
    done = sum(step["done"] for step in steps.values())
    total = sum(step["blocks"] for step in steps.values())
    state = "done" if done == total else "failed" if quarantined else "unfinished"
    return {
        "run": run.url,
        "state": state,
        "done": done,
        "blocks": total,
        "chosen": run.plan.chosen,
        "steps": steps,
        "quarantined": quarantined,
    }


def check_finished(volume: Volume, region: Box | None = None) -> str:
    """Check that a volume, if a run writes it, is all there, at least within a region; return a remark, or "".

    Raises:
        DataError: where blocks are missing; names the step, and the remedy.
    """
    place = volume.url if "://" in volume.url else str(Path(volume.url).expanduser().resolve())
    # a run leaves a key in what it writes; elsewhere there is nothing to look for, and perhaps no leave to look
    parts = place.rstrip("/").rsplit("/", 2)
    if "key" not in volume.attributes or len(parts) < 3:
        return ""
    if place.startswith(("http://", "https://")):
        return f"{volume.url}: cannot be checked for missing blocks, as a web server lists nothing"
    folder, stage, output = parts
    if Store(folder).read("run.json") is None:
        # a stage with a store of its own names its run
        folder = str((Store(folder).read_json(f"{stage}/stage.json") or {}).get("run", ""))
        if not folder or Store(folder).read("run.json") is None:
            return ""
    try:
        run = Run.open(folder)
    except (ConfigurationError, DataError) as error:
        # its image or a model may be gone, or another version wrote it: what lies there can be scored all the same
        return f"{volume.url}: cannot be checked for missing blocks ({error})"
    before = []
    for step in run.plan.steps.values():
        left = run.ledger(step).remaining()
        before += [step.name] if left else []
        if step.planned.name == stage and any(t.output.name == output and t.level == 0 for t in step.step.targets):
            boxes = [step.blocks.box(block) for block in left]
            if missing := sum(region is None or box.clip(region).size > 0 for box in boxes):
                raise DataError(
                    f"{volume.url}: lacks {missing} of {counted(len(step.blocks), 'block')}; not finished yet: "
                    f"{described(before)}; go on with 'neurokube run WORKFLOW', "
                    f"'neurokube status {shlex.quote(folder)}' tells what failed"
                )
    return ""


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
    table = Table("step", "blocks", "work", "written", "peak memory")
    for name, step in state["steps"].items():
        table.add_row(
            name,
            f"{step['done']}/{step['blocks']}",
            f"{step['seconds']:.1f} s",
            human_bytes(step["bytes"]),
            human_bytes(step["peak_memory"]),
        )
    console = page()
    console.print(
        f"{state['run']}: {state['state']}, {state['done']} of {counted(state['blocks'], 'block')}", highlight=False
    )
    show(table)
    for line in _cluster_lines(state):
        print(line)
    for name, chosen in state["chosen"].items():
        print(f"{name}: {chosen}")
    for note in state["quarantined"]:
        error = note["error"].splitlines()[0]
        console.print(
            f"failed: {note['step']} block {note['block']} (voxels {note['voxels']}): {error}",
            style="red",
            markup=False,
        )


def _cluster_lines(state: dict[str, Any]) -> list[str]:
    """Return what a run's cluster said of it, and what befell its pods before."""
    lines = []
    for name, step in state["steps"].items():
        if mishaps := step.get("mishaps"):
            told = ", ".join(f"{count:,} {_MISHAPS.get(what, what)}" for what, count in mishaps.items())
            lines.append(f"{name}: of its pods {told}")
    cluster = state.get("cluster")
    if cluster is None:
        return lines
    if "unknown" in cluster:
        return [*lines, f"cluster: {cluster['unknown']}"]
    if cluster["driver"]:
        lines.append(f"driver: {cluster['driver']}")
    elif state["state"] == "unfinished":
        lines.append(f"driver: none; go on with: neurokube resume {shlex.quote(state['run'])}")
    for name, pods in cluster["pods"].items():
        told = ", ".join(f"{count} {phase.lower()}" for phase, count in sorted(pods.items())) or "none yet"
        lines.append(f"{name}: pods {told}{_left(state['steps'].get(name), pods.get('Running', 0))}")
    lines += [f"waiting: {counted(count, 'pod')}: {why}" for why, count in cluster["waiting"].items()]
    return lines


_MISHAPS = {
    "disrupted": "disrupted (evicted, preempted, drained), started again",
    "memory": "killed for memory, run again with more",
    "storage": "evicted over their disk, run again with more",
    "cpu": "short of processor time, run again with more",
    "death": "dead, run again",
    "lost": "lost with their node or Job, run again",
    "blocks": "done but for blocks that failed",
}


def _left(step: dict[str, Any] | None, running: int) -> str:
    """Return for how long a step will go on at the rate that blocks took so far, in words."""
    if not step or not step["done"] or not running:
        return ""
    seconds = (step["blocks"] - step["done"]) * step["seconds"] / step["done"] / running
    rate = running * step["done"] / step["seconds"] if step["seconds"] else 0
    hours = f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min" if seconds >= 90 else "a minute"
    return f", {rate:.2g} blocks/s, about {hours} left"


def print_summary(run: Run, summary: Summary) -> None:
    """Say in two lines what a run did and what to do next."""
    computed, found = sum(summary.computed.values()), sum(summary.found.values())
    print(f"{run.url}: done; {counted(computed, 'block')} computed, {found:,} found done")
    print(f"look at it with: neurokube view {shlex.quote(run.url)}")
