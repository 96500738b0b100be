"""Pools of worker processes, through Parsl; where the workers are, an engine of its own says.

Parsl's manager notices a dead worker and starts another; the batch it had is ours to run again.  What becomes of a
batch that did not end by itself:

    its worker died                        again in halves, so that a block that kills its worker is found;
                                           a single block is given up after some deaths
    its manager is gone with all workers   again as it is; the second time as if its worker had died
    its worker's time was over             the rest of it again
    nobody works, though batches wait      Parsl and its workers are started anew, and all of it again
"""

import logging
import os
import signal
import sys
import tempfile
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, ClassVar, Self

from ..errors import NeuroKubeError, TryAgainError, surroundings
from ..progress import log
from ..words import counted
from .base import Batch, Engine, Outcome, Report, Work
from .lifeline import leave_with

_TICK = 0.5
_LOSSES = 20


@dataclass(frozen=True)
class _Task:
    """A batch, how often its worker died when it was a single block, and whether its manager was gone before."""

    batch: Batch
    lost: int = 0
    moved: bool = False

    def parts(self) -> list["_Task"]:
        """Return what to run after its worker died."""
        halves = self.batch.halves()
        return [_Task(half, self.lost + 1 if len(halves) == 1 else 0) for half in halves]


class Pool(Engine):
    """`workers` processes that Parsl keeps; `folder` is for what they and the driver tell each other."""

    starting: ClassVar[float] = 120.0
    stalled: ClassVar[float] = 10.0
    """Seconds without a worker at work, at first and later, after which Parsl and its workers are started anew."""

    period: ClassVar[float] = 0.2
    """Seconds between Parsl's looks at whether there are workers enough."""

    remedy: ClassVar[str] = "use fewer --workers or a smaller block"

    def __init__(self, workers: int, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.workers = workers
        self._folder = folder
        self._stop = Path(folder.name) / "stop"
        self._marks = Path(folder.name) / "at-work"
        self._marks.mkdir()
        self._kernel: Any = None
        self._stirred, self._patience = 0.0, self.starting
        self._fruits = 0

    @abstractmethod
    def _executor(self, interchange: list[str]) -> Any:
        """Return a HighThroughputExecutor of Parsl, whose interchange is started by a command."""

    @abstractmethod
    def _submit(self, app: Any, work: Work, run_url: str, step_name: str, batch: Batch) -> Future[Report]:
        """Hand a batch to Parsl: `app(*arguments)` calls what `_app` names."""

    @abstractmethod
    def _app(self) -> Any:
        """Return the function that runs in the worker processes."""

    @abstractmethod
    def _at_work(self) -> bool:
        """Whether somebody works on a batch, or there is a reason why nobody does."""

    def _look(self) -> None:
        """Raise what makes waiting on vain."""

    def _reachable(self) -> bool:
        """Whether the batches that were handed out will end by themselves once workers were asked to stop."""
        return True

    def __enter__(self) -> Self:
        self._start()
        return self

    def _start(self) -> None:
        """Start Parsl and its workers, once more where they do not come up in time.

        Raises:
            TryAgainError: where they do not then either.
        """
        try:
            self._kernel = self._started()
        except NeuroKubeError:
            raise
        except Exception:  # Parsl raises nothing narrower
            log.debug("Parsl did not start", exc_info=True)
            try:
                self._kernel = self._started()
            except Exception as error:
                raise surroundings(error, self._folder.name) or TryAgainError(
                    f"the worker processes did not start, twice ({error}): the machine was asleep or is very busy; "
                    "nothing that was recorded is lost, run again, perhaps with fewer --workers"
                ) from None
        self._stirred, self._patience = time.monotonic(), self.starting

    def _started(self) -> Any:
        from parsl import Config, DataFlowKernel

        logging.getLogger("parsl").setLevel(logging.CRITICAL)
        # Parsl starts its own programs by name
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        interchange = [sys.executable, "-m", "neurokube.engines.interchange", str(os.getpid()), self._folder.name]
        executor = self._executor(interchange)
        config = Config(
            executors=[executor],
            run_dir=self._folder.name,
            strategy="simple",
            strategy_period=self.period,
            initialize_logging=False,
            usage_tracking=0,
        )
        # Ctrl-C is for us alone: what is started while it is blocked never sees it, and we see it afterwards
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return DataFlowKernel(config)
        except Exception:
            if executor.interchange_proc is not None:
                executor.interchange_proc.kill()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start_anew(self) -> None:
        # what was started before may never answer; it leaves with us at the latest
        Thread(target=self._kernel.cleanup, daemon=True).start()
        self._kernel = None
        self._start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self._stop.touch()
        if self._kernel is not None:
            self._kernel.cleanup()
        self._folder.cleanup()

    def _stalls(self, *, moved: bool) -> bool:
        """Whether no living process has worked on a batch for so long that none ever will.

        Parsl's workers share locks: one that is killed while it holds one, idle, holds up the others for ever.
        """
        if moved or self._at_work():
            self._stirred, self._patience = time.monotonic(), self.stalled
        return time.monotonic() - self._stirred > self._patience

    def drain(self) -> None:
        """Let running batches end after their block, start no other."""
        self._stop.touch()

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Keep every worker busy with batches, see `Engine.execute`."""
        from parsl import python_app

        app = python_app(self._app(), data_flow_kernel=self._kernel)
        self._stirred = time.monotonic()
        waiting = iter(batches)
        again: deque[_Task] = deque()
        running: dict[Future[Report], _Task] = {}
        losses = 0
        while True:
            asked = self._stop.exists()
            # a few batches ahead, so that no worker waits for the driver
            while len(running) < 2 * self.workers and not asked:
                task = again.popleft() if again else next((_Task(batch) for batch in waiting), None)
                if task is None:
                    break
                running[self._submit(app, work, run_url, step_name, task.batch)] = task
            if not running or (asked and not self._reachable()):
                return
            at_work = min(len(running), self.workers)
            self.observer.working(step_name, at_work, len(running) - at_work)
            ended, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
            if not ended:
                yield None
            self._look()
            if self._stalls(moved=bool(ended)):
                losses += 1
                self._start_anew()
                app = python_app(self._app(), data_flow_kernel=self._kernel)
                again.extend(running.values())
                running.clear()
                ended = set()
            for future in ended:
                task = running.pop(future)
                error = future.exception()
                if error is None:
                    losses, report = 0, future.result()
                    self._fruits += bool(report.done or report.failed)
                    yield Outcome(task.batch, report)
                    if report.drained and not self._stop.exists():
                        again.extend(_Task(part) for part in _between(task.batch, report.failed))
                    continue
                if _manager_lost(error) and not task.moved:
                    again.append(replace(task, moved=True))
                    continue
                if not _is_loss(error):
                    raise error
                losses += 1
                self.observer.happened(step_name, "death")
                if losses >= _LOSSES:
                    raise NeuroKubeError(
                        f"{step_name}: {losses} workers in a row died before they finished a batch ({error}); "
                        f"if memory ran out, {self.remedy}, then run again"
                    )
                parts = task.parts()
                if len(parts) == 1 and parts[0].lost >= attempts:
                    reason = f"its worker died {counted(parts[0].lost, 'time')} (killed, or out of memory)"
                    yield Outcome(task.batch, None, reason)
                else:
                    again.extend(parts)


def _between(batch: Batch, failed: Iterable[int]) -> list[Batch]:
    """Return what of a batch lies between the blocks that failed."""
    edges = [batch.first - 1, *sorted(failed), batch.last]
    return [Batch(before + 1, after) for before, after in pairwise(edges) if before + 1 < after]


@lru_cache(maxsize=1)
def hold_on_to(*processes: int) -> None:
    """End this process with any of some others."""
    for pid in processes:
        leave_with(pid)


def _is_loss(error: BaseException) -> bool:
    from parsl.executors.high_throughput.errors import WorkerLost

    return isinstance(error, WorkerLost) or _manager_lost(error)


def _manager_lost(error: BaseException) -> bool:
    from parsl.executors.high_throughput.errors import ManagerLost

    return isinstance(error, ManagerLost)
