"""What an engine is, and the simplest one."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from math import isqrt
from types import TracebackType
from typing import Protocol, Self

from .observer import Observer


@dataclass(frozen=True)
class Batch:
    """The blocks from `first` to `last`, `last` excluded: what one task or pod works through."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first:08d}-{self.last:08d}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote."""
        first, last = text.split("-")
        return cls(int(first), int(last))

    def halves(self) -> list[Self]:
        """Return the batch in two, or, of a single block, as it is."""
        middle = (self.first + self.last) // 2
        parts = [type(self)(self.first, middle), type(self)(middle, self.last)]
        return [part for part in parts if part.first < part.last]

    @classmethod
    def share(cls, index: int, of: int, blocks: int) -> Self:
        """Return the share `index` (from 0) of `of` nearly equal shares of all blocks."""
        return cls(blocks * index // of, blocks * (index + 1) // of)


@dataclass(frozen=True)
class Report:
    """What a worker says of a batch: blocks done now, blocks that failed, whether it was asked to stop."""

    done: int
    failed: tuple[int, ...] = ()
    drained: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a batch ended: with a report, or lost with its worker once too often, and why."""

    batch: Batch
    report: Report | None
    lost: str = ""


@dataclass(frozen=True)
class Place:
    """Where a stage lies; and how many bytes, before compression, it reads and writes where, by path or URL.

    `marks` are objects that are there before it begins: who does not find them is not where the driver is.
    """

    url: str
    data: Mapping[str, int] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


class Work(Protocol):
    """The worker function: `work(run, step, batch, stop)`."""

    def __call__(self, run_url: str, step_name: str, batch: Batch, stop: Callable[[], bool] | str | None) -> Report:
        """Work through a batch."""


_USUAL_BATCH = 64


def run_id(url: str) -> str:
    """Return what tells runs apart where a URL cannot stand, as in a label."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]


class Engine(ABC):
    """Runs batches somewhere.  Use it as a context; it is entered once a run."""

    kind: str = "local"
    workers: int = 1
    overlaps: bool = False
    """Whether `execute` may be called for several steps at once, from threads: where it only waits."""
    observer: Observer = Observer()
    """Is told what the engine sees."""
    places: Mapping[str, Place] = {}
    """Where stages lie, by name, as far as the driver has said so."""

    def batches(self, remaining: Sequence[int]) -> Iterator[Batch]:
        """Yield ranges that hold all the remaining blocks: ever smaller ones, so that workers end together.

        A worker lists what the batches before left in the ledger: of many blocks a batch takes more, so that
        there are never many batches either.
        """
        most, first = max(_USUAL_BATCH, isqrt(len(remaining))), 0
        while left := len(remaining) - first:
            part = remaining[first : first + max(1, min(most, left // (4 * self.workers)))]
            yield Batch(part[0], part[-1] + 1)
            first += len(part)

    @abstractmethod
    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Run batches; yield each one's outcome when it ends, and None now and then in between.

        A batch whose worker died is run again, in halves, so that a block that kills its worker is found;
        a single block that was lost `attempts` times is given up.  Once `drain` was called no new batch
        starts, and the running ones end after the block at hand.

        Raises:
            NeuroKubeError: where the worker function raised one, or workers die without getting anything done.
        """

    @abstractmethod
    def drain(self) -> None:
        """Ask to stop soon; may be called from a signal handler."""

    def hold(self, run_url: str) -> AbstractContextManager[object]:
        """Hold a run against drivers on other machines, where the engine can; it was entered.

        Raises:
            TryAgainError: where another driver has it.
        """
        return nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the workers; here there are none."""
        return None


class InProcess(Engine):
    """Runs everything in this process, one batch after the other."""

    def __init__(self) -> None:
        self._stop = False

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Run the batches in the given order."""
        for batch in batches:
            if self._stop:
                return
            self.observer.working(step_name, 1)
            yield Outcome(batch, work(run_url, step_name, batch, lambda: self._stop))

    def drain(self) -> None:
        """Stop after the block at hand."""
        self._stop = True


class Kept(Engine):
    """An engine whose workers stay from run to run, until `close`; they start with the first batch."""

    def __init__(self, engine: Engine) -> None:
        self.workers = engine.workers
        self._engine = engine
        self._open = ExitStack()
        self._started = False

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Run batches by the engine."""
        if not self._started:
            self._open.enter_context(self._engine)
            self._started = True
        yield from self._engine.execute(work, run_url, step_name, batches, attempts)

    def drain(self) -> None:
        """Ask the engine to stop soon."""
        self._engine.drain()

    def close(self) -> None:
        """Let go of the workers."""
        self._open.close()
