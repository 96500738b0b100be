"""Which tiles hold a segment: an index of the segments that were solved, made by one look at all tiles, then kept.

    <stage>/places/<segment // 4096>/<n>.npy   (k, 2) uint64  segment, tile
    <stage>/places/all.json                    the largest segment; it is there once the index is whole

What the fragments were joined to does not change while the stage's folder is there, so neither does the index.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from ..progress import progress
from ..stages.base import packed, unpacked
from ..volumes import Store

Ids = NDArray[np.uint64]

_BUCKET = np.uint64(4096)
_ROWS = 1 << 22
"""Rows that are held before they are written."""


class Places:
    """The index in the folder of a segmentation stage; `segments` gives those of the fragments of a tile."""

    def __init__(self, store: Store, tiles: int, segments: Callable[[int], Ids], bars: Progress | None = None) -> None:
        self._store = store
        self._tiles = tiles
        self._segments = segments
        found = store.read_json("places/all.json")
        self.largest = self._build(bars) if found is None else int(found)
        """The largest segment."""

    def of(self, segments: Iterable[int]) -> list[int]:
        """Return the tiles that hold any of some segments, ascending."""
        wanted = np.unique(np.array(list(segments), np.uint64))
        tiles: set[int] = set()
        for bucket in np.unique(wanted // _BUCKET):
            for key in self._store.keys(f"places/{bucket}/"):
                rows = unpacked(self._store.read(key) or packed(np.zeros((0, 2), np.uint64)))
                tiles.update(rows[np.isin(rows[:, 0], wanted), 1].tolist())
        return sorted(tiles)

    def _build(self, bars: Progress | None) -> int:
        self._store.delete_all("places/")
        held: list[Ids] = []
        rows, pieces, largest = 0, 0, 0
        with nullcontext(bars) if bars else progress(transient=True) as shown:
            for tile in shown.track(range(self._tiles), description="places of segments"):
                found = np.unique(self._segments(tile))
                largest = max(largest, int(found.max(initial=0)))
                held.append(np.stack([found, np.full_like(found, tile)], axis=1))
                rows += len(found)
                if rows > _ROWS:
                    self._write(np.concatenate(held), pieces)
                    held, rows, pieces = [], 0, pieces + 1
        self._write(np.concatenate([*held, np.zeros((0, 2), np.uint64)]), pieces)
        self._store.write_json("places/all.json", largest)
        return largest

    def _write(self, rows: Ids, piece: int) -> None:
        buckets = rows[:, 0] // _BUCKET
        for bucket in np.unique(buckets):
            self._store.write(f"places/{bucket}/{piece}.npy", packed(rows[buckets == bucket]))
