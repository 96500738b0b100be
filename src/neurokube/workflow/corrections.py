"""Corrections: what the log of edits makes of a segmentation, written tile by tile before its blocks are.

    <stage>/corrections/     a tile: fragments that are in another segment than they were solved to be in
    <stage>/corrections.json what of the log they are of, and up to which edit all blocks were written again

The segments are a pure function of what the multicut found and of the edits that count, in order.  A new edit changes
only the segments that it is linked to: those of its fragments, those of any edit that shares one of them, and so on.
Before the corrections of a tile change, the records of all that is made of them are taken back: a record never speaks
of other corrections than those that lie beside it, whenever a process is killed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from ..blocks import Box, Grid, Vector
from ..errors import TryAgainError
from ..stages import Data, VolumeOutput
from ..stages.division import divided
from ..stages.graph import fragment_ids
from ..words import described
from .edits import Edit, EditLog, checksum
from .places import Places
from .plan import PlannedStage
from .run import Run

Ids = NDArray[np.uint64]


@dataclass
class Members:
    """The fragments of some segments: ids (n,), ascending; what segment each was solved to be in, and is in; voxels."""

    fragments: Ids
    originals: Ids
    segments: Ids
    voxels: NDArray[np.int64]

    def index(self, fragments: Sequence[int]) -> NDArray[np.intp]:
        """Return where fragments, all of them there, are."""
        return np.searchsorted(self.fragments, np.array(fragments, np.uint64))

    def sizes(self, segments: Ids) -> NDArray[np.int64]:
        """Return the voxels of segments."""
        return np.array([self.voxels[self.segments == segment].sum() for segment in segments], np.int64)


class Corrections:
    """The corrections of an editable stage of a run."""

    def __init__(self, run: Run, planned: PlannedStage, log: EditLog, bars: Progress | None = None) -> None:
        self.run = run
        self.planned = planned
        self.log = log
        self.on = planned.reads["fragments"].partition(".")[0]
        self.grid: Grid = planned.own.table("fragment-segment").cells
        self._store = run.at(planned)
        self._bars = bars

    @cached_property
    def data(self) -> Data:
        """What the stage reads and writes."""
        return self.planned.data()

    @cached_property
    def places(self) -> Places:
        """Which tiles hold a segment."""
        return Places(self._store, len(self.grid), self.solved, self._bars)

    def solved(self, tile: int) -> Ids:
        """Return the segment that each fragment of a tile was solved to be in."""
        return self.data.table("multicut.segments", tile)

    def by_tile(self, fragments: Iterable[int] | Ids) -> Iterator[tuple[int, Ids]]:
        """Yield tiles and which of the fragments are in them, ascending."""
        ids = np.unique(fragments if isinstance(fragments, np.ndarray) else np.array(list(fragments), np.uint64))
        tiles, starts = np.unique((ids - np.uint64(1)) // np.uint64(prod(self.grid.cell)), return_index=True)
        yield from zip(tiles.tolist(), np.split(ids, starts[1:]), strict=len(ids) > 0)

    def originals(self, edit: Edit) -> set[int]:
        """Return the segments that the fragments of an edit, or of what it undoes, were solved to be in."""
        edit = self.log.subject(edit)
        if edit.on != self.on:
            return set()
        if edit.joined_by == self.planned.reads["multicut"]:
            return set(edit.originals)
        return set(self.solved_of(edit.fragments).values())

    def solved_of(self, fragments: Iterable[int]) -> dict[int, int]:
        """Return the segment that each of some fragments was solved to be in."""
        return {
            int(fragment): int(self.solved(tile)[int(fragment) - 1 - tile * prod(self.grid.cell)])
            for tile, ids in self.by_tile(fragments)
            for fragment in ids
        }

    # segments as they are

    def members(self, segments: Iterable[int]) -> Members:
        """Return the fragments of all that edits link with segments, numbered as solved, and where they are now."""
        linked, members = self._linked(set(segments))
        self.replay(members, linked)
        return members

    def maker(self, segment: int) -> Edit | None:
        """Return the split that made a segment, if one did."""
        made = segment - 1 - self.places.largest
        return next((e for e in self.log.entries if e.fresh <= made < e.fresh + len(e.parts)), None)

    def _linked(self, segments: set[int]) -> tuple[list[Edit], Members]:
        """Return the edits that count of those linked with solved segments, and the fragments of all they concern."""
        every = [(entry, self.originals(entry)) for entry in self.log.entries if entry.action != "undo"]
        linked: set[int] = set()
        while more := [(e, found) for e, found in every if e.number not in linked and found & segments]:
            linked.update(entry.number for entry, _ in more)
            segments = segments.union(*(found for _, found in more))
        return [entry for entry in self.log.counting(self.on) if entry.number in linked], self._solved_members(segments)

    def _solved_members(self, segments: set[int]) -> Members:
        wanted = np.array(sorted(segments), np.uint64)
        rows: list[tuple[Ids, Ids, Ids]] = []
        for tile in self.places.of(segments) if segments else ():
            solved = self.solved(tile)
            inside = np.isin(solved, wanted)
            ids = fragment_ids(self.grid, tile, len(solved))
            rows.append((ids[inside], solved[inside], self.data.table("fragments.sizes", tile)[inside]))
        rows.append((np.zeros(0, np.uint64),) * 3)
        ids, solved, voxels = (np.concatenate(column) for column in zip(*rows, strict=True))
        return Members(ids, solved, solved.copy(), voxels.astype(np.int64))

    # edits

    def replay(self, members: Members, edits: Sequence[Edit]) -> list[str]:
        """Apply edits to the segments of fragments, in order; return a line for each that finds nothing to do."""
        remarks = []
        for edit in edits:
            if not (self._merge if edit.action == "merge" else self._split)(members, edit):
                already = "in one segment" if edit.action == "merge" else "in different segments"
                remarks.append(
                    f"edit {edit.number} ({edit.action} of {described(edit.segments)}) has nothing to do, as its "
                    f"fragments are {already} without it; it is kept"
                )
        return remarks

    def _merge(self, members: Members, edit: Edit) -> bool:
        merged = np.unique(members.segments[members.index(edit.fragments)])
        if len(merged) < 2:
            return False
        # of equally large ones the first in order keeps its id
        members.segments[np.isin(members.segments, merged)] = merged[members.sizes(merged).argmax()]
        return True

    def _split(self, members: Members, edit: Edit) -> bool:
        holders = members.segments[members.index(edit.fragments)]
        held, seeds = np.unique(holders, return_counts=True)
        fresh = self.places.largest + 1 + edit.fresh
        for segment in held[seeds > 1]:
            inside = np.flatnonzero(members.segments == segment)
            parts = self._parts(members.fragments[inside], edit, np.flatnonzero(holders == segment))
            present = np.unique(parts[parts >= 0])
            sizes = [members.voxels[inside[parts == part]].sum() for part in present]
            # the largest part keeps the id, and what no seed leads to stays with it
            for part in np.delete(present, np.argmax(sizes)):
                members.segments[inside[parts == part]] = fresh
                fresh += 1
        return bool((seeds > 1).any())

    def _parts(self, fragments: Ids, edit: Edit, seeds: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return the part of each fragment of a segment that holds some seeds of a split, -1 for that of none."""
        parts = np.full(len(fragments), -1, np.int64)
        for part in seeds:
            listed = edit.parts[part - 1] if part else ()
            own = np.array([*listed, edit.fragments[part]], np.uint64)
            parts[np.isin(fragments, own)] = part
        if edit.whole == checksum(fragments):
            parts[parts < 0] = 0
            return parts
        # fragments were joined to the segment, or lost, since it was parted
        return self.division(fragments, parts)

    def division(self, fragments: Ids, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the part of each fragment, see `stages.division`; without a graph that of the seeds only."""
        graph = self.graph
        if graph is None:
            return seeds
        edges, stats = [], []
        for tile, _ in self.by_tile(fragments):
            found = graph.table("edges", tile)
            inner = np.isin(found, fragments).all(1)
            edges.append(found[inner])
            stats.append(graph.table("stats", tile)[inner])
        return divided(fragments, np.concatenate(edges), np.concatenate(stats), seeds)

    @cached_property
    def graph(self) -> Data | None:
        """The fragment graph that the segments were solved on, if there is one."""
        joined = self.run.plan.stage(self.planned.sources["multicut"].name)
        source = joined.sources.get("graph")
        return self.run.plan.stage(source.name).data() if source is not None and source.kind == "graph" else None

    # what is written

    def write(self) -> list[str]:
        """Write the corrections of tiles that the log changes since the last time, and take back their records.

        Only the driver does so, holding the lock, when the fragments are joined.  Returns remarks for a person.

        Raises:
            TryAgainError: where the log is not what the run was planned with.
        """
        if self.log.digest(self.on) != self.planned.edits:
            raise TryAgainError(f"{self.run.url}: {self.planned.name} was edited meanwhile; run again")
        state = self.state
        since = self.log.until(state["applied"])
        known = state["digest"] == since.digest(self.on) and state["applied"] == since.last
        new = [e for e in self.log.entries if not known or e.number > state["applied"]]
        remarks: list[str] = []
        if new or not known:
            linked, members = self._linked({segment for entry in new for segment in self.originals(entry)})
            remarks = self.replay(members, linked)
            self._put(members, whole=not known)
            self._mark(applied=self.log.last, digest=self.planned.edits)
        return remarks

    @property
    def state(self) -> dict[str, Any]:
        """The number of the last edit that was applied, what the edits then were, and the last that was finished."""
        return self._store.read_json("corrections.json") or {"applied": 0, "digest": "", "finished": 0}

    def finish(self) -> None:
        """Note that all blocks are written again."""
        if self.state["finished"] != self.log.last:
            self._mark(finished=self.log.last)

    def _mark(self, **changes: Any) -> None:
        self._store.write_json("corrections.json", self.state | changes)

    def _put(self, members: Members, *, whole: bool) -> None:
        """Write the corrections of the members; with `whole` there are no others."""
        moved = members.segments != members.originals
        rows = np.stack([members.fragments, members.segments], axis=1)[moved]
        start, new = 0, {}
        for tile, ids in self.by_tile(rows[:, 0]):
            new[tile] = rows[start : start + len(ids)]
            start += len(ids)
        tiles = {tile for tile, _ in self.by_tile(members.fragments)} | (set(self._written()) if whole else set())
        changed = {}
        none = np.zeros((0, 2), np.uint64)
        for tile in sorted(tiles):
            found = self.data.find("edits.corrections", tile)
            before = none if found is None else found
            kept = none if whole else before[~np.isin(before[:, 0], members.fragments)]
            after = np.concatenate([kept, new.get(tile, none)])
            after = after[np.argsort(after[:, 0])]
            if not np.array_equal(before, after):
                changed[tile] = after
        self._take_back(changed)
        for tile, table in changed.items():
            self.data.put("edits.corrections", tile, table)

    def _written(self) -> Iterator[int]:
        """Yield the tiles that have corrections."""
        for key in self._store.keys("corrections/"):
            z, y, x = (int(n) for n in key.removeprefix("corrections/").removesuffix(".npy").split("."))
            yield self.grid.index((z, y, x))

    def _take_back(self, tiles: Iterable[int]) -> None:
        """Take back the records of all that is made of tiles, pyramid included."""
        boxes = [self.grid.box(tile) for tile in tiles]
        for step in (s for s in self.run.plan.steps.values() if s.planned is self.planned):
            target = step.step.targets[0]
            output = target.output
            factors = output.factors[target.level] if isinstance(output, VolumeOutput) else (1, 1, 1)
            cells = {cell for box in boxes for cell in _cells(step.step.grid, box, factors)}
            if cells:
                self.run.ledger(step).forget(cells)


def _cells(grid: Grid, box: Box, factors: Vector) -> list[int]:
    """Return the cells of the grid of a resolution that hold any voxel of a box of the finest."""
    steps = [f * c for f, c in zip(factors, grid.cell, strict=True)]
    z, y, x = ((a // s, -(-b // s)) for a, b, s in zip(box.start, box.stop, steps, strict=True))
    return grid.within(Box((z[0], y[0], x[0]), (z[1], y[1], x[1])))
