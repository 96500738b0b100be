"""`neurokube info` and `neurokube check`: what a volume is, and whether it, or a run, is whole."""

import json
import shlex
import time
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
Workers = Annotated[int, typer.Option("--workers", "-w", min=1, help="threads that read")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(info)
    app.command()(check)


def info(
    volume: Annotated[str, typer.Argument(help="volume: a folder or URL", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Tell what a volume is: shape, axes, voxel size, type, chunks, codecs, resolutions, size on disk."""
    from .errors import DataError
    from .volumes import open_volume
    from .volumes.summary import describe
    from .workflow.status import check_finished

    opened = open_volume(volume)
    told = describe(opened)
    try:
        told["complete"], told["remark"] = True, check_finished(opened)
    except DataError as error:
        told["complete"], told["remark"] = False, str(error)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        _print_info(told)


def check(
    place: Annotated[str, typer.Argument(metavar="VOLUME|RUN", help="folder or URL", show_default=False)],
    repair: Annotated[
        bool, typer.Option("--repair", help="a run: have the next 'neurokube run' compute damaged blocks again")
    ] = False,
    workers: Workers = 4,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find what is missing, cut off or corrupted in a volume or a run; ends with 65 where something is."""
    from .errors import UsageError
    from .volumes import Store, open_volume
    from .volumes.integrity import check_volume

    began = time.monotonic()
    if Store(place).read("run.json") is not None:
        _check_run(place, repair=repair, workers=workers, as_json=as_json, quiet=quiet)
        return
    if repair:
        raise UsageError(f"--repair: name the run, as only what a run computed can be computed again; {place} is none")
    volume = open_volume(place)
    checked = check_volume(volume, workers=workers, quiet=quiet)
    again = _again(volume, checked.damage)
    if as_json:
        rows = [each.as_dict() for each in checked.damage]
        print(json.dumps({"volume": place, "bytes": checked.bytes, "damage": rows, **again}, indent=2))
    else:
        _print_damage(checked)
        for remark in checked.remarks:
            print(f"note: {remark}")
    _end(
        place, len(checked.damage), checked.bytes, began, again.get("remedy", "restore it, or import or export it anew")
    )


def _check_run(place: str, *, repair: bool, workers: int, as_json: bool, quiet: bool) -> None:
    from .progress import console
    from .words import counted, described
    from .workflow import Run
    from .workflow.integrity import as_dict, by_step, check_run
    from .workflow.integrity import repair as take_back

    began = time.monotonic()
    run = Run.open(place)
    if repair:
        with run.lock():
            checked = check_run(run, workers=workers, quiet=quiet)
            take_back(run, checked.damage)
    else:
        checked = check_run(run, workers=workers, quiet=quiet)
    if as_json:
        print(json.dumps({**as_dict(run, checked), "repaired": repair}, indent=2))
    else:
        _print_damage(checked)
        for step, blocks in by_step(checked.damage).items():
            print(f"{step}: {counted(len(blocks), 'block')} to compute again: {described(blocks, 20)}")
        if checked.unfinished:
            print(f"note: {counted(checked.unfinished, 'block')} have no record and were not looked at")
    if repair and checked.damage:
        # nothing is damaged any more: what was is not there, and said to be missing
        blocks_again = sum(len(blocks) for blocks in by_step(checked.damage).values())
        console.print(f"{counted(blocks_again, 'block')} taken back: 'neurokube run WORKFLOW' computes them again")
        return
    again = f"have it computed again: neurokube check {shlex.quote(place)} --repair, then neurokube run WORKFLOW"
    _end(place, len(checked.damage), checked.bytes, began, again)


def _again(volume: Any, damage: Any) -> dict[str, Any]:
    """Return what mends a volume that a run wrote."""
    if not damage or "key" not in volume.attributes:
        return {}
    from .volumes import Store

    # a stage names its run, which may lie in another store
    stage = volume.url.rstrip("/").rpartition("/")[0]
    run = (Store(stage).read_json("stage.json") or {}).get("run", stage.rpartition("/")[0])
    return {
        "remedy": f"neurokube check {shlex.quote(run)} tells which blocks of the run that wrote it to compute again, "
        "and with --repair has it done"
    }


def _print_damage(checked: Any, most: int = 50) -> None:
    for each in checked.damage[:most]:
        print(each)
    if len(checked.damage) > most:
        print(f"and {len(checked.damage) - most:,} more; --json has them all")


def _end(place: str, damaged: int, read: int, began: float, remedy: str) -> None:
    from .errors import DataError
    from .progress import console
    from .words import counted

    seconds = max(time.monotonic() - began, 1e-3)
    if damaged:
        raise DataError(f"{place}: {counted(damaged, 'object')} damaged or missing; {remedy}")
    console.print(
        f"{place}: whole; {read / 1e6:,.1f} MB read in {seconds:.1f} s ({read / seconds / 1e6:,.0f} MB/s)",
        soft_wrap=True,
    )


def _print_info(told: dict[str, Any]) -> None:
    from rich.table import Table

    from .progress import show
    from .words import human_bytes

    def size(values: Any) -> str:
        return " x ".join(f"{v:g}" for v in values)

    lead = "" if told["channels"] is None else f"{told['channels']} channels of "
    print(f"{told['volume']}: {told['kind']}, {lead}{size(told['shape'])} voxels, {told['dtype']}, {told['format']}")
    print(f"axes {' '.join(told['axes'])}; voxel size {size(told['voxel_size'])} nm; offset {size(told['offset'])} nm")
    table = Table("level", "voxels", "voxel size", "shard", "chunk", "codecs", "objects", "stored", "compression")
    for level in told["levels"]:
        table.add_row(
            str(level["level"]),
            size(level["shape"]),
            f"{size(level['voxel_size'])} nm",
            "none" if level["shard"] == level["chunk"] else size(level["shard"]),
            size(level["chunk"]),
            level["codecs"],
            "?" if level["objects"] is None else f"{level['objects']:,}",
            "?" if level["bytes"] is None else human_bytes(level["bytes"]),
            "" if level["compression"] is None else f"{level['compression']:.1f}",
        )
    show(table)
    stored = [level["bytes"] for level in told["levels"]]
    if None not in stored:
        print(f"in all {human_bytes(sum(stored))}")
    print("complete" if told["complete"] else "not complete")
    if told["remark"]:
        print(f"note: {told['remark']}")
