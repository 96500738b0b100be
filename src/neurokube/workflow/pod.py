"""What a pod, or a person in its place, runs: a share of a step's blocks, to the end or until it is asked to stop."""

import json
import os
import signal
import sys
import threading
from typing import Any

from ..engines.base import Batch
from ..errors import ConfigurationError, Drained, NeuroKubeError, Starved
from ..volumes import Store
from .pulse import Pulse, quota
from .stores import place_of
from .worker import work

STARVES = "NEUROKUBE_STARVES"
"""Set where a pod that lacks processor time shall stop, as the next may get more."""


def work_share(run: str, step: str, share: Batch, pulse: Pulse | None = None) -> None:
    """Work through blocks and print what became of them; SIGTERM or Ctrl-C ends it after a block.

    Raises:
        Drained: where it was asked to stop.
        Starved: where the pulse says that it lacked processor time, and there is more to be had.
        NeuroKubeError: where blocks failed, besides what `work` raises.
    """
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())

    def stop() -> bool:
        """Called before each block."""
        if pulse is None:
            return asked.is_set()
        pulse.next()
        return asked.is_set() or (STARVES in os.environ and pulse.starved())

    report = work(run, step, share, stop)
    told: dict[str, Any] = {"done": report.done, "failed": report.failed, "drained": report.drained}
    starved = report.drained and not asked.is_set() and pulse is not None
    if starved and pulse is not None:
        told |= {"held_back": round(pulse.held_back, 3), "quota": quota()}
    print(json.dumps(told), flush=True)
    if starved:
        raise Starved("held back by its limit of processor time; what was done is recorded")
    if report.drained:
        raise Drained("asked to stop; what was done is recorded")
    if report.failed:
        raise NeuroKubeError(f"{step}: {len(report.failed)} blocks failed: {report.failed}; see the quarantine folder")


_REMEDY = (
    "pods must reach it as the driver does: see 'volumes' in the profile, or for S3 'env' (its endpoint) and 'secrets' "
    "or 'service_account' (its keys)"
)


def share_of(run: str, step: str, job: str) -> tuple[Store, Batch]:
    """Return the stage's folder, and the batch of the index that this pod is, by what the driver wrote for its Job.

    Raises:
        ConfigurationError: where the pod does not find what the driver sees, or this is no such pod.
    """
    document = Store(run).read_json("run.json")
    if document is None:
        raise ConfigurationError(f"{run}: no run.json that this pod could find; {_REMEDY}")
    store = Store(place_of(document, run, step.partition("/")[0]))
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    told = store.read_json(f"jobs/{job}.json")
    if told is None and index:
        raise ConfigurationError(f"{store.url}: nothing of Job '{job}' that this pod could find; {_REMEDY}")
    if told is None or told["step"] != step or not index.isdecimal() or int(index) >= len(told["batches"]):
        raise ConfigurationError(f"{run}: Job '{job}' has no index '{index}' of {step}; leave --job to pods")
    for mark in told.get("marks", ()):
        folder, _, key = mark.rpartition("/")
        if Store(folder).read(key) is None:
            raise ConfigurationError(f"{folder}: nothing that this pod could find, though {step} reads it; {_REMEDY}")
    return store, Batch.parse(told["batches"][int(index)])


def main(run: str, step: str, job: str) -> int:
    """Do what `neurokube work RUN STEP --job JOB` does; return the code to exit with."""
    try:
        index = os.environ.get("JOB_COMPLETION_INDEX", "")
        store, share = share_of(run, step, job)
        with Pulse(store, f"jobs/{job}/{index}.json") as pulse:
            work_share(run, step, share, pulse)
    except NeuroKubeError as error:
        print(f"neurokube: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if os.environ.get("NEUROKUBE_DEBUG"):
            raise
        print(f"neurokube: a bug: {type(error).__name__}: {error}; set NEUROKUBE_DEBUG=1 to see where", file=sys.stderr)
        return 1
    return 0
