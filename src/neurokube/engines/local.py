"""The local engine: worker processes on this machine, through Parsl.

Parsl's manager notices a dead worker and starts another; the batch it had is ours to run again.
"""

import logging
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import lru_cache
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

from ..errors import NeuroKubeError, TryAgainError, surroundings
from ..progress import log
from ..words import counted
from .base import Batch, Engine, Outcome, Report, Work
from .lifeline import leave_with, lives

_TICK = 0.5
_LOSSES = 20
_STARTING, _STALLED = 120.0, 10.0
"""Seconds without a worker at work, at first and later, after which Parsl and its workers are started anew."""


class Local(Engine):
    """`workers` processes on this machine, each with one thread."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._folder = tempfile.TemporaryDirectory(prefix="neurokube-", ignore_cleanup_errors=True)
        self._stop = Path(self._folder.name) / "stop"
        self._marks = Path(self._folder.name) / "at-work"
        self._marks.mkdir()
        self._kernel: Any = None
        self._stirred, self._patience = 0.0, _STARTING

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
        except Exception:  # Parsl raises nothing narrower
            log.debug("Parsl did not start", exc_info=True)
            try:
                self._kernel = self._started()
            except Exception as error:
                raise surroundings(error, self._folder.name) or TryAgainError(
                    f"the worker processes did not start, twice ({error}): the machine was asleep or is very busy; "
                    "nothing that was recorded is lost, run again, perhaps with fewer --workers"
                ) from None
        self._stirred, self._patience = time.monotonic(), _STARTING

    def _started(self) -> Any:
        from parsl import Config, DataFlowKernel, HighThroughputExecutor
        from parsl.providers import LocalProvider

        logging.getLogger("parsl").setLevel(logging.CRITICAL)
        # Parsl starts its own programs by name
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        executor = HighThroughputExecutor(
            label="workers",
            address="127.0.0.1",
            loopback_address="127.0.0.1",
            max_workers_per_node=self.workers,
            heartbeat_period=1,
            heartbeat_threshold=5,
            block_error_handler=False,
            interchange_launch_cmd=[
                sys.executable,
                "-m",
                "neurokube.engines.interchange",
                str(os.getpid()),
                self._folder.name,
            ],
            provider=LocalProvider(
                init_blocks=1,
                min_blocks=1,
                max_blocks=1,
                worker_init="export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1",
            ),
        )
        config = Config(
            executors=[executor],
            run_dir=self._folder.name,
            strategy="simple",
            strategy_period=0.2,
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

    def _stalled(self, *, moved: bool) -> bool:
        """Whether no living process has worked on a batch for so long that none ever will.

        Parsl's workers share locks: one that is killed while it holds one, idle, holds up the others for ever.
        """
        if moved or any(lives(int(mark.name)) for mark in self._marks.iterdir()):
            self._stirred, self._patience = time.monotonic(), _STALLED
        return time.monotonic() - self._stirred > self._patience

    def drain(self) -> None:
        """Let running batches end after their block, start no other."""
        self._stop.touch()

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Keep every worker busy with batches, see `Engine.execute`."""
        from parsl import python_app

        app = python_app(_tended, data_flow_kernel=self._kernel)
        self._stirred = time.monotonic()
        waiting = iter(batches)
        again: deque[tuple[Batch, int]] = deque()
        running: dict[Future[Report], tuple[Batch, int]] = {}
        losses = 0
        while True:
            # a few batches ahead, so that no worker waits for the driver
            while len(running) < 2 * self.workers and not self._stop.exists():
                entry = again.popleft() if again else next(((b, 0) for b in waiting), None)
                if entry is None:
                    break
                future = app(os.getpid(), str(self._marks), work, run_url, step_name, entry[0], str(self._stop))
                running[future] = entry
            if not running:
                return
            at_work = min(len(running), self.workers)
            self.observer.working(step_name, at_work, len(running) - at_work)
            ended, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
            if not ended:
                yield None
            if self._stalled(moved=bool(ended)):
                losses += 1
                self._start_anew()
                app = python_app(_tended, data_flow_kernel=self._kernel)
                again.extend(running.values())
                running.clear()
            for future in ended:
                batch, lost = running.pop(future)
                error = future.exception()
                if error is None:
                    losses = 0
                    yield Outcome(batch, future.result())
                    continue
                if not _is_loss(error):
                    raise error
                losses += 1
                self.observer.happened(step_name, "death")
                if losses >= _LOSSES:
                    raise NeuroKubeError(
                        f"{step_name}: {losses} workers in a row died before they finished a batch ({error}); "
                        "if memory ran out, use fewer --workers or a smaller block, then run again"
                    )
                parts = batch.halves()
                if len(parts) == 1 and lost + 1 >= attempts:
                    yield Outcome(
                        batch, None, f"its worker died {counted(lost + 1, 'time')} (killed, or out of memory)"
                    )
                else:
                    again.extend((part, lost + 1 if len(parts) == 1 else 0) for part in parts)


def _tended(driver: int, marks: str, work: Work, run_url: str, step_name: str, batch: Batch, stop: str) -> Report:
    """Run the worker function, marked as at work, in a process that ends with its driver and with its pool."""
    _hold_on_to(driver, os.getppid())
    mark = Path(marks, str(os.getpid()))
    mark.touch()
    try:
        return work(run_url, step_name, batch, stop)
    finally:
        mark.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _hold_on_to(*processes: int) -> None:
    for pid in processes:
        leave_with(pid)


def _is_loss(error: BaseException) -> bool:
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return isinstance(error, WorkerLost | ManagerLost)
