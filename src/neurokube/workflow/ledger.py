"""The ledger: which blocks of a step are done, as small immutable objects beside the data.

    <stage>/ledger/<key>/<step>/<cells a block>/<first>-<last>/<writer>.json    while a batch is worked on
    <stage>/ledger/<key>/<step>/<cells a block>/<first>-<last>/all.json         once it is finished

A record follows the durable output.  A worker appends an object every few seconds and when it stops; a
finished batch is compacted to one.  No object is written twice, none is shared by two writers.  What is
done is kept in terms of canonical cells, so a run may go on with another block size.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..blocks import Blocks
from ..engines.base import Batch
from ..volumes import Store


@dataclass(frozen=True)
class Record:
    """A completed block.

    `checksums` holds the CRC-32 of each object that the block stores, in the order of `Step.objects`, and
    None for an object that is empty and therefore absent from the store.
    """

    block: int
    seconds: float
    host: str
    attempt: int
    bytes: int
    peak_memory: int
    checksums: list[int | None]


class Ledger:
    """The records of one step under one key."""

    def __init__(self, store: Store, folder: str, blocks: Blocks) -> None:
        self.store = store
        self.blocks = blocks
        self._prefix = folder.rstrip("/") + "/"
        self._done = np.zeros(len(blocks.grid), bool)
        self._read: set[str] = set()

    def done(self) -> NDArray[np.bool_]:
        """Return, for each canonical cell, whether it has a record; reads only what is new."""
        return self._look(None)

    def remaining(self, batch: Batch | None = None) -> list[int]:
        """Return the blocks without a record, of one batch or of all."""
        done = self._look(batch)
        first, last = (0, len(self.blocks)) if batch is None else (batch.first, batch.last)
        if self.blocks.cells == (1, 1, 1):
            return [int(b) for b in np.flatnonzero(~done[first:last]) + first]
        return [block for block in range(first, last) if not done[self.blocks.members(block)].all()]

    def count(self) -> int:
        """Return how many blocks are done."""
        return len(self.blocks) - len(self.remaining())

    def records(self, known: set[str] | None = None) -> Iterator[tuple[Blocks, Record]]:
        """Yield every record with the blocks it counts in; a block that was done twice comes twice.

        Objects that are `known` are left out; those that are read become so.
        """
        for key in self.store.keys(self._prefix):
            if known is not None:
                if key in known:
                    continue
                known.add(key)
            blocks, _ = self._parse(key)
            for record in self._load(key):
                yield blocks, record

    def writer(self, batch: Batch, interval: float, settle: Callable[[], None] = lambda: None) -> "Writer":
        """Return a writer of records for a batch; `settle` is called before any becomes durable, and may refuse."""
        return Writer(self, batch, interval, settle)

    def forget(self, cells: Iterable[int]) -> None:
        """Take back the records of every block that holds one of these cells.

        Only the driver does so, while no worker runs.  The rest of an object is written before it goes.
        """
        gone = list(cells)
        for key in self.store.keys(self._prefix):
            blocks, batch = self._parse(key)
            lost = {block for cell in gone if batch.first <= (block := blocks.of(cell)) < batch.last}
            if not lost:
                continue
            records = self._load(key)
            kept = [r for r in records if r.block not in lost]
            if len(kept) < len(records):
                if kept:
                    self.append(f"{key.rsplit('/', 1)[0]}/{_unique()}.json", kept)
                self.store.delete(key)
        self._done[:] = False
        self._read.clear()

    def folder(self, batch: Batch) -> str:
        """Return the folder of a batch's objects."""
        return f"{self._prefix}{self.blocks}/{batch}/"

    def append(self, key: str, records: Sequence[Record]) -> None:
        """Write records as one object."""
        self.store.write_json(key, [asdict(r) for r in records])

    def _look(self, batch: Batch | None) -> NDArray[np.bool_]:
        vanished = False
        for key in self.store.keys(self._prefix):
            if key in self._read:
                continue
            blocks, found = self._parse(key)
            apart = batch is not None and (found.first >= batch.last or batch.first >= found.last)
            if apart and blocks == self.blocks:
                continue
            if key.endswith("/all.json"):
                ids: Iterable[int] = range(found.first, found.last)
            else:
                records = self._load(key)
                vanished |= not records
                ids = [r.block for r in records]
            if blocks.cells == (1, 1, 1):
                self._done[list(ids)] = True
            else:
                for block in ids:
                    self._done[blocks.members(block)] = True
            self._read.add(key)
        # a listed object that is gone was just compacted into another, which the listing may have missed
        return self._look(batch) if vanished else self._done

    def _parse(self, key: str) -> tuple[Blocks, Batch]:
        cells, batch, _ = key.removeprefix(self._prefix).split("/")
        z, y, x = (int(n) for n in cells.split("x"))
        return Blocks(self.blocks.grid, (z, y, x)), Batch.parse(batch)

    def _load(self, key: str) -> list[Record]:
        return [Record(**row) for row in self.store.read_json(key) or []]


class Writer:
    """Appends the records of one batch: every `interval` seconds, and when it is closed."""

    def __init__(self, ledger: Ledger, batch: Batch, interval: float, settle: Callable[[], None]) -> None:
        self._ledger = ledger
        self._batch = batch
        self._interval = interval
        self._settle = settle
        self._pending: list[Record] = []
        self._flushed = time.monotonic()

    def add(self, record: Record) -> None:
        """Note a block whose outputs are durable, or are once it is settled."""
        self._pending.append(record)
        if time.monotonic() - self._flushed >= self._interval:
            self.flush()

    def flush(self) -> None:
        """Make what was noted durable."""
        if self._pending:
            self.settle()
            self._ledger.append(f"{self._ledger.folder(self._batch)}{_unique()}.json", self._pending)
            self._pending = []
        self._flushed = time.monotonic()

    def settle(self) -> None:
        """Settle what is noted; where that fails it counts for nothing, then and later."""
        try:
            self._settle()
        except BaseException:
            self._pending = []
            raise

    def close(self) -> None:
        """Flush; and if the batch is whole, put all its records into one object."""
        self.settle()
        ledger, folder = self._ledger, self._ledger.folder(self._batch)
        keys = ledger.store.keys(folder)
        found = {r.block: r for k in keys for r in ledger._load(k)} | {r.block: r for r in self._pending}
        if set(range(self._batch.first, self._batch.last)) - found.keys():
            self.flush()
            return
        if f"{folder}all.json" not in keys:
            ledger.append(f"{folder}all.json", [found[block] for block in sorted(found)])
        self._pending = []
        for key in keys:
            if not key.endswith("/all.json"):
                ledger.store.delete(key)


def _unique() -> str:
    return f"{time.time_ns():x}-{os.getpid()}"
