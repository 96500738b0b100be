"""The editor: merges and splits segments of a run, takes edits back, and writes again only the blocks that change.

    with Editor("runs/image", author="Ada") as editor:
        editor.merge([12, 15])
        editor.split(7, at=[(10, 40, 52), (10, 44, 90)])

It holds the run's lock.  An edit is durable when its method returns; its blocks are written when the `with` ends, or at
once by `write`.  Whatever a kill leaves unwritten the next editor or `neurokube run` writes.
"""

import os
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector
from ..engines.base import Engine, InProcess
from ..errors import ConfigurationError, UsageError
from ..progress import progress
from ..volumes.volume import Nanometres
from ..words import counted, described, named
from .corrections import Corrections, Members
from .driver import Summary, finish
from .edits import Edit, EditLog, checksum, now
from .plan import PlannedStage
from .run import Run


class Editor:
    """An open segmentation, held against other editors and runs; use it as a context.

    `stage` must be named where the run has several segmentation stages.  Points are voxels (z, y, x) of the
    segmentation.

    Raises, when it is made or entered:
        ConfigurationError: where there is no run, or its segmentation is not finished.
        UsageError: where the stage is not there, or must be named.
        TryAgainError: where the run is computed, or edited, at this moment.
    """

    def __init__(
        self,
        url: str,
        *,
        stage: str | None = None,
        author: str | None = None,
        engine: Engine | None = None,
        quiet: bool = True,
    ) -> None:
        self.url = url
        self.author = author or default_author()
        self.stage = editable_stage(Run.open(url), stage).name
        self.summary = Summary()
        """What was written the last time."""
        self._engine = engine
        self._quiet = quiet
        self._corrections: Corrections
        self._run: Run
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(Run.open(self.url).lock())
            self._bars = held.enter_context(progress(quiet=True)) if self._quiet else None
            self._open(Run.open(self.url))
            self._run.check_worker()
            self._check_finished()
            self._write_rest()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            if error is None or isinstance(error, UsageError):
                self._write_rest()

    # edits

    def merge(
        self, segments: Sequence[int] = (), *, at: Sequence[Vector] = (), fragments: Sequence[int] = (), note: str = ""
    ) -> Edit:
        """Join segments, given by id, by points or by fragments that lie in them; the largest one's id is kept.

        Raises:
            UsageError: where one of them is not there, or they are not different.
        """
        there = [*(self.fragment_at(point) for point in at), *fragments]
        members = self._members(segments, there)
        chosen = [self._largest_fragment(members, segment) for segment in segments] + there
        named = members.segments[members.index(chosen)].tolist()
        twice = next((segment for k, segment in enumerate(named) if segment in named[:k]), None)
        if len(named) < 2 or twice is not None:
            what = "one segment is no merge" if twice is None else f"segment {twice} cannot be merged with itself"
            raise UsageError(f"{what}; name at least two different segments, or points in them")
        return self._append(members, set(named), action="merge", fragments=tuple(chosen), note=note)

    def split(self, segment: int, *, at: Sequence[Vector], note: str = "") -> Edit:
        """Part a segment by the fragment graph so that points in it come to lie in different segments.

        The largest part keeps the id.  Where the cut runs says `stages.division`.

        Raises:
            UsageError: where the segment is not there or is one fragment, or the points cannot be parted.
        """
        members, own = self._segment(segment)
        seeds = [self.fragment_at(point) for point in at]
        self._check_seeds(segment, own, seeds, at)
        labels = np.full(len(own), -1, np.int64)
        labels[np.searchsorted(own, np.array(seeds, np.uint64))] = np.arange(len(seeds))
        if self._corrections.graph is None:
            raise UsageError("split: there is no graph of these fragments; name those of each part with --fragments")
        return self._part(segment, members, self._corrections.division(own, labels), seeds, note)

    def split_fragments(self, segment: int, parts: Sequence[Iterable[int]], *, note: str = "") -> Edit:
        """Part a segment into sets of its fragments, and the rest of it if there is one; the largest keeps the id.

        Raises:
            UsageError: where the segment is not there, or the sets are not parts of it.
        """
        members, own = self._segment(segment)
        labels = np.full(len(own), len(parts), np.int64)
        for number, part in enumerate(parts):
            ids = np.unique(np.array(list(part), np.uint64))
            if missing := ids[~np.isin(ids, own)].tolist():
                raise UsageError(f"not in segment {segment}: {named('fragment', missing)}; name some that are")
            at = np.searchsorted(own, ids)
            if twice := own[at][labels[at] < len(parts)].tolist():
                raise UsageError(f"in two parts: {named('fragment', twice)}; name each once")
            labels[at] = number
        _, labels = np.unique(labels, return_inverse=True)
        if labels.max() == 0:
            raise UsageError(f"all fragments of segment {segment} are in one part; leave some of them out")
        voxels = members.voxels[members.segments == np.uint64(segment)]
        seeds = [int(own[labels == part][voxels[labels == part].argmax()]) for part in range(labels.max() + 1)]
        return self._part(segment, members, labels, seeds, note)

    def undo(self, number: int | None = None) -> Edit:
        """Take back the last merge or split that counts, or the entry of a number; an undo of an undo brings back.

        Raises:
            UsageError: where there is nothing to take back.
        """
        log, on = self._corrections.log, self._corrections.on
        counting = log.counting(on)
        if number is None and not counting:
            raise UsageError(f"{self.url}: there is nothing to undo: no edit of '{self.stage}' counts")
        entry, undone = log.entry(counting[-1].number if number is None else number), log.undone()
        if entry is None:
            raise UsageError(f"there is no edit {number}; 'neurokube edit {self.url} log' lists them")
        if entry.number in undone:
            raise UsageError(f"edit {number} was taken back already; 'undo {undone[entry.number]}' brings it back")
        if entry.on != on:
            raise UsageError(f"edit {number} was made on other fragments and does not count: there is nothing to undo")
        members = self._corrections.members(self._corrections.originals(entry))
        return self._append(members, None, action="undo", undoes=entry.number)

    def undo_last(self, count: int) -> list[Edit]:
        """Take back the last merges and splits that count, the last one first.

        Raises:
            UsageError: where there are not so many.
        """
        if (there := len(self._corrections.log.counting(self._corrections.on))) < count:
            raise UsageError(f"{self.url}: has {counted(there, 'edit')} to undo, not {count}; ask for fewer")
        return [self.undo() for _ in range(count)]

    def write(self) -> Summary:
        """Write the blocks that edits have changed, and return how many; what reads the segmentation is dropped.

        Raises:
            Drained: where Ctrl-C or SIGTERM ended it; the edits stay, and are finished by the next editor or run.
            NeuroKubeError: where blocks failed.
        """
        run = self._run.edited()
        self.summary = finish(run, self._engine or InProcess(), stages=(self.stage,), quiet=self._quiet)
        self._open(run)
        return self.summary

    # what is there

    @property
    def corrections(self) -> Corrections:
        """The segments as the log has them."""
        return self._corrections

    def fragment_at(self, point: Vector) -> int:
        """Return the fragment at a point.

        Raises:
            UsageError: where it is outside of the volume, or in no fragment.
        """
        volume = self._corrections.data.volume("fragments")
        box = Box.of((1, 1, 1)).shift(point)
        if not volume.spec.box.contains(box):
            shape = " x ".join(str(n) for n in volume.spec.shape)
            raise UsageError(f"{_point(point)} is outside of the segmentation, which has {shape} voxels (z, y, x)")
        fragment = int(volume.read(box)[0, 0, 0])
        if fragment == 0:
            raise UsageError(f"{_point(point)} is in the background, label 0; choose one inside of a segment")
        return fragment

    def voxel(self, place: Nanometres) -> Vector:
        """Return the voxel (z, y, x) at a place in nm, in the volume's own coordinates."""
        spec = self._corrections.planned.own.spec
        z, y, x = (round((p - o) / v) for p, o, v in zip(place, spec.offset, spec.voxel_size, strict=True))
        return z, y, x

    def _segment(self, segment: int) -> tuple[Members, NDArray[np.uint64]]:
        """Return the fragments linked with a segment, and its own, ascending; of which there are several."""
        members = self._members([segment], [])
        own = members.fragments[members.segments == np.uint64(segment)]
        if len(own) == 1:
            raise UsageError(
                f"segment {segment} is one fragment, which cannot be parted; it takes smaller fragments, by a lower "
                "'depth' of the fragments stage"
            )
        return members, own

    def _members(self, segments: Iterable[int], fragments: Iterable[int]) -> Members:
        """Return the fragments of all that is linked with segments, each of which is there, and with fragments."""
        corrections, roots = self._corrections, set(self._corrections.solved_of(fragments).values())
        for segment in (s for s in segments if 0 < s < 1 << 63):
            maker = corrections.maker(segment)
            roots |= {segment} if maker is None else corrections.originals(maker)
        members = corrections.members(roots)
        for segment in segments:
            if segment not in members.segments:
                heirs = np.unique(members.segments[members.originals == segment])
                became = f"its voxels are in {described(heirs)} now" if len(heirs) else "look it up in the viewer"
                raise UsageError(f"there is no segment {segment} in {self.url}/{self.stage}; {became}")
        return members

    def _largest_fragment(self, members: Members, segment: int) -> int:
        own = np.flatnonzero(members.segments == np.uint64(segment))
        # best one that was not merged into it by an edit, as that may be undone
        solved = own[members.originals[own] == np.uint64(segment)]
        own = solved if len(solved) else own
        return int(members.fragments[own[members.voxels[own].argmax()]])

    def _check_seeds(self, segment: int, own: NDArray[np.uint64], seeds: Sequence[int], at: Sequence[Vector]) -> None:
        if len(at) < 2:
            raise UsageError(f"split {segment}: give at least two points, each in a part of its own")
        for k, (fragment, point) in enumerate(zip(seeds, at, strict=True)):
            if fragment not in own:
                other = self._members([], [fragment])
                found = other.segments[other.index([fragment])][0]
                raise UsageError(f"{_point(point)} is in segment {found}; choose points in segment {segment}")
            if fragment in seeds[:k]:
                raise UsageError(
                    f"{_point(at[seeds.index(fragment)])} and {_point(point)} are in one fragment, {fragment}, which "
                    "cannot be parted; choose points farther apart"
                )

    # the log

    def _part(self, segment: int, members: Members, labels: NDArray[np.int64], seeds: Sequence[int], note: str) -> Edit:
        """Log a split of a segment into parts, given by a label of each of its fragments, with a seed in each."""
        inside = members.segments == np.uint64(segment)
        own, voxels = members.fragments[inside], members.voxels[inside]
        sizes = np.bincount(labels[labels >= 0], voxels[labels >= 0])
        order = [int(sizes.argmax()), *(part for part in range(len(seeds)) if part != sizes.argmax())]
        return self._append(
            members,
            {segment},
            action="split",
            fragments=tuple(seeds[part] for part in order),
            parts=tuple(tuple(own[labels == part].tolist()) for part in order[1:]),
            whole=checksum(own),
            note=note,
        )

    def _append(self, members: Members, named: set[int] | None, **fields: Any) -> Edit:
        """Complete an edit with what it changes, and make it durable; an undo names nothing, but what it changes."""
        corrections = self._corrections
        originals = corrections.solved_of(fields.get("fragments", ()))
        edit = Edit(
            number=corrections.log.last + 1,
            author=self.author,
            time=now(),
            on=corrections.on,
            fresh=corrections.log.fresh,
            joined_by=corrections.planned.reads["multicut"],
            originals=tuple(originals[fragment] for fragment in fields.get("fragments", ())),
            **fields,
        )
        outlook = replace(corrections.log, entries=(*corrections.log.entries, edit))
        after = self._corrected(outlook).members(np.unique(members.originals).tolist()).segments
        moved = members.segments != after
        named = set(members.segments[moved].tolist()) if named is None else named
        concerned = np.isin(members.segments, np.array(sorted(named), np.uint64)) | moved
        edit = edit.model_copy(
            update={
                "segments": tuple(sorted(named)),
                "became": tuple(np.unique(after[concerned]).tolist()),
                "voxels": int(members.voxels[moved].sum()),
            }
        )
        self._corrections = self._corrected(corrections.log.with_entry(edit))
        return edit

    def _corrected(self, log: EditLog) -> Corrections:
        return Corrections(self._run, self._run.plan.stage(self.stage), log, self._bars)

    def _open(self, run: Run) -> None:
        self._run = run
        self._corrections = self._corrected(EditLog.read(run.store, self.stage))

    @property
    def _unwritten(self) -> bool:
        return bool(self._corrections.state["finished"] != self._corrections.log.last)

    def _write_rest(self) -> None:
        if self._unwritten:
            self.write()

    def _check_finished(self) -> None:
        names = {source.name for source in self._corrections.planned.sources.values()}
        names |= set() if self._unwritten else {self.stage}
        for step in self._run.plan.steps.values():
            if step.planned.name in names and (left := len(self._run.ledger(step).remaining())):
                blocks = counted(len(step.blocks), "block")
                raise ConfigurationError(
                    f"{self.url}: {step.name} is not finished, it lacks {left} of {blocks}; finish it with "
                    "'neurokube run WORKFLOW', then edit"
                )


def editable_stage(run: Run, name: str | None = None) -> PlannedStage:
    """Return the segmentation stage of a run, by its name where there are several.

    Raises:
        UsageError: where there is none, or it must be named.
    """
    found = {planned.name: planned for planned in run.plan.stages if planned.stage.editable}
    if name is not None and name not in found:
        there = f"there are {', '.join(found)}" if found else "there is none in this run"
        raise UsageError(f"--stage {name}: no segmentation stage of that name; {there}")
    if name is None and len(found) != 1:
        raise UsageError(
            f"{run.url}: has several segmentation stages; choose one of {', '.join(found)} with --stage"
            if found
            else f"{run.url}: has no segmentation stage to edit; add one to the workflow and run it"
        )
    return found[name or next(iter(found))]


def default_author() -> str:
    """Return who edits, where nobody says so: NEUROKUBE_AUTHOR, the name that git knows, or the login's."""
    import getpass

    if named := os.environ.get("NEUROKUBE_AUTHOR") or os.environ.get("GIT_AUTHOR_NAME"):
        return named
    try:
        asked = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False, timeout=5)
        if name := asked.stdout.strip():
            return name
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _point(point: Vector) -> str:
    return f"point {','.join(str(n) for n in point)}"
