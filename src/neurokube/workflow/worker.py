"""The worker: the one function between stages and engines."""

import socket
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ..allocator import peak_memory, share_heaps
from ..engines.base import Batch, Report
from ..errors import TryAgainError, surroundings
from ..stages import Block, Data
from ..volumes import Store
from ..volumes.scratch import staging
from .ledger import Record, Writer
from .plan import PlannedStep
from .run import Run

RECORD_INTERVAL = 30.0
"""Seconds of work that a kill may cost, on any store; in a local folder records are cheap and come sooner."""
LOCAL_RECORD_INTERVAL = 1.0


def work(run_url: str, step_name: str, batch: Batch, stop: Callable[[], bool] | str | None = None) -> Report:
    """Work through a batch: for each block without a record read, compute, write, then record.

    A block that fails is tried again, up to the workflow's number of attempts, then quarantined with its
    error; the others go on.  `stop`, a function or the path of a file that appears, asks the worker to
    stop after the block at hand.

    Raises:
        TryAgainError: where the store fails (disk full, read-only); what was recorded stays.
        ConfigurationError: where this worker's software is not what the run was planned with.
    """
    run, step, data = opened(run_url, step_name)
    asked = _asked(stop)
    ledger = run.ledger(step)
    interval = RECORD_INTERVAL if "://" in step.planned.url else LOCAL_RECORD_INTERVAL
    done, failed, drained = 0, [], False
    with staging() as scratch:
        data.scratch = scratch
        writer = ledger.writer(batch, interval, data.settle)
        try:
            for block in ledger.remaining(batch):
                if drained := asked():
                    break
                if _one_block(run, step, data, block, writer):
                    done += 1
                else:
                    failed.append(block)
        finally:
            try:
                writer.close()
            finally:
                data.scratch = None
    return Report(done, tuple(failed), drained)


def _one_block(run: Run, step: PlannedStep, data: Data, block: int, writer: Writer) -> bool:
    cells = tuple(step.blocks.members(block))
    attempts = run.workflow.failures.attempts
    for attempt in range(1, attempts + 1):
        started = time.monotonic()
        before = data.bytes_written
        try:
            step.step.compute(Block(step.blocks.box(block), cells), data)
            checksums = data.checksums(step.step.objects(cells))
        except TryAgainError:
            raise
        except Exception as error:
            if fault := surroundings(error, step.planned.url):
                raise fault from None
            # what it read as zeros may have been a store that is gone
            writer.settle()
            if attempt == attempts:
                run.quarantine(step, block, str(error) or repr(error), traceback.format_exc(), attempts)
        else:
            run.release(step, block)
            writer.add(
                Record(
                    block=block,
                    seconds=round(time.monotonic() - started, 4),
                    host=_host(),
                    attempt=attempt,
                    bytes=data.bytes_written - before,
                    peak_memory=peak_memory(),
                    checksums=checksums,
                )
            )
            return True
    return False


@lru_cache(maxsize=1)
def _host() -> str:
    return socket.gethostname()


def opened(run_url: str, step_name: str) -> tuple[Run, PlannedStep, Data]:
    """Open a step of a run, once for all its batches, and check that this process may work on it.

    Raises:
        ConfigurationError: where this worker's software is not what the run was planned with.
    """
    return _opened(run_url, step_name, _stamp(run_url))


@lru_cache(maxsize=4)
def _opened(run_url: str, step_name: str, stamp: str) -> tuple[Run, PlannedStep, Data]:
    """Open a run once for all its batches; `stamp` tells runs apart that were planned anew."""
    share_heaps()
    run = Run.open(run_url)
    run.check_worker()
    step = run.plan.step(step_name)
    step.planned.stage.check_worker()
    data = step.planned.data()
    data.settles = True
    return run, step, data


def _stamp(run_url: str) -> str:
    return (Store(run_url).read("run.json") or b"").decode()


def _asked(stop: Callable[[], bool] | str | None) -> Callable[[], bool]:
    if stop is None:
        return lambda: False
    return Path(stop).exists if isinstance(stop, str) else stop
