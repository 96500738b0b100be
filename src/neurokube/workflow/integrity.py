"""Integrity of a run: what it stored against the checksums that its ledger keeps."""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..progress import progress
from ..stages import Data, FileOutput, VolumeOutput
from ..stages.base import Target
from ..volumes import Store
from ..volumes.integrity import Checked, Damage, parallel
from .plan import PlannedStep
from .run import Run


@dataclass(frozen=True)
class DamagedBlock(Damage):
    """Damage of what a block of a step stored, in an object `key`.

    `box` is in voxels of the step's grid; `cell` is what the ledger is told to forget.
    """

    step: str
    block: int
    cell: int
    key: str

    def __str__(self) -> str:
        return f"{self.step} block {self.block}, {self.key}: {self.what}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"step": self.step, "block": self.block, "object": self.key, **super().as_dict()}


@dataclass(frozen=True)
class CheckedRun(Checked[DamagedBlock]):
    """What was found in how many objects, and how many blocks have no record."""

    objects: int = 0
    unfinished: int = 0


@dataclass(frozen=True)
class _Stored:
    """An object that a block stored, by its record."""

    target: Target
    cell: int
    checksum: int | None
    owner: int
    """The cell of the step's grid whose block stored it."""


def check_run(run: Run, *, workers: int = 2, quiet: bool = False) -> CheckedRun:
    """Read every object that the ledger has a record of, in bounded memory, and compare it with its checksum.

    Raises:
        DataError: where the ledger itself is damaged.
        TryAgainError: where a store fails.
    """
    damage: list[DamagedBlock] = []
    objects = read = unfinished = 0
    with progress(quiet=quiet) as bars:
        for step in run.plan.steps.values():
            unfinished += len(run.ledger(step).remaining())
            stored = _stored(run, step)
            look = _Look(step, run.at(step.planned))
            bar = bars.add_task(step.name, total=len(stored), unit="objects")
            for each, (what, size) in zip(stored, parallel(look, stored, workers), strict=True):
                objects, read = objects + 1, read + size
                if what:
                    damage.append(_damaged(step, each, what))
                bars.advance(bar)
    return CheckedRun(tuple(damage), read, objects=objects, unfinished=unfinished)


def repair(run: Run, damage: tuple[DamagedBlock, ...]) -> int:
    """Take back the records of damaged blocks, then remove what is damaged; return how many blocks run again.

    The next run computes these blocks anew, and only these.  The run's lock is held.
    """
    for step in run.plan.steps.values():
        mine = [each for each in damage if each.step == step.name]
        if mine:
            # the records go first: a record must never outlive what it speaks of
            run.ledger(step).forget({each.cell for each in mine})
            for each in mine:
                run.at(step.planned).delete(each.key)
    return len({(each.step, each.block) for each in damage})


def _stored(run: Run, step: PlannedStep) -> list[_Stored]:
    """Return what the records of a step say is stored; of a block that was done twice, as the last one says."""
    found: dict[tuple[str, int, int], _Stored] = {}
    for blocks, record in run.ledger(step).records():
        members = blocks.members(record.block)
        for (target, cell), checksum in zip(step.step.objects(members), record.checksums, strict=True):
            owner = cell if target.grid == step.step.grid else members[0]
            found[target.output.name, target.level, cell] = _Stored(target, cell, checksum, owner)
    return list(found.values())


def _damaged(step: PlannedStep, stored: _Stored, what: str) -> DamagedBlock:
    block = step.blocks.of(stored.owner)
    box, target = step.blocks.box(block), stored.target
    return DamagedBlock(target.level, box, what, step.name, block, stored.owner, target.key(stored.cell))


class _Look:
    """Reads an object of a step, and returns what is wrong with it, "" for nothing, and how many bytes it had."""

    def __init__(self, step: PlannedStep, store: Store) -> None:
        self._step = step
        self._store = store
        self._data: Data = step.planned.data()
        for target in step.step.targets:
            if isinstance(target.output, VolumeOutput):
                # opened by one thread, read by all
                self._data.volume(target.output.name)

    def __call__(self, stored: _Stored) -> tuple[str, int]:
        output = stored.target.output
        return self._voxels(stored) if isinstance(output, VolumeOutput) else self._content(stored)

    def _content(self, stored: _Stored) -> tuple[str, int]:
        key = stored.target.key(stored.cell)
        content = self._store.read(key)
        if content is None:
            return "missing", 0
        if zlib.crc32(content) == stored.checksum:
            return "", len(content)
        kind = "file" if isinstance(stored.target.output, FileOutput) else "table"
        return f"the {kind} is not what was written", len(content)

    def _voxels(self, stored: _Stored) -> tuple[str, int]:
        target = stored.target
        output = target.output
        box = target.grid.box(stored.cell)
        try:
            voxels = self._data.volume(output.name).read(box, target.level)
        except DataError as error:
            return str(error).partition(": cannot read voxels ")[2].partition("; restore")[0], 0
        size = math.prod(voxels.shape) * voxels.dtype.itemsize
        if (zlib.crc32(np.ascontiguousarray(voxels).data) if voxels.any() else None) == stored.checksum:
            return "", size
        missing = self._store.read(target.key(stored.cell)) is None
        return "missing" if missing else "holds other voxels than were written", size


def by_step(damage: tuple[DamagedBlock, ...]) -> dict[str, list[int]]:
    """Return the blocks of each step that have to be computed again."""
    found: dict[str, set[int]] = {}
    for each in damage:
        found.setdefault(each.step, set()).add(each.block)
    return {step: sorted(blocks) for step, blocks in found.items()}


def as_dict(run: Run, checked: CheckedRun) -> dict[str, Any]:
    """Return what was found as plain values."""
    return {
        "run": run.url,
        "objects": checked.objects,
        "bytes": checked.bytes,
        "unfinished_blocks": checked.unfinished,
        "compute_again": by_step(checked.damage),
        "damage": [each.as_dict() for each in checked.damage],
    }
