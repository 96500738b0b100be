"""The engine of computing centres: jobs of Slurm, LSF or PBS, whose workers work through batches.

Parsl submits the jobs, and others for those that were cancelled, preempted or at the end of their walltime; their
workers reach the driver by the network.  What workers and driver tell each other besides, that somebody is at work
and that all shall stop, lies in a folder that both see: the run's own, or what the profile names as `shared`.
"""

import os
import re
import shlex
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, ClassVar, Self

from ...errors import ConfigurationError, TryAgainError
from ...progress import console
from ..base import Batch, Engine, Outcome, Report, Work
from ..pool import Pool, hold_on_to
from .profile import KINDS, JobProfile, Jobs

_BEAT = 15.0
"""Seconds between the signs of life of a worker that is at work."""

_NEVER = re.compile(
    "Partition(TimeLimit|NodeLimit|Config)|BadConstraints|InvalidAccount|InvalidQOS|.*NotAllowed|.*PerJob.*|.*WallDuration.*"
)
"""Reasons of Slurm for which a job never starts, however long it waits."""

_LOCAL_DISKS = ("tmpfs", "ramfs", "overlay")


class Hpc(Engine):
    """Jobs of a batch system, by a profile; stages of which it says something of their own have jobs of their own."""

    def __init__(self, profile: JobProfile) -> None:
        self.profile, self.kind = profile, profile.kind
        self.workers = max(jobs.slots for jobs in [profile.of(""), *map(profile.of, profile.stages)])
        self._pools: dict[str, JobPool] = {}
        self._asked = False

    def __enter__(self) -> Self:
        """Check what can be checked before anything is submitted; jobs are submitted with the first batch.

        Raises:
            ConfigurationError: where there is no such batch system, or no such network.
        """
        program = KINDS[self.profile.kind]
        if shutil.which(program) is None:
            raise ConfigurationError(
                f"{program} is not on PATH; run where jobs of {self.profile.kind} are submitted, or load its module"
            )
        _addresses(self.profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel the jobs."""
        for pool in self._pools.values():
            pool.__exit__(kind, error, trace)
        self._pools.clear()

    def drain(self) -> None:
        """Ask the workers to stop after the block at hand; may be called from a signal handler."""
        self._asked = True
        for pool in self._pools.values():
            pool.drain()

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Run batches in jobs, see `Engine.execute`.

        Raises:
            ConfigurationError: where the batch system takes no such job, or the jobs' workers never come.
            TryAgainError: where it does not answer.
        """
        stage = step_name.partition("/")[0]
        name = stage if stage in self.profile.stages else ""
        if name not in self._pools and not self._asked:
            pool = JobPool(self.profile, self.profile.of(name), _folder(self.profile, run_url))
            pool.__enter__()
            self._pools[name] = pool
        if name in self._pools:
            self._pools[name].observer = self.observer
            yield from self._pools[name].execute(work, run_url, step_name, batches, attempts)

    def manifest(self, run_url: str, step: str, blocks: int) -> str:
        """Return the script of a job of a step, as it is for a run that has not begun."""
        from .providers import render

        return render(
            self.profile.kind, self.profile.of(step.partition("/")[0]), f"{_place(self.profile, run_url)}/.jobs"
        )


class JobPool(Pool):
    """The workers of jobs that are alike."""

    starting: ClassVar[float] = 300.0
    stalled: ClassVar[float] = 300.0
    period: ClassVar[float] = 2.0
    heartbeat: ClassVar[tuple[int, int]] = (5, 60)
    """Seconds between signs of life of the workers' managers, and without any until one counts as lost."""

    patience: ClassVar[float] = 40.0
    """Seconds after which a batch system that refuses everything is given up; where it took jobs before, ten times."""

    fruitless: ClassVar[int] = 6
    """Times the number of jobs at a time, after which jobs that get nothing done are not replaced any more."""

    remedy: ClassVar[str] = "ask for more memory in the profile, or use a smaller block"

    def __init__(self, profile: JobProfile, jobs: Jobs, folder: tempfile.TemporaryDirectory[str]) -> None:
        super().__init__(jobs.slots, folder)
        self.profile, self.jobs = profile, jobs
        self._htex: Any = None
        self._looked = self._beaten = self._refused_since = self._reasoned = 0.0
        self._connected, self._dead, self._beats = 0, False, frozenset[tuple[str, int]]()
        self._gone = self._fruits_seen = self._fruitful = 0
        self._reason = ""

    # what Parsl is told

    def _executor(self, interchange: list[str]) -> Any:
        from parsl import HighThroughputExecutor

        from .providers import make_provider

        period, threshold = self.heartbeat
        addresses = _addresses(self.profile)
        self._htex = HighThroughputExecutor(
            label="neurokube",
            address=addresses[0],
            worker_port_range=self.profile.ports,
            max_workers_per_node=self.jobs.per_node,
            cores_per_worker=self.jobs.cores,
            available_accelerators=self.jobs.gpus,
            heartbeat_period=period,
            heartbeat_threshold=threshold,
            drain_period=self.jobs.seconds - self.jobs.grace,
            block_error_handler=False,
            interchange_launch_cmd=interchange,
            provider=make_provider(self.profile.kind, self.jobs, self._folder.name),
        )
        if len(addresses) > 1:
            # listen on all, and let workers find the one that they reach; Parsl's own way asks a server elsewhere
            self._htex.address, self._htex.all_addresses = None, set(addresses)
        self._connected, self._dead, self._gone, self._fruitful = 0, False, 0, 0
        return self._htex

    def _app(self) -> Any:
        return _tended

    def _submit(self, app: Any, work: Work, run_url: str, step_name: str, batch: Batch) -> Future[Report]:
        future: Future[Report] = app(str(self._marks), work, run_url, step_name, batch, str(self._stop))
        return future

    # what becomes of it

    def _look(self) -> None:
        """See whether there are workers, and, where there are none, whether there ever will be."""
        if self._htex.bad_state_is_set:
            raise ConfigurationError(
                f"{_one_line(str(self._htex.executor_exception))}; jobs must run with the environment of the driver"
            )
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        self._connected = self._managers()
        self._check_fruits()
        gone = self._blocks_gone()
        if self._connected:
            self._gone, self._refused_since = len(gone), 0.0
            return
        said = self._said() if len(gone) > self._gone else ""
        if len(gone) - self._gone > 1 or said.startswith("neurokube: "):
            self._give_up(said.removeprefix("neurokube: "))
        self._check_refusals(now)
        if now - self._reasoned > 10 and self._htex.provider.accepted:
            self._reasoned = now
            self._check_reason()

    def _managers(self) -> int:
        """Return how many managers of workers are connected."""
        if self._htex.interchange_proc.poll() is not None:
            self._dead = True
        if self._dead:
            return 0
        try:
            return sum(1 for manager in self._htex.command_client.run("MANAGERS", timeout_s=60) if manager["active"])
        except Exception:
            self._dead = True  # Parsl's own words for an interchange that does not answer, several of them
            return 0

    def _blocks_gone(self) -> list[str]:
        """Return the jobs that ended before any of their workers came."""
        from parsl.jobs.states import JobState

        submitted, states = self._htex.blocks_to_job_id, dict(self._htex.status_facade)
        return [
            str(submitted[block])
            for block, status in states.items()
            if block in submitted and status.state == JobState.MISSING
        ]

    def _said(self) -> str:
        """Return what the last job that said anything said last."""
        files = sorted(Path(self._folder.name).rglob("*.stderr"), key=lambda file: file.stat().st_mtime)
        for file in reversed(files):
            lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return next((line for line in lines if line.startswith("neurokube: ")), lines[-1])[:500]
        return ""

    def _check_fruits(self) -> None:
        accepted = self._htex.provider.accepted
        if self._fruits != self._fruits_seen:
            self._fruits_seen, self._fruitful = self._fruits, accepted
        if (count := accepted - self._fruitful) > self.fruitless * self.jobs.jobs:
            raise ConfigurationError(
                f"{count - 1} jobs ended without having finished anything; ask for a longer walltime or more memory"
            )

    def _give_up(self, said: str) -> None:
        told = said or f"they said nothing, as if the nodes did not see {self._folder.name}"
        raise ConfigurationError(f"jobs end before their workers have come: {told}")

    def _check_refusals(self, now: float) -> None:
        provider = self._htex.provider
        if not provider.refused:
            self._refused_since = 0.0
            return
        self._refused_since = self._refused_since or now
        what = f"{KINDS[self.profile.kind]} refuses jobs: {provider.answer}"
        passing = re.search(
            r"timed out|did not answer|[Uu]nable to contact|try again|temporar|connect", provider.answer
        )
        if not provider.accepted and not passing:
            raise ConfigurationError(f"{what}; correct the profile")
        if now - self._refused_since > self.patience * (10 if provider.accepted else 1):
            raise TryAgainError(f"{what}; what is recorded is kept, run again when it takes jobs")

    def _check_reason(self) -> None:
        reason = self._htex.provider.waits()
        if _NEVER.fullmatch(reason):
            raise ConfigurationError(
                f"{self.profile.kind} would never start the jobs ({reason}); correct the profile, or ask for less"
            )
        if reason not in (self._reason, "", "None"):
            self._reason = reason
            console.print(f"[yellow]jobs wait in the queue: {reason}[/]")

    def _at_work(self) -> bool:
        """Whether workers gave a sign of life, or there are none because jobs wait in the queue."""
        now = time.monotonic()
        if now - self._beaten < 10:
            return False
        self._beaten = now
        before, self._beats = self._beats, frozenset(_beats(self._marks))
        return not self._connected or self._beats != before

    def _stalls(self, *, moved: bool) -> bool:
        return super()._stalls(moved=moved) or self._dead

    def _reachable(self) -> bool:
        return bool(self._connected)

    def _start_anew(self) -> None:
        console.print("[yellow]no worker answers; the jobs are submitted anew[/]")
        self._htex.provider.end()
        for mark in self._marks.iterdir():
            mark.unlink(missing_ok=True)
        super()._start_anew()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel the jobs."""
        self._stop.touch()
        provider = self._htex.provider
        # Parsl waits for ever for an interchange that is gone, as after a signal to the whole group: jobs may not
        closing = Thread(target=self._close, daemon=True)
        closing.start()
        left = 60
        while left > 0 and closing.is_alive():
            closing.join(1)
            left -= 1 if self._htex.interchange_proc.poll() is None else 12
        with suppress(Exception):
            provider.end()
        self._folder.cleanup()

    def _close(self) -> None:
        with suppress(Exception):
            self._kernel.cleanup()


def _addresses(profile: JobProfile) -> list[str]:
    """Return the IP addresses by which nodes may reach the driver."""
    import psutil

    if profile.address:
        try:
            return [socket.gethostbyname(profile.address)]
        except OSError:
            raise ConfigurationError(f"address: nothing is known of '{profile.address}'; name this machine") from None
    found = {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    if profile.interface is None:
        return sorted(found.values())
    if profile.interface not in found:
        raise ConfigurationError(f"interface: there is no '{profile.interface}' here; there are {', '.join(found)}")
    return [found[profile.interface]]


def _place(profile: JobProfile, run_url: str) -> str:
    """Return the folder that driver and nodes share."""
    place = str(Path(profile.shared).expanduser()) if profile.shared else run_url
    if "://" in place:
        raise ConfigurationError(f"{place}: name a folder that all nodes see as 'shared' in the profile, besides S3")
    place = str(Path(place).absolute())
    if shlex.quote(place) != place:
        raise ConfigurationError(
            f"{place}: jobs cannot be told such a path; use letters, digits and . _ - only, or name another as 'shared'"
        )
    return place


def _folder(profile: JobProfile, run_url: str) -> tempfile.TemporaryDirectory[str]:
    place = _place(profile, run_url)
    disk = _disk(place)
    if disk in _LOCAL_DISKS or place.startswith(("/tmp/", "/var/tmp/", "/dev/shm/")):
        console.print(f"[yellow]{place} looks like this machine's own ({disk}): the nodes must see it too[/]")
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".jobs-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigurationError(f"{place}: {error.strerror}; name a folder that all nodes see as 'shared'") from None


def _disk(place: str) -> str:
    """Return the kind of file system that a folder lies on."""
    import psutil

    mounts = [m for m in psutil.disk_partitions(all=True) if Path(place).is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else ""


def _beats(marks: Path) -> Iterator[tuple[str, int]]:
    for mark in marks.iterdir():
        with suppress(FileNotFoundError):
            yield mark.name, mark.stat().st_mtime_ns


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _tended(marks: str, work: Work, run_url: str, step_name: str, batch: Batch, stop: str) -> Report:
    """Run the worker function, marked as at work, until the job's time is over, in a process that ends with its job."""
    hold_on_to(os.getppid())
    mark = Path(marks, f"{socket.gethostname()}.{os.getpid()}")
    _beat(mark)
    deadline = float(os.environ.get("NEUROKUBE_DEADLINE", "inf"))
    asked = Path(stop)
    mark.touch()
    try:
        return work(run_url, step_name, batch, lambda: time.time() > deadline or asked.exists())
    finally:
        mark.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _beat(mark: Path) -> None:
    """Give signs of life from now on, while there is a mark."""

    def beat() -> None:
        while True:
            with suppress(OSError):
                os.utime(mark)
            time.sleep(_BEAT)

    threading.Thread(target=beat, daemon=True).start()
