"""The Kubernetes engine: one Indexed Job a step, whose pods come and go.

An index is a batch of blocks.  Which, an object of the run says (`<stage>/jobs/<job>.json`), so that a pod needs
nothing but the run's address, and a driver that starts anew takes up the Job that an earlier one left.  The engine
looks at Jobs by listing them again and again, never by a watch that could end.  What becomes of an index:

    succeeded                                  its blocks are recorded
    evicted, preempted, its node gone          the Job starts it again, for nothing (podFailurePolicy)
    killed for memory, or evicted over disk    again, in a new Job, with twice as much, to a ceiling
    on a node that no longer answers           again, in a new Job, when nothing but such pods is left
    failed with blocks that fail               they are in quarantine; the other blocks of it are recorded
    failed by its surroundings (exit 75)       the Job tries twice more, then the run ends with 75
    ended otherwise                            again, in a new Job, in halves: a block that kills its pod is found
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar
from uuid import uuid4

import yaml
from rich.markup import escape

from ..errors import ConfigurationError, NeuroKubeError, TryAgainError
from ..progress import console
from ..volumes import Store
from .base import Batch, Engine, Outcome, Report, Work
from .cluster import Api, Profile, RealApi, Refused, Request, Resources, job_manifest
from .cluster.api import VERBS, Manifest

T = TypeVar("T")

RUN, STAGE, STEP = (f"neurokube.io/{name}" for name in ("run", "stage", "step"))
"""Labels of Jobs and pods."""

_INTERVAL = 5.0
_STUCK = 60.0
"""Seconds without a pod at work after which it is looked into why: what no waiting helps ends the run."""
_PATIENCE = 600.0
"""Seconds for which a cluster that does not answer is asked again; and between two remarks on what pods wait for."""

_HOPELESS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
_HOLDING = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")


@dataclass(frozen=True)
class _Round:
    """A Job: batches that get the same, how often their pods died before, and its name if it is there already."""

    batches: tuple[Batch, ...]
    resources: Resources
    deaths: int = 0
    name: str = ""


@dataclass(frozen=True)
class _Fate:
    """How an index that failed ended: `cause` is memory, storage, blocks, surroundings, lost or death."""

    batch: Batch
    cause: str
    message: str
    failed: tuple[int, ...] = ()


class Kubernetes(Engine):
    """Indexed Jobs in a namespace of a cluster, by a profile."""

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
        self._interval, self._clock, self._sleep = interval, clock, sleep
        self._stop = False
        self._remark_after = 0.0

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

    def batches(self, remaining: Sequence[int]) -> Iterator[Batch]:
        """Yield as many nearly equal batches as a Job may have indexes, that hold all the remaining blocks."""
        count = min(len(remaining), self.profile.indexes)
        for k in range(count):
            part = Batch.share(k, count, len(remaining))
            yield Batch(remaining[part.first], remaining[part.last - 1] + 1)

    def manifest(self, run_url: str, step: str, blocks: int) -> str:
        """Return the Job of a step as YAML, as it is for a run that has not begun."""
        jobs = _StepJobs(self, run_url, step)
        return yaml.safe_dump(jobs.manifest("nk-dry-run", min(blocks, self.profile.indexes), jobs.profile.resources))

    def drain(self) -> None:
        """Ask the pods to stop after the block at hand; may be called from a signal handler."""
        self._stop = True

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        """Run batches as the indexes of Jobs, see `Engine.execute`; pods run `neurokube work`, whatever `work` is."""
        job = _StepJobs(self, run_url, step_name)
        try:
            waiting = job.taken_up()
            taken = [batch for current in waiting for batch in current.batches]
            if left := _without(batches, taken):
                waiting.append(_Round(tuple(left), job.resources()))
            while waiting and not self._stop:
                fates: list[_Fate] = []
                current = waiting.pop(0)
                yield from job.run(current, fates)
                waiting += yield from job.again(current, fates, attempts)
        except Refused as refused:
            raise NeuroKubeError(f"{step_name}: {refused}; what is recorded is kept, run again to go on") from None
        finally:
            # of a cluster that does not answer the next driver takes up what is left
            with suppress(Refused):
                job.clean_up()

    def ask(self, call: Callable[..., T], *arguments: Any) -> T:
        """Ask the cluster, and again for a while where it does not answer or is busy."""
        began = self._clock()
        while True:
            try:
                return call(*arguments)
            except Refused as refused:
                if not refused.passing or self._stop or self._clock() - began > _PATIENCE:
                    raise
            self._sleep(self._interval)


def batch_of(run_url: str, step: str, job: str) -> Batch:
    """Return the batch of the index that this pod is, by what the driver wrote for its Job.

    Raises:
        ConfigurationError: where this is no such pod, or the Job is of another run or step.
    """
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    told = Store(run_url).read_json(f"{step.partition('/')[0]}/jobs/{job}.json")
    if told is None or told["step"] != step or not index.isdecimal() or int(index) >= len(told["batches"]):
        raise ConfigurationError(f"{run_url}: Job '{job}' has no index '{index}' of {step}; leave --job to pods")
    return Batch.parse(told["batches"][int(index)])


class _StepJobs:
    """The Jobs of one step."""

    def __init__(self, engine: Kubernetes, run_url: str, step: str) -> None:
        self.engine, self.api, self.run_url, self.step = engine, engine._api, run_url, step
        self.stage, _, name = step.partition("/")
        self.store = Store(run_url)
        self.profile = engine.profile.of(self.stage)
        run = hashlib.sha256(run_url.encode()).hexdigest()[:12]
        self.labels = {RUN: run, STAGE: _label(self.stage), STEP: _label(name)}
        self.selector = ",".join(f"{k}={v}" for k, v in self.labels.items())

    # what a step needs, as found out before

    @property
    def _memory(self) -> str:
        return f"{self.stage}/jobs/{_label(self.step)}.resources.json"

    def resources(self) -> Resources:
        """Return what pods get to begin with: what the profile says, or what an earlier run found that they need."""
        found = self.store.read_json(self._memory)
        told = self.profile.resources
        return told if found is None else told.model_copy(update={k: found[k] for k in ("memory", "storage")})

    # a Job

    def run(self, current: _Round, fates: list[_Fate]) -> Iterator[Outcome | None]:
        """Create a Job, unless it is there, and follow it to its end; note how indexes failed."""
        name, batches = current.name or self._created(current), current.batches
        told: set[int] = set()
        began = moved = self.engine._clock()
        while True:
            job = self.engine.ask(self.api.job, name)
            if job is None:
                # somebody deleted it: what it had not done is done by the next
                fates += [_Fate(b, "lost", "its Job was deleted") for k, b in enumerate(batches) if k not in told]
                return
            status = job.get("status", {})
            ended = _end(job)
            for index in sorted(_indexes(status.get("completedIndexes", "")) - told):
                told.add(index)
                moved = self.engine._clock()
                yield Outcome(batches[index], Report(batches[index].last - batches[index].first))
            if ended is not None:
                break
            if self.engine._stop:
                self.api.delete_job(name)
                return
            if status.get("ready"):
                moved = self.engine._clock()
            elif self.engine._clock() - moved > _STUCK:
                pods = self._pods(name)
                if not told and not status.get("failed") and (why := self._hopeless(name, pods)):
                    raise NeuroKubeError(f"{self.step}: {why}; no Job is left behind, run again to go on")
                going = [pod for pod in pods if not _ended(pod)]
                if going and all(pod["metadata"].get("deletionTimestamp") for pod in going):
                    # the Job waits for the end of each, which nobody will tell
                    fates += [_Fate(b, "lost", "its node is gone") for k, b in enumerate(batches) if k not in told]
                    self.engine.ask(self.api.delete_job, name)
                    return
                self._remark(self._awaited(job, pods))
            yield None
            # short Jobs are looked at often: there are many steps, and most have few blocks
            self.engine._sleep(min(self.engine._interval, 0.5 + 0.1 * (self.engine._clock() - began)))
        left = [index for index in range(len(batches)) if index not in told]
        if left:
            fates += self._fates(name, batches, left, ended)
        self.engine.ask(self.api.delete_job, name)

    def again(
        self, current: _Round, fates: list[_Fate], attempts: int
    ) -> Generator[Outcome | None, None, list[_Round]]:
        """Yield what becomes of indexes that failed for good; return the rounds that the others get."""
        rounds: dict[tuple[Resources, int], list[Batch]] = {}
        for fate in fates:
            grown = self._grown(current.resources, fate.cause)
            if fate.cause == "surroundings":
                raise TryAgainError(f"{self.step}: {fate.message}")
            if fate.cause == "blocks":
                yield Outcome(fate.batch, Report(fate.batch.last - fate.batch.first - len(fate.failed), fate.failed))
            elif grown is not None:
                rounds.setdefault((grown, current.deaths), []).append(fate.batch)
            elif fate.cause == "lost":
                rounds.setdefault((current.resources, current.deaths), []).append(fate.batch)
            elif len(parts := fate.batch.halves()) > 1:
                rounds.setdefault((current.resources, 0), []).extend(parts)
            elif current.deaths + 1 < attempts:
                rounds.setdefault((current.resources, current.deaths + 1), []).append(fate.batch)
            else:
                yield Outcome(fate.batch, None, f"its pod died {current.deaths + 1} times: {fate.message}")
        return [_Round(tuple(batches), resources, deaths) for (resources, deaths), batches in rounds.items()]

    def _grown(self, now: Resources, cause: str) -> Resources | None:
        if cause not in ("memory", "storage"):
            return None
        grown = now.doubled(cause, getattr(self.profile.ceiling, cause))
        if grown is not None:
            self.store.write_json(self._memory, {"memory": grown.memory, "storage": grown.storage})
        return grown

    def taken_up(self) -> list[_Round]:
        """Return the Jobs of this step that an earlier driver left at work; delete others."""
        found = []
        for job in self.engine.ask(self.api.jobs, self.selector):
            name = job["metadata"]["name"]
            told = self.store.read_json(f"{self.stage}/jobs/{name}.json")
            going_on = not job["metadata"].get("deletionTimestamp") and _end(job) is None
            if told is not None and going_on:
                batches = tuple(Batch.parse(text) for text in told["batches"])
                found.append(_Round(batches, Resources.model_validate(told["resources"]), told["deaths"], name))
            else:
                self.engine.ask(self.api.delete_job, name)
        return found

    def _created(self, current: _Round) -> str:
        name = f"nk-{self.labels[RUN][:6]}-{_label(self.step)[:30].strip('-')}-{uuid4().hex[:6]}"
        manifest = self.manifest(name, len(current.batches), current.resources)
        told = {"step": self.step, "resources": current.resources.model_dump(), "deaths": current.deaths}
        self.store.write_json(f"{self.stage}/jobs/{name}.json", {**told, "batches": [*map(str, current.batches)]})
        try:
            self.engine.ask(self.api.create_job, manifest)
        except Refused as refused:
            if refused.status == 409:
                # it was created, and the answer was lost
                return name
            if refused.status in (400, 403, 404, 422):
                raise ConfigurationError(f"{self.step}: {refused}; correct the profile") from None
            raise
        return name

    def manifest(self, name: str, indexes: int, resources: Resources) -> Manifest:
        """Return a Job of this step."""
        annotations = {"neurokube.io/run-url": self.run_url}
        request = Request(name, self.run_url, self.step, self.labels, annotations, indexes, resources)
        return job_manifest(self.profile, request)

    def clean_up(self) -> None:
        """Leave no Job behind that is not at work for the next driver."""
        for job in self.api.jobs(self.selector):
            self.api.delete_job(job["metadata"]["name"])

    # what went wrong

    def _fates(self, name: str, batches: Sequence[Batch], left: list[int], ended: Manifest) -> list[_Fate]:
        pods = self._pods(name)
        if ended.get("reason") == "PodFailurePolicy":
            told = [_said(_worker(pod)) for pod in pods if _worker(pod).get("exitCode") in (64, 78)]
            raise ConfigurationError(f"{self.step}: {told[0] if told else ended.get('message', 'its Job failed')}")
        last: dict[int, Manifest] = {}
        for pod in sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp", ""))):
            index = pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index")
            if index is not None and pod.get("status", {}).get("phase") == "Failed":
                last[int(index)] = pod
        return [self._fate(batches[index], last.get(index)) for index in left]

    def _fate(self, batch: Batch, pod: Manifest | None) -> _Fate:
        if pod is None:
            return _Fate(batch, "death", "nothing of its pod is left")
        status, worker = pod["status"], _worker(pod)
        if worker.get("reason") == "OOMKilled":
            return _Fate(batch, "memory", "killed for memory")
        if status.get("reason") == "Evicted" and "ephemeral" in status.get("message", "").lower():
            return _Fate(batch, "storage", status["message"])
        if worker.get("exitCode") == TryAgainError.exit_code:
            return _Fate(batch, "surroundings", _said(worker) or "a worker says to try again")
        if failed := _failed_blocks(worker.get("message", "")):
            return _Fate(batch, "blocks", _said(worker), failed)
        said = _said(worker) or status.get("message") or f"exit code {worker.get('exitCode', 'unknown')}"
        return _Fate(batch, "death", said)

    def _pods(self, name: str) -> list[Manifest]:
        return self.engine.ask(self.api.pods, f"batch.kubernetes.io/job-name={name}")

    def _events(self, name: str) -> list[Manifest]:
        return self.engine.ask(self.api.events, name)

    def _awaited(self, job: Manifest, pods: list[Manifest]) -> str:
        """Return what pods that do not run wait for, "" where nobody says."""
        if job["spec"].get("suspend"):
            return f"queue '{self.profile.queue}' has not admitted its Job yet"
        for pod in (pod for pod in pods if pod.get("status", {}).get("phase") == "Pending"):
            for condition in pod["status"].get("conditions", []):
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return str(condition.get("message", ""))
            for event in self._events(pod["metadata"]["name"]):
                if event.get("type") == "Warning" and event.get("reason") in _HOLDING:
                    return str(event.get("message", ""))
        return ""

    def _remark(self, waiting_for: str) -> None:
        """Say what pods wait for, now and then: it may end by itself, or need somebody."""
        now = self.engine._clock()
        if waiting_for and now >= self.engine._remark_after:
            self.engine._remark_after = now + _PATIENCE
            console.print(f"[yellow]{self.step}: no pod runs: {escape(_line(waiting_for))}[/]")

    def _hopeless(self, name: str, pods: list[Manifest]) -> str:
        """Return why no pod of a Job will ever run, "" where one may."""
        for pod in pods:
            for container in pod.get("status", {}).get("containerStatuses", []):
                waiting = container.get("state", {}).get("waiting") or {}
                if waiting.get("reason") in _HOPELESS:
                    what = waiting.get("message") or waiting["reason"]
                    return f"pods cannot start: {_line(what)}; correct 'image' or 'secrets' in the profile"
            for condition in pod.get("status", {}).get("conditions", []):
                message = condition.get("message", "")
                if (
                    condition["type"] == "PodScheduled"
                    and "persistentvolumeclaim" in message
                    and "not found" in message
                ):
                    return f"{message}; create the claim, or correct 'volumes' in the profile"
        if not pods:
            for event in self._events(name):
                if event.get("reason") == "FailedCreate":
                    told = _line(event.get("message", ""))
                    return f"no pod is admitted: {told}; correct the profile, or ask for what is lacking"
        return ""


def _end(job: Manifest) -> Manifest | None:
    """Return the condition by which a Job has ended, None where it has not."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["status"] == "True" and c["type"] in ("Complete", "Failed")), None)


def _ended(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _without(batches: Iterable[Batch], taken: Iterable[Batch]) -> list[Batch]:
    """Return what of ranges of blocks is in none of others."""
    left = list(batches)
    for other in taken:
        parts = [(Batch(b.first, min(b.last, other.first)), Batch(max(b.first, other.last), b.last)) for b in left]
        left = [part for pair in parts for part in pair if part.first < part.last]
    return left


def _indexes(text: str) -> set[int]:
    """Return the indexes that a Job's status names, as `1,3-5`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _worker(pod: Manifest) -> Manifest:
    """Return how the worker of a pod ended, {} where it never ran."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        if container["name"] == "worker":
            return container.get("state", {}).get("terminated") or {}
    return {}


def _said(worker: Manifest) -> str:
    lines = worker.get("message", "").strip().splitlines()
    return lines[-1].removeprefix("neurokube: ")[:500] if lines else ""


def _failed_blocks(message: str) -> tuple[int, ...]:
    """Return the blocks that a worker said it put into quarantine: a line of JSON among its last."""
    for line in reversed(message.splitlines()):
        if line.startswith("{"):
            try:
                return tuple(int(block) for block in json.loads(line)["failed"])
            except (ValueError, KeyError, TypeError):
                continue
    return ()


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
