"""Random access to gzip and zlib data: places to go on from are kept while it is read once, forwards."""

import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PIECE = 1 << 18
_PLACES = 128
"""Most places kept; a place takes some 50 KB, the state of a decompressor."""


@dataclass
class _Place:
    """The state of reading: how far in the file, how far in what it decompresses to, and the decompressor."""

    inside: int
    outside: int
    decompressor: Any


class Gzipped:
    """The decompressed bytes of gzip or zlib data that begins at byte `start` of a file; safe in threads.

    What lies ahead is decompressed and dropped, what lies behind is reached from the nearest place that was kept:
    memory is bounded, and reading backwards does not begin anew each time.
    """

    def __init__(self, file: Path, start: int = 0, spacing: int = 1 << 24) -> None:
        self._file = file.open("rb")
        self._spacing = spacing
        self._lock = threading.Lock()
        self._places = [_Place(start, 0, zlib.decompressobj(wbits=47))]  # 47: either kind
        self._now = self._copy(self._places[0])

    def read(self, start: int, count: int) -> bytearray:
        """Return bytes of the decompressed data.

        Raises:
            EOFError: where it ends before.
            zlib.error: where it is damaged.
        """
        with self._lock:
            best = max((p for p in self._places if p.outside <= start), key=lambda p: p.outside)
            if not best.outside <= self._now.outside <= start:
                self._now = self._copy(best)
            while self._now.outside < start:
                self._next(min(_PIECE, start - self._now.outside))
            # grown as it comes: a header that lies about its size must not cost the memory
            data = bytearray()
            while len(data) < count:
                data += self._next(min(_PIECE, count - len(data)))
            return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _copy(self, place: _Place) -> _Place:
        return _Place(place.inside, place.outside, place.decompressor.copy())

    def _next(self, most: int) -> bytes:
        """Return the next bytes, `most` at most."""
        now = self._now
        while True:
            self._file.seek(now.inside)
            given = self._file.read(_PIECE // 4)
            if now.decompressor.eof:
                if not given.startswith(b"\x1f\x8b"):  # what follows the last member is padding
                    raise EOFError("the compressed data ends too early")
                now.decompressor = zlib.decompressobj(wbits=31)
            out: bytes = now.decompressor.decompress(given, most)
            rest = len(now.decompressor.unconsumed_tail) + len(now.decompressor.unused_data)
            if now.decompressor.eof:
                # unused data is kept by the decompressor, and would be counted again
                rest = len(now.decompressor.unused_data)
            now.inside += len(given) - rest
            now.outside += len(out)
            if out:
                self._keep()
                return out
            if not given:
                raise EOFError("the compressed data ends too early")

    def _keep(self) -> None:
        now = self._now
        if now.decompressor.eof or now.outside < self._places[-1].outside + self._spacing:
            return
        self._places.append(self._copy(now))
        if len(self._places) > _PLACES:
            self._places = self._places[::2]
            self._spacing *= 2
