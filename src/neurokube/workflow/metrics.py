"""Metrics of a run for Prometheus.

What the ledger knows is read from it, so that a driver that starts again goes on where the last one ended; what only a
driver sees (evictions, deaths, escalations, pods) it counts from its own start, as Prometheus expects of a counter.
docs/observation.md has the table.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..engines.base import run_id
from ..engines.observer import Mishap, Observer, Pod
from ..errors import NeuroKubeError
from ..progress import log
from .ledger import Record
from .plan import PlannedStep
from .run import Run

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)
"""Upper bounds of the histogram of seconds a block."""

_INTERVAL = 5.0
"""Seconds between two looks at the ledger."""

_LABELS = ("run", "stage", "step")

_LEDGER_GAUGES = {
    "done": ("neurokube_blocks_done", "Blocks that have their record."),
    "failed": ("neurokube_blocks_failed", "Blocks in quarantine."),
    "peak_memory": ("neurokube_peak_memory_bytes", "The most memory that a worker of the step has had."),
}
_LEDGER_COUNTERS = {
    "voxels": ("neurokube_voxels_done", "Voxels of the blocks that are done."),
    "bytes": ("neurokube_written_bytes", "Bytes that were stored."),
    "attempts": ("neurokube_attempts", "Attempts at the blocks that are done."),
}
"""What a tally holds; to a counter's name Prometheus adds `_total`."""

_HELD = {
    "cpu": ("neurokube_requested_cpu_cores", "Cores that running pods ask for."),
    "memory": ("neurokube_requested_memory_bytes", "Memory that running pods ask for."),
    "gpus": ("neurokube_requested_gpus", "GPUs that running pods ask for."),
}
_MISHAPS = {
    "eviction": ("neurokube_evictions", "Pods that had to go."),
    "death": ("neurokube_deaths", "Pods or processes that died."),
}
_ESCALATIONS = ("memory", "storage", "cpu")


@dataclass
class _Totals:
    """What the ledger says of a step in all."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    voxels: int = 0
    bytes: int = 0
    attempts: int = 0
    peak_memory: int = 0

    def add(self, record: Record, voxels: int) -> None:
        """Count a block in."""
        self.seconds += record.seconds
        self.buckets[bisect_left(SECONDS, record.seconds)] += 1
        self.voxels += voxels
        self.bytes += record.bytes
        self.attempts += record.attempt
        self.peak_memory = max(self.peak_memory, record.peak_memory)


class _Tally:
    """Reads a step's ledger piece by piece; a block counts once, however often it was done."""

    def __init__(self, run: Run, step: PlannedStep) -> None:
        self.blocks = len(step.blocks)
        self.totals: _Totals | None = None
        """As they were after the last look, which may take a while; None before the first."""
        self._run, self._step = run, step
        self._lock = threading.Lock()
        self._sums = _Totals()
        self._ledger = run.ledger(step)
        self._known: set[str] = set()
        self._counted: dict[str, NDArray[np.bool_]] = {}

    def begin(self) -> None:
        """Forget which blocks are done: the driver may have taken back records of what was lost."""
        with self._lock:
            self._ledger = self._run.ledger(self._step)

    def look(self) -> None:
        """Read what is new."""
        with self._lock:
            for blocks, record in self._ledger.records(self._known):
                counted = self._counted.setdefault(str(blocks), np.zeros(len(blocks), bool))
                if not counted[record.block]:
                    counted[record.block] = True
                    self._sums.add(record, blocks.box(record.block).size)
            self._sums.done = self._ledger.count()
            self._sums.failed = len(self._run.at(self._step.planned).keys(f"{self._step.quarantine}/"))
            self.totals = replace(self._sums, buckets=list(self._sums.buckets))


@dataclass
class _Seen:
    """What the driver sees of a step."""

    active: bool = False
    running: int = 0
    waiting: int = 0
    pods: tuple[Pod, ...] = ()
    mishaps: Counter[str] = field(default_factory=Counter)


