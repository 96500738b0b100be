"""Edits from an assignment of fragments to segments that was made elsewhere: what differs becomes splits and merges."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..progress import progress
from ..volumes.annotations.assignments import Assignment, without
from ..words import counted, named
from .editor import Editor
from .edits import Edit, Ids


def import_assignment(
    editor: Editor, assignment: Assignment, *, quiet: bool = True
) -> tuple[list[Edit], tuple[str, ...]]:
    """Edit segments until fragments belong together as an assignment has it; return the edits, and remarks.

    A segment none of whose fragments the assignment speaks of stays as it is.  Of any other each fragment must be where
    the assignment has it; one that it leaves out is a segment by itself, as it is in Paintera.

    Raises:
        DataError: where the assignment is not one of these fragments.
    """
    assignment, remarks = _known(editor, assignment)
    fragments, segments, voxels = _concerned(editor, assignment.fragments(), quiet=quiet)
    parts = assignment.parts(fragments, segments)
    note = f"from {assignment.path}"
    edits = []
    order = np.argsort(segments, kind="stable")
    for inside in np.split(order, _starts(segments[order, None])[1:]):
        own = [inside[parts[inside] == part] for part in np.unique(parts[inside])]
        if len(own) > 1:
            sets = [fragments[k].tolist() for k in own]
            edits.append(editor.split_fragments(int(segments[inside[0]]), sets, note=note))
    # of each piece, what of a segment is in one part, the largest fragment stands for it
    order = np.lexsort((-voxels, segments, parts))
    pieces = order[_starts(np.stack([parts, segments.astype(np.int64)], axis=1)[order])]
    for together in np.split(pieces, _starts(parts[pieces, None])[1:]):
        if len(together) > 1:
            edits.append(editor.merge(fragments=fragments[together].tolist(), note=note))
    return edits, remarks


def _starts(rows: NDArray[Any]) -> NDArray[np.intp]:
    """Return where in rows, (n, k), that are in order, groups of equal ones start."""
    changes = (rows[1:] != rows[:-1]).any(1)
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(rows)), bool), changes]))


def _known(editor: Editor, assignment: Assignment) -> tuple[Assignment, tuple[str, ...]]:
    """Return an assignment without the ids that Paintera gave to paintings; any other unknown fragment is refused."""
    corrections = editor.corrections
    fragments = assignment.fragments()
    unknown: list[int] = []
    beyond = np.uint64(len(corrections.grid) * prod(corrections.grid.cell))
    for tile, ids in corrections.by_tile(fragments[(fragments > 0) & (fragments <= beyond)]):
        last = tile * prod(corrections.grid.cell) + len(corrections.solved(tile))
        unknown += ids[ids > last].tolist()
    if unknown or 0 in fragments:
        raise DataError(
            f"{assignment.path}: not of this run: {named('fragment', unknown or [0])}; import a project that was "
            "made of its fragments, as they are now"
        )
    painted = fragments[fragments > beyond]
    if not len(painted):
        return assignment, ()
    return without(assignment, painted), (
        f"left out, as painted in Paintera and no fragments: {counted(len(painted), 'id')}",
    )


def _concerned(editor: Editor, named: Ids, *, quiet: bool) -> tuple[Ids, Ids, NDArray[np.int64]]:
    """Return the fragments, ascending, of all segments that some are in, their segments and voxels."""
    corrections, data = editor.corrections, editor.corrections.data
    touched = [
        np.unique(table[np.isin(table[:, 0], ids), 1])
        for tile, ids in corrections.by_tile(named)
        for table in (data.table("fragment-segment", tile),)
    ]
    segments = np.unique(np.concatenate([np.zeros(0, np.uint64), *touched]))
    rows, voxels = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
    with progress(quiet=quiet, transient=True) as bars:
        for tile in bars.track(range(len(corrections.grid) if len(segments) else 0), description="segments"):
            table = data.table("fragment-segment", tile)
            inside = np.isin(table[:, 1], segments)
            rows.append(table[inside])
            voxels.append(data.table("fragments.sizes", tile)[inside].astype(np.int64))
    found = np.concatenate(rows)
    return found[:, 0], found[:, 1], np.concatenate(voxels)
