"""A plan, and what became of it, as a person reads it."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from ..progress import page, show
from ..words import counted, human_bytes, human_time
from .calibration import RESAMPLES


def print_plan(plan: dict[str, Any]) -> None:
    """Print an estimate (`Estimate.as_dict`): a table of steps, a line a network, and what all comes to."""
    timed = plan["calibration"] is not None
    table = _table("blocks", "block zyx", "objects", "volumes", "stored", "memory")
    if timed:
        table.add_column("work", justify="right")
    for row in plan["steps"]:
        cells = [
            row["step"],
            str(row["blocks"]),
            "x".join(map(str, row["block"])),
            str(row["objects"]),
            _bytes(row["uncompressed"]),
            human_bytes(row["stored"][1]),
            human_bytes(row["memory"]),
        ]
        table.add_row(*cells, *([human_time(row["seconds"][1])] if timed else []))
    console = page(highlight=False)
    show(table)
    lines = [*map(_network, plan["networks"]), *_totals(plan)]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _network(network: dict[str, Any]) -> str:
    f = network["factors"]
    windows = " x ".join(map(str, network["window"]))
    again = network["computed"] / network["windows"]
    return (
        f"{network['stage']}: {network['windows']:,} windows of {windows} voxels, {network['computed']:,} computed by "
        f"all blocks ({again:.2f} times), {counted(f['permutations'], 'permutation')}, in batches of "
        f"{network['batch']} ({network['backend']}, {network['dtype']})\n"
        f"  intermediate data as the paper of 2020 has it: X {f['x']} x Y {f['y']} x Z {f['z']} x z upscaling "
        f"{f['z_upscaling']} x window depth {f['window_depth']} x permutations {f['permutations']} x overlap "
        f"{f['overlap']:g} x classes {f['classes']} x {f['bytes']} bytes = {human_bytes(network['intermediate'])}; "
        f"none of it is stored: windows are blended as they come, and {human_bytes(network['stored'])} (before "
        "compression) are left"
    )


def _totals(plan: dict[str, Any]) -> list[str]:
    totals, objects = plan["totals"], plan["totals"]["objects"]
    calibration = plan["calibration"]
    basis = f"by {len(calibration['places'])} places of this volume" if calibration else "by figures of other tissue"
    lines = [
        f"all: {totals['blocks']:,} blocks; on Kubernetes {totals['indexes']:,} indexes",
        f"objects: {objects['data']:,} at the most of shards, tables and files, {objects['metadata']:,} of metadata, "
        f"{objects['ledger']:,} of the ledger",
        f"stored: {_range(totals['stored'], human_bytes)}, {basis}; volumes are {human_bytes(totals['uncompressed'])} "
        "before compression",
    ]
    gpu = any(row["gpus"] for row in plan["steps"])
    if not calibration:
        lines.append("time and cost: unknown; --calibrate times a few places" + (", GPUs too" if gpu else ""))
    else:
        workers = "1 worker" if plan["workers"] == 1 else f"{plan['workers']} workers"
        lines += [
            f"work: {_range(totals['seconds'], human_time)} of a worker; processor "
            f"{_range(totals['processor'], human_time)}",
            f"till the end: {_range(totals['elapsed'], human_time)} with {workers} of which none waits but for the end "
            "of a step",
        ]
        lines.append(f"GPU hours: {_range(totals['gpu_hours'], _number)}" if gpu else "GPU hours: none")
        if totals["cost"]:
            lines.append(f"cost: {_range(totals['cost'], _number)}, at the prices given")
        lines.append(
            f"ranges: 90 % of {RESAMPLES:,} resamples of {len(calibration['places'])} places "
            f"({calibration['voxels'] / 1e6:.3g} Mvoxel, timed in {human_time(calibration['took'])}), times and over "
            f"{calibration['margin']:g} for what a sample cannot tell"
        )
        lines += [f"note: {remark}" for remark in calibration["remarks"]]
    return lines + [f"note: {remark}" for remark in plan["remarks"]]


def print_comparison(found: dict[str, Any]) -> None:
    """Print a comparison (`compare`): estimate and fact of each step, and of all that are done."""
    table = _table("work", "stored", "memory", "objects")
    for row in found["steps"]:
        table.add_row(
            row["step"] if row["finished"] else f"{row['step']} {row['done']}/{row['blocks']}",
            _pair(row["seconds"], human_time),
            _pair(row["stored"], human_bytes),
            _pair(row["memory"], human_bytes),
            _pair(row["objects"], str),
        )
    console = page(highlight=False)
    when = "made now, as the run keeps none that fits" if found["made"] is None else f"made {found['made']}"
    console.print(f"{found['run']}: estimate ({found['basis']}, {when})", markup=False, soft_wrap=True)
    console.print("each estimate > what it came to, with ! where that is outside of its range")
    show(table)
    if not found["finished"]:
        console.print("unfinished: what follows is of the steps that are done")
    for what, key, human in (("work", "seconds", human_time), ("stored", "stored", human_bytes)):
        pair = found["totals"][key]
        if pair["estimate"] is None:
            console.print(f"{what}: {human(pair['fact'])}; no estimate: nobody calibrated before the run")
            continue
        word = "within" if pair["within"] else "outside of"
        console.print(
            f"{what}: {human(pair['fact'])}, {word} {_range(pair['estimate'], human)}, {pair['ratio']:.2f} times the "
            "likely",
            soft_wrap=True,
        )
    for what in ("objects", "metadata and ledger"):
        if pair := found["totals"].get(what):
            console.print(f"{what}: {pair['fact']:,}, of {pair['estimate']:,}")


def _table(*columns: str) -> Table:
    """Return a table of steps; without lines, as there are many columns."""
    others = (Column(name, no_wrap=True, justify="right") for name in columns)
    return Table(Column("step", no_wrap=True), *others, box=SIMPLE_HEAD, padding=0)


def _pair(pair: dict[str, Any], human: Any) -> str:
    expected = pair["estimate"]
    likely = expected[1] if isinstance(expected, list) else expected
    mark = "" if pair.get("within", True) else " !"
    return f"{'-' if likely is None else human(likely)} > {human(pair['fact'])}{mark}"


def _range(ends: list[float], human: Any) -> str:
    low, likely, high = ends
    return f"{human(likely)} ({human(low)} to {human(high)})"


def _bytes(count: int) -> str:
    return human_bytes(count) if count else "-"


def _number(value: float) -> str:
    return f"{value:,.3g}"
