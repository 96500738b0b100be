"""The pulse of a pod: where it is, now and then beside the ledger, and whether it is starved of processor time."""

import socket
import threading
import time
from pathlib import Path

from ..volumes import Store

INTERVAL = 30.0
"""Seconds between two signs of life; as long as a record may take."""

STARVED, _WHILE = 0.5, 120.0
"""A pod is starved that was held back for this share of so many seconds."""

_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"))


class Pulse:
    """Writes `<stage>/jobs/<job>/<index>.json` every `INTERVAL` while it is entered, from a thread.

    It says which pod it is, how many blocks of its share it began and when the last, and for what share of the time it
    was held back by its limit of processor time.  `starved()` is true once that was too much for too long.
    """

    def __init__(
        self, store: Store, key: str, *, interval: float = INTERVAL, cgroups: tuple[Path, ...] = _CGROUPS
    ) -> None:
        self._store, self._key, self._interval, self._cgroups = store, key, interval, cgroups
        self._ended, self._begun, self._since = threading.Event(), 0, time.time()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._held_back = 0.0

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and take the sign away: the ledger says the rest."""
        self._ended.set()
        self._thread.join()
        self._store.delete(self._key)

    def next(self) -> None:
        """Note that the next block begins."""
        self._begun, self._since = self._begun + 1, time.time()

    @property
    def held_back(self) -> float:
        """The share of the last while for which the pod was held back."""
        return self._held_back

    def starved(self) -> bool:
        """Whether it was held back for so long that it would do better with more."""
        return self._held_back > STARVED

    def _beat(self) -> None:
        began, before = time.monotonic(), throttled(self._cgroups)
        while not self._ended.wait(self._interval):
            now = time.monotonic()
            if before is not None and now - began >= _WHILE:
                held = throttled(self._cgroups)
                self._held_back = 0.0 if held is None else min(1.0, (held - before) / (now - began))
                began, before = now, held
            told = {
                "pod": socket.gethostname(),
                "begun": self._begun,
                "since": round(self._since),
                "time": round(time.time()),
            }
            self._store.write_json(self._key, {**told, "held_back": round(self._held_back, 3)})


def throttled(cgroups: tuple[Path, ...] = _CGROUPS) -> float | None:
    """Return for how many seconds this container's processes were held back by their limit, None where there is none.

    Of control groups of both versions: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files and
    https://docs.kernel.org/scheduler/sched-bwc.html#statistics.
    """
    for folder in cgroups:
        try:
            told = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if "throttled_usec" in told:
            return int(told["throttled_usec"]) / 1e6
        if "throttled_time" in told:
            return int(told["throttled_time"]) / 1e9
    return None


def quota(cgroups: tuple[Path, ...] = _CGROUPS) -> float | None:
    """Return how many cores this container may use at the most, None where nothing says so."""
    for folder in cgroups:
        for read in (_quota_2, _quota_1):
            try:
                most, period = read(folder)
            except (OSError, ValueError):
                continue
            return most / period if most > 0 else None
    return None


def _quota_2(folder: Path) -> tuple[int, int]:
    most, period = (folder / "cpu.max").read_text().split()
    return (-1 if most == "max" else int(most)), int(period)


def _quota_1(folder: Path) -> tuple[int, int]:
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
