"""The log of edits: what people corrected of a segmentation, as small immutable objects beside the run.

    <run>/<stage>.edits/<number>.json

An edit speaks of fragments, never of segments alone: it holds however the fragments were joined before, so it
survives a multicut with other settings.  It is bound to the key of the fragments it was made on; on others it does not
count, and is kept.  Nothing in the log is ever changed: an undo is an entry of its own, and can itself be undone.
"""

import zlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import DataError, TryAgainError
from ..volumes import Store, join
from .plan import Edited, digest

Ids = NDArray[np.uint64]


class Edit(BaseModel):
    """An entry of the log.

    merge    the segments that hold `fragments` are one
    split    `fragments` are in different segments; each but the first has the fragments of one of the `parts` with it,
             the first has all others, if the segment is still the `whole` that was parted
    undo     the entry numbered `undoes` does not count
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    action: Literal["merge", "split", "undo"]
    author: str
    time: str
    """UTC, as 2026-01-31T12:00:00+00:00."""
    note: str = ""
    on: str
    """Key of the fragments."""
    fragments: tuple[int, ...] = ()
    parts: tuple[tuple[int, ...], ...] = ()
    whole: tuple[int, int] | None = None
    """Number and checksum of the fragments that were parted."""
    fresh: int = 0
    """How many segments the splits before have made: new ids count on from there."""
    undoes: int | None = None
    segments: tuple[int, ...] = ()
    """The segments as they were called, for people."""
    became: tuple[int, ...] = ()
    """What they were called afterwards."""
    voxels: int = 0
    """How many voxels have another segment since."""
    joined_by: str = ""
    """Key of the stage that had joined the fragments."""
    originals: tuple[int, ...] = ()
    """The segments that it had put `fragments` into."""


@dataclass(frozen=True)
class EditLog:
    """The edits of one segmentation stage, in order."""

    store: Store
    stage: str
    entries: tuple[Edit, ...]

    @classmethod
    def read(cls, store: Store, stage: str) -> Self:
        """Read the log of a stage of the run in a store.

        Raises:
            DataError: where an entry is damaged.
        """
        return cls(store, stage, tuple(_entry(store, key) for key in store.keys(f"{stage}.edits/")))

    def until(self, number: int) -> Self:
        """Return the log as it was when it ended with the entry of a number."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.number <= number))

    @property
    def last(self) -> int:
        """The number of the last entry, 0 where there is none."""
        return max((entry.number for entry in self.entries), default=0)

    @property
    def fresh(self) -> int:
        """How many segments all splits have made, those that were undone included."""
        return max((entry.fresh + len(entry.parts) for entry in self.entries), default=0)

    def entry(self, number: int) -> Edit | None:
        """Return an entry by its number."""
        return next((entry for entry in self.entries if entry.number == number), None)

    def subject(self, edit: Edit) -> Edit:
        """Return the merge or split that an entry is, or undoes, or brings back."""
        while edit.undoes is not None and (found := self.entry(edit.undoes)) is not None:
            edit = found
        return edit

    def undone(self) -> dict[int, int]:
        """Return, for each entry that was undone, the entry that did so."""
        found: dict[int, int] = {}
        for entry in reversed(self.entries):
            if entry.undoes is not None and entry.number not in found:
                found[entry.undoes] = entry.number
        return found

    def standing(self) -> list[Edit]:
        """Return the merges and splits that were not undone."""
        undone = self.undone()
        return [entry for entry in self.entries if entry.action != "undo" and entry.number not in undone]

    def counting(self, on: str) -> list[Edit]:
        """Return those that were made on the fragments of a key: what becomes of any others is not known."""
        return [entry for entry in self.standing() if entry.on == on]

    def digest(self, on: str) -> str:
        """Return what tells the edits that count on fragments apart from any others; "" where there are none."""
        edits = self.counting(on)
        return digest([[e.action, e.fragments, e.parts, e.whole, e.fresh] for e in edits]) if edits else ""

    def with_entry(self, edit: Edit) -> Self:
        """Make an edit durable, and return the log with it.

        Raises:
            TryAgainError: where somebody else has just made one of this number.
        """
        content = edit.model_dump_json(exclude_defaults=True).encode()
        if not self.store.create(f"{self.stage}.edits/{edit.number:08d}.json", content):
            raise TryAgainError(f"{self.store.url}: somebody else has just made edit {edit.number}; try again")
        return replace(self, entries=(*self.entries, edit))


def _entry(store: Store, key: str) -> Edit:
    try:
        return Edit.model_validate(store.read_json(key))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{join(store.url, key)}: no edit that this version understands "
            f"({'.'.join(str(part) for part in first['loc']) or 'it'}: {first['msg']}); restore the file, or use the "
            "version that wrote it"
        ) from None


def edited(store: Store) -> Edited:
    """Return the function that tells the edits in a run's folder apart, for planning."""
    return lambda stage, on: EditLog.read(store, stage).digest(on)


def now() -> str:
    """Return the time, as edits have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def checksum(fragments: Ids) -> tuple[int, int]:
    """Return what tells a set of fragments, ascending, apart from others: how many there are, and a CRC-32."""
    return len(fragments), zlib.crc32(np.ascontiguousarray(fragments, "<u8").data)
