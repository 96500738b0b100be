import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from neurokube.engines import Batch, Report, local
from neurokube.errors import TryAgainError


def count(run_url, step_name, batch, stop):
    """Stand in for the worker function."""
    return Report(batch.last - batch.first)


def idle_workers() -> list[psutil.Process]:
    folder = os.environ["NEUROKUBE_TEST_FOLDER"]
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get("NEUROKUBE_TEST_FOLDER") == folder
                and "--multiprocessing-fork" in process.cmdline()
            ):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda p: p.create_time())[1:]  # the first keeps what the others share


def test_workers_killed_while_idle_do_not_hold_up_those_that_follow(monkeypatch, tmp_path):
    """An idle worker of Parsl holds the lock of the queue that all wait at, and takes it to its grave."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("NEUROKUBE_TEST_FOLDER", str(tmp_path))
    monkeypatch.setattr(local.Local, "stalled", 2.0)
    batches = [Batch(0, 4), Batch(4, 8)]
    with local.Local(2) as engine:
        assert sum(o.report.done for o in engine.execute(count, "", "", batches, 2) if o) == 8
        victims = idle_workers()
        assert len(victims) == 2
        for process in victims:
            process.kill()
        outcomes = [o for o in engine.execute(count, "", "", batches, 2) if o]
    assert sorted(o.batch.first for o in outcomes) == [0, 4]
    assert sum(o.report.done for o in outcomes) == 8


@pytest.fixture
def sleepy(monkeypatch):
    """Return what makes Parsl not come up so many times, as on a machine that is asleep."""
    from parsl import HighThroughputExecutor

    begin = HighThroughputExecutor._start_local_interchange_process

    def make(times: int) -> None:
        failures = iter(range(times))

        def start(executor):
            if next(failures, None) is not None:
                raise Exception("Interchange failed to start")
            begin(executor)

        monkeypatch.setattr(HighThroughputExecutor, "_start_local_interchange_process", start)

    return make


def test_workers_that_do_not_come_up_are_started_once_more(monkeypatch, sleepy):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    sleepy(1)
    with local.Local(1) as engine:
        assert sum(o.report.done for o in engine.execute(count, "", "", [Batch(0, 4)], 2) if o) == 4


def test_workers_that_never_come_up_are_to_be_tried_again_later(sleepy):
    sleepy(2)
    with pytest.raises(TryAgainError, match=r"did not start, twice \(Interchange failed to start\)"), local.Local(1):
        pass
    # the same when they are started anew in the middle
    sleepy(0)
    with pytest.raises(TryAgainError, match="run again"), local.Local(1) as engine:
        sleepy(2)
        engine._start_anew()


def test_a_worker_begins_without_what_only_some_stages_need():
    heavy = ("scipy", "torch", "sklearn", "parsl", "neurokube.evaluation")
    code = f"import neurokube.workflow.worker, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