class Metrics(Observer):
    """The metrics of a run; a context manager that reads the ledger in the background.

    `collect` gives them in the form that prometheus_client's registries take.
    """

    watches_pods = True

    def __init__(self, run: Run, engine: str, *, interval: float = _INTERVAL) -> None:
        self._run, self._engine, self._interval = run, engine, interval
        self._id = run_id(run.url)
        self.name = f"{run.url.rstrip('/').rpartition('/')[2]}-{self._id[:6]}"
        """The label `run`: the folder's name, and what tells it from others of that name."""
        self._tallies = {name: _Tally(run, step) for name, step in run.plan.steps.items()}
        self._lock = threading.Lock()
        self._seen: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to read."""
        self._over.set()
        self._reader.join()

    # what is told

    @contextmanager
    def at_work(self, step: str) -> Iterator[None]:
        """Surround the work on a step: meanwhile its ledger is read again and again."""
        self._tallies[step].begin()
        with self._lock:
            self._seen[step].active = True
        try:
            yield
        finally:
            self._look(step)
            with self._lock:
                self._seen[step] = _Seen(mishaps=self._seen[step].mishaps)

    def working(self, step: str, running: int, waiting: int = 0) -> None:
        """Note how many pods or processes of a step run, and how many batches or pods wait for a place."""
        with self._lock:
            self._seen[step].running, self._seen[step].waiting = running, waiting

    def pods(self, step: str, pods: Sequence[Pod]) -> None:
        """Note the pods of a step: all that have not ended."""
        with self._lock:
            self._seen[step].pods = tuple(pods)

    def happened(self, step: str, what: Mishap, number: int = 1) -> None:
        """Note mishaps of a step."""
        with self._lock:
            self._seen[step].mishaps[what] += number

    # what is read

    def _read(self) -> None:
        for step in self._tallies:
            if self._over.is_set():
                return
            self._look(step)
        pause = self._interval
        while not self._over.wait(pause):
            began = time.monotonic()
            with self._lock:
                active = [name for name, seen in self._seen.items() if seen.active]
            for step in active:
                self._look(step)
            # the more records, the longer a look takes: it may not become what the driver does
            pause = max(self._interval, 20 * (time.monotonic() - began))

    def _look(self, step: str) -> None:
        try:
            self._tallies[step].look()
        except (NeuroKubeError, OSError, ValueError) as error:
            # the driver meets the same fault, and is the one to judge it
            log.debug("metrics of %s: %s", step, error)

    # what is shown

    def collect(self) -> Iterator["Metric"]:
        """Yield all metrics as they are now; a step's totals only once its ledger has been read."""
        from prometheus_client.core import GaugeMetricFamily

        told = [self.name, self._id, self._run.url, self._engine, __version__]
        text = "The run of this driver; id is the label neurokube.io/run of its Jobs and pods."
        info = GaugeMetricFamily("neurokube_run_info", text, labels=["run", "id", "url", "engine", "version"])
        info.add_metric(told, 1)
        yield info
        steps = {name: [self.name, *name.split("/", 1)] for name in self._tallies}
        yield from self._recorded(steps)
        with self._lock:
            seen = [(labels, self._seen[name]) for name, labels in steps.items()]
            shown = list(_driven(seen))
        yield from shown

    def _recorded(self, steps: dict[str, list[str]]) -> Iterator["Metric"]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        blocks = GaugeMetricFamily("neurokube_blocks", "Blocks of the step in all.", labels=_LABELS)
        families: dict[str, Any] = {
            what: GaugeMetricFamily(*told, labels=_LABELS) for what, told in _LEDGER_GAUGES.items()
        }
        families |= {what: CounterMetricFamily(*told, labels=_LABELS) for what, told in _LEDGER_COUNTERS.items()}
        text = "Seconds of work on a block: its last attempt."
        seconds = HistogramMetricFamily("neurokube_block_seconds", text, labels=_LABELS)
        bounds = [*map(str, SECONDS), "+Inf"]
        for name, tally in self._tallies.items():
            blocks.add_metric(steps[name], tally.blocks)
            if (totals := tally.totals) is None:
                continue
            for what, family in families.items():
                family.add_metric(steps[name], getattr(totals, what))
            buckets = list(zip(bounds, accumulate(totals.buckets), strict=True))
            seconds.add_metric(steps[name], buckets, totals.seconds)
        yield from [blocks, *families.values(), seconds]


def _driven(steps: list[tuple[list[str], _Seen]]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    active = GaugeMetricFamily("neurokube_step_active", "1 while the step is worked on, else 0.", labels=_LABELS)
    text = "Pods, or on one machine processes, that run, and pods or batches that wait for a place."
    workers = GaugeMetricFamily("neurokube_workers", text, labels=[*_LABELS, "state"])
    held = {what: GaugeMetricFamily(*told, labels=_LABELS) for what, told in _HELD.items()}
    mishaps = {what: CounterMetricFamily(*told, labels=_LABELS) for what, told in _MISHAPS.items()}
    text = "Batches that run again with more of a resource."
    escalations = CounterMetricFamily("neurokube_escalations", text, labels=[*_LABELS, "resource"])
    text = "A pod of the step that has not ended, and its node."
    pods = GaugeMetricFamily("neurokube_pod_info", text, labels=[*_LABELS, "pod", "node"])
    for labels, seen in steps:
        active.add_metric(labels, seen.active)
        workers.add_metric([*labels, "running"], seen.running)
        workers.add_metric([*labels, "waiting"], seen.waiting)
        for what, family in held.items():
            family.add_metric(labels, sum(getattr(pod, what) for pod in seen.pods if pod.running))
        for what, counter in mishaps.items():
            counter.add_metric(labels, seen.mishaps[what])
        for what in _ESCALATIONS:
            escalations.add_metric([*labels, what], seen.mishaps[what])
        for pod in seen.pods:
            pods.add_metric([*labels, pod.name, pod.node], 1)
    yield from [active, workers, *held.values(), *mishaps.values(), escalations, pods]
