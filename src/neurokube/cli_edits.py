"""`neurokube edit RUN`: corrections of a segmentation by people."""

import json
from typing import Annotated, Any

import typer

app = typer.Typer(help="Correct a segmentation: merge, split, undo, and what was done.", no_args_is_help=True)

At = Annotated[
    list[str] | None, typer.Option("--at", help="point Z,Y,X in voxels of the segmentation, or Z,Y,Xnm; once a point")
]
Stage = Annotated[str | None, typer.Option(help="the segmentation stage, where there are several")]
Author = Annotated[str | None, typer.Option(help="who edits [default: NEUROKUBE_AUTHOR, git's name, or the login]")]
Workers = Annotated[int, typer.Option("--workers", "-w", min=0, help="processes that write; 0: this one")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]


@app.callback()
def edit(
    context: typer.Context, run: Annotated[str, typer.Argument(help="run folder or URL", show_default=False)]
) -> None:
    """Correct the segmentation of a run."""
    context.obj = run


@app.command()
def merge(
    context: typer.Context,
    segments: Annotated[list[int] | None, typer.Argument(help="ids, as the viewer shows them")] = None,
    at: At = None,
    stage: Stage = None,
    author: Author = None,
    workers: Workers = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Join segments, named by ids or by points in them; the largest one's id is kept."""
    with _editor(context, stage, author, workers, quiet) as editor:
        made = editor.merge(segments or [], at=[_point(editor, text) for text in at or []])
    _tell(editor, [made], as_json)


@app.command()
def split(
    context: typer.Context,
    segment: Annotated[int, typer.Argument(help="id, as the viewer shows it", show_default=False)],
    at: At = None,
    fragments: Annotated[
        list[str] | None,
        typer.Option(
            "--fragments",
            help="ID,ID,... of a part, instead of points; once a part; ids are in the viewer's layer 'fragments'",
        ),
    ] = None,
    stage: Stage = None,
    author: Author = None,
    workers: Workers = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Part a segment so that points come to lie in different ones; the largest part keeps the id."""
    from .errors import UsageError

    if bool(at) == bool(fragments):
        raise UsageError(f"split {segment}: give two or more points with --at, or parts with --fragments")
    with _editor(context, stage, author, workers, quiet) as editor:
        if fragments:
            made = editor.split_fragments(segment, [_ids(text) for text in fragments])
        else:
            made = editor.split(segment, at=[_point(editor, text) for text in at or []])
    _tell(editor, [made], as_json)


@app.command()
def undo(
    context: typer.Context,
    number: Annotated[int | None, typer.Argument(help="the edit's number [default: the last]")] = None,
    last: Annotated[int, typer.Option(min=1, help="take back so many, instead of one by its number")] = 1,
    stage: Stage = None,
    author: Author = None,
    workers: Workers = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take back the last edit, or the one of a number; to take back an undo brings its edit back."""
    from .errors import UsageError

    if number is not None and last > 1:
        raise UsageError(f"undo {number} --last {last}: give a number or --last, not both")
    with _editor(context, stage, author, workers, quiet) as editor:
        made = editor.undo_last(last) if last > 1 else [editor.undo(number)]
    _tell(editor, made, as_json)


@app.command()
def log(context: typer.Context, stage: Stage = None, as_json: AsJson = False) -> None:
    """Print the history: number, time, author, what, segments, voxels."""
    from .workflow.history import history, print_history

    rows = history(context.obj, stage)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print_history(rows)
    else:
        print("no edits yet")


@app.command("import")
def import_(
    context: typer.Context,
    project: Annotated[str, typer.Argument(help="Paintera's project folder, or an N5 container", show_default=False)],
    dataset: Annotated[str | None, typer.Option(help="label source in it, where there are several")] = None,
    container: Annotated[str | None, typer.Option(help="N5 container, where it is not where the project says")] = None,
    stage: Stage = None,
    author: Author = None,
    workers: Workers = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take over what a person merged and split in Paintera."""
    from .volumes.annotations.assignments import read_assignment
    from .workflow.assignment import import_assignment

    assignment = read_assignment(project, dataset=dataset, container=container)
    with _editor(context, stage, author, workers, quiet) as editor:
        made, remarks = import_assignment(editor, assignment, quiet=quiet)
    _tell(editor, made, as_json, remarks)


def _editor(context: typer.Context, stage: str | None, author: str | None, workers: int, quiet: bool) -> Any:
    from .engines.local import Local
    from .workflow.editor import Editor

    engine = Local(workers) if workers else None
    return Editor(context.obj, stage=stage, author=author, engine=engine, quiet=quiet)


def _tell(editor: Any, made: list[Any], as_json: bool, remarks: tuple[str, ...] = ()) -> None:
    """Say what was done, what was written, and what is to be run."""
    from .words import counted, described, named

    blocks = {name: count for name, count in editor.summary.computed.items() if count}
    if as_json:
        edits = [edit.model_dump(mode="json", exclude={"on", "parts", "whole", "joined_by"}) for edit in made]
        told = {"edits": edits, "written": blocks, "dropped": editor.summary.dropped, "remarks": list(remarks)}
        print(json.dumps(told, indent=2))
        return
    for edit in made:
        what = f"undo {edit.undoes}" if edit.action == "undo" else edit.action
        changed = f"{named('segment', edit.segments)} became {described(edit.became)}" if edit.segments else "no change"
        print(f"edit {edit.number}: {what}: {changed}; {counted(edit.voxels, 'voxel')} changed")
    for remark in remarks:
        print(f"note: {remark}")
    if made:
        written = [f"{counted(count, 'block')} of {name}" for name, count in blocks.items()]
        print(f"written again: {', '.join(written) or 'nothing'}")
    if editor.summary.dropped:
        print(f"{', '.join(editor.summary.dropped)}: computed anew by the next 'neurokube run WORKFLOW'")


def _point(editor: Any, text: str) -> Any:
    """Return the voxel that `Z,Y,X` or `Z,Y,Xnm` stands for."""
    from .errors import UsageError

    try:
        if text.endswith("nm"):
            z, y, x = (float(part) for part in text.removesuffix("nm").split(","))
            return editor.voxel((z, y, x))
        voxel = tuple(int(part) for part in text.split(","))
        if len(voxel) != 3:
            raise ValueError
    except (ValueError, OverflowError):
        raise UsageError(f"--at {text}: give voxels, as 10,200,340, or nm, as 400,1600,2720nm; order z,y,x") from None
    return voxel


def _ids(text: str) -> list[int]:
    from .errors import UsageError

    try:
        ids = [int(part) for part in text.split(",")]
        if min(ids) < 1:
            raise ValueError
    except ValueError:
        raise UsageError(f"--fragments {text}: give ids of fragments with commas between, as 17,23") from None
    return ids
