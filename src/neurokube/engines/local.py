"""The local engine: worker processes on this machine."""

import os
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from .base import Batch, Report, Work
from .lifeline import lives
from .pool import Pool, hold_on_to


class Local(Pool):
    """`workers` processes on this machine, each with one thread."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, tempfile.TemporaryDirectory(prefix="neurokube-", ignore_cleanup_errors=True))

    def _executor(self, interchange: list[str]) -> Any:
        from parsl import HighThroughputExecutor
        from parsl.providers import LocalProvider

        return HighThroughputExecutor(
            label="workers",
            address="127.0.0.1",
            loopback_address="127.0.0.1",
            max_workers_per_node=self.workers,
            heartbeat_period=1,
            heartbeat_threshold=5,
            block_error_handler=False,
            interchange_launch_cmd=interchange,
            provider=LocalProvider(
                init_blocks=1,
                min_blocks=1,
                max_blocks=1,
                worker_init="export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1",
            ),
        )

    def _app(self) -> Any:
        return _tended

    def _submit(self, app: Any, work: Work, run_url: str, step_name: str, batch: Batch) -> Future[Report]:
        future: Future[Report] = app(os.getpid(), str(self._marks), work, run_url, step_name, batch, str(self._stop))
        return future

    def _at_work(self) -> bool:
        return any(lives(int(mark.name)) for mark in self._marks.iterdir())


def _tended(driver: int, marks: str, work: Work, run_url: str, step_name: str, batch: Batch, stop: str) -> Report:
    """Run the worker function, marked as at work, in a process that ends with its driver and with its pool."""
    hold_on_to(driver, os.getppid())
    mark = Path(marks, str(os.getpid()))
    mark.touch()
    try:
        return work(run_url, step_name, batch, stop)
    finally:
        mark.unlink(missing_ok=True)
