"""The Kubernetes engine: one Indexed Job a step, whose pods come and go.

An index is a batch of blocks.  Which, an object of the run says (`<stage>/jobs/<job>.json`), so that a pod needs
nothing but the run's address, and a driver that starts anew takes up the Job that an earlier one left.  The engine
looks at Jobs by listing them again and again, never by a watch that could end.  What becomes of an index:

    succeeded                                  its blocks are recorded
    evicted, preempted, its node gone          the Job starts it again, for nothing (podFailurePolicy)
    killed for memory, or evicted over disk    again, in a new Job, with twice as much, to a ceiling
    held back by its limit of processor time   the same
    on a node that no longer answers           again, in a new Job, when nothing but such pods is left
    failed with blocks that fail               they are in quarantine; the other blocks of it are recorded
    failed by its surroundings (exit 75)       the Job tries twice more, then the run ends with 75
    ended otherwise                            again, in a new Job, in halves: a block that kills its pod is found
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Self, TypeVar

import yaml

from ..errors import ConfigurationError, NeuroKubeError, TryAgainError
from ..volumes import Store
from .base import Batch, Engine, Outcome, Work, run_id
from .cluster import Api, Lease, Profile, RealApi, Refused, Request
from .cluster.api import VERBS
from .cluster.control import lease_name
from .cluster.errand import run_errand
from .cluster.jobs import Fate, Round, StepJobs
from .cluster.manifest import ADDRESS, PLANNING, RUN, STAGE, STEP, job_name, label

T = TypeVar("T")

_INTERVAL = 5.0
"""Seconds between looks at a Job."""

_PATIENCE = 600.0
"""Seconds for which a cluster that does not answer is asked again."""


class Kubernetes(Engine):
    """Indexed Jobs in a namespace of a cluster, by a profile."""

    kind = "kubernetes"
    overlaps = True

    lease: Lease | None = None

    def __init__(
        self,
        profile: Profile,
        api: Api | None = None,
        *,
        interval: float = _INTERVAL,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.profile = profile
        self.workers = profile.parallelism
        self._connect: Callable[[], Api] = partial(RealApi, profile) if api is None else lambda: api
        self._api: Any = None
        self.interval, self.clock, self.sleep = interval, clock, sleep
        self.stopping = False
        # a driver in the cluster that has to go leaves its Jobs at work for the next
        self._hands_over = "NEUROKUBE_DRIVER" in os.environ
        self.remark_after = 0.0

    def __enter__(self) -> Self:
        """Connect, and check what the user may do.

        Raises:
            ConfigurationError: where there is no cluster, or a right is missing.
        """
        self._api = self._connect()
        try:
            lacking = [
                f"{verb} {resource}" for verb, group, resource in VERBS if not self._api.may(verb, group, resource)
            ]
        except Refused as refused:
            raise ConfigurationError(f"{refused}; check the cluster, the context and your credentials") from None
        if lacking:
            raise ConfigurationError(
                f"namespace '{self.profile.namespace}': you may not {', '.join(lacking)}; ask for a Role that lets you"
            )
        return self

    @contextmanager
    def hold(self, run_url: str) -> Iterator[None]:
        """Hold a Lease on the run, and note on which cluster it is at work.

        Raises:
            TryAgainError: where another driver has it.
        """
        try:
            with Lease(self._api, lease_name(run_url), {RUN: run_id(run_url)}, sleep=self.sleep) as self.lease:
                Store(run_url).write_json("cluster.json", self.profile.model_dump(mode="json", exclude_unset=True))
                yield
        except Refused as refused:
            raise TryAgainError(f"{refused}; run again to go on") from None
        finally:
            self.lease = None

    @property
    def api(self) -> Api:
        """The cluster; the engine was entered."""
        return self._api  # type: ignore[no-any-return]

    def settle(self, run_url: str, stage: str, task: Any) -> Any:
        """Have a stage settled by a pod that gets what its workers get, see `workflow.run.Errand`; it was entered."""
        profile, store, step = self.profile.of(stage), Store(run_url), f"{stage}/settle"
        name = job_name(run_url, step)
        labels = {RUN: run_id(run_url), STAGE: label(stage), STEP: "settle"}
        annotations, command = {ADDRESS: run_url, STEP: step}, ("neurokube", "settle", run_url, stage, "--job", name)
        store.write_json(f"{PLANNING}{name}.json", task)
        request = Request(name, run_url, step, labels, annotations, 1, profile.resources, command=command)
        try:
            run_errand(self.api, profile, request, clock=self.clock, sleep=self.sleep, stop=lambda: self.stopping)
        except Refused as refused:
            raise TryAgainError(f"{step}: {refused}; run again to go on") from None
        finally:
            store.delete(f"{PLANNING}{name}.json")
        answer = store.read_json(f"{PLANNING}{name}.answer.json")
        if answer is None:
            raise ConfigurationError(
                f"{step}: its pod left nothing in {run_url}: pods and this machine must reach the workspace by one "
                "path or URL; see 'volumes' in the profile"
            )
        store.delete(f"{PLANNING}{name}.answer.json")
        return answer

    def batches(self, remaining: Sequence[int]) -> Iterator[Batch]:
        """Yield as many nearly equal batches as a Job may have indexes, that hold all the remaining blocks."""
        count = min(len(remaining), self.profile.indexes)
        for k in range(count):
            part = Batch.share(k, count, len(remaining))
            yield Batch(remaining[part.first], remaining[part.last - 1] + 1)

    def manifest(self, run_url: str, step: str, blocks: int) -> str:
        """Return the Job of a step as YAML, as it is for a run that has not begun."""
        jobs = StepJobs(self, run_url, step)
        return yaml.safe_dump(jobs.manifest("nk-dry-run", min(blocks, self.profile.indexes), jobs.profile.resources))

    def drain(self) -> None:
        """Ask the pods to stop after the block at hand; may be called from a signal handler."""
        self.stopping = True

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Run batches as the indexes of Jobs, see `Engine.execute`; pods run `neurokube work`, whatever `work` is."""
        job = StepJobs(self, run_url, step_name)
        try:
            waiting = job.taken_up()
            taken = [batch for current in waiting for batch in current.batches]
            if left := _without(batches, taken):
                waiting.append(Round(tuple(left), job.resources()))
            while waiting and not self.stopping:
                fates: list[Fate] = []
                current = waiting.pop(0)
                yield from job.run(current, fates)
                waiting += yield from job.again(current, fates, attempts)
        except Refused as refused:
            kind = TryAgainError if refused.passing else NeuroKubeError
            raise kind(f"{step_name}: {refused}; what is recorded is kept, run again to go on") from None
        finally:
            if not self.leaves:
                # of a cluster that does not answer the next driver takes up what is left
                with suppress(Refused):
                    job.clean_up()

    def ask(self, call: Callable[..., T], *arguments: Any) -> T:
        """Ask the cluster, and again for a while where it does not answer or is busy."""
        began = self.clock()
        while True:
            try:
                return call(*arguments)
            except Refused as refused:
                if not refused.passing or self.stopping or self.clock() - began > _PATIENCE:
                    raise
            self.sleep(self.interval)

    @property
    def leaves(self) -> bool:
        """Whether Jobs are to be left as they are: for the next driver, or because another has the run."""
        return (self.stopping and self._hands_over) or (self.lease is not None and self.lease.lost())


def _without(batches: Iterable[Batch], taken: Iterable[Batch]) -> list[Batch]:
    """Return what of ranges of blocks is in none of others."""
    left = list(batches)
    for other in taken:
        parts = [(Batch(b.first, min(b.last, other.first)), Batch(max(b.first, other.last), b.last)) for b in left]
        left = [part for pair in parts for part in pair if part.first < part.last]
    return left
