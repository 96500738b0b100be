"""The Jobs of one step: made, followed to their end, and made again with what their pods lacked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape

from ...errors import ConfigurationError, Starved, TryAgainError
from ...progress import console
from ...volumes import Store, join
from ...words import counted
from ..base import Batch, Outcome, Place, Report, run_id
from .api import Manifest, Refused
from .census import Census
from .control import disruptions, end_of, hopeless, kind_of, last_of, last_word, pods_of, unschedulable, worker_end
from .manifest import ADDRESS, RUN, STAGE, STEP, Request, job_manifest, job_name, label
from .profile import Resources

if TYPE_CHECKING:
    from ..kubernetes import Kubernetes

_LOOK = 15.0
"""Seconds between looks at a Job's pods."""

_STUCK = 60.0
"""Seconds without a pod at work after which it is looked into why: what no waiting helps ends the run."""
_REMARK = 600.0
"""Seconds between two remarks on what pods wait for."""

_LOGS, _LINES = 20, 500
"""Logs of failed indexes that are kept of a Job, and their last lines."""

_LEARNED = ("cpu", "cpu_limit", "memory", "storage")
"""What a step's pods turn out to need, and the next run begins with."""

_HOLDING = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")


@dataclass(frozen=True)
class Round:
    """A Job: batches that get the same, how often their pods died before, and its name if it is there already."""

    batches: tuple[Batch, ...]
    resources: Resources
    deaths: int = 0
    name: str = ""


@dataclass(frozen=True)
class Fate:
    """How an index that failed ended: `cause` is memory, storage, cpu, blocks, surroundings, lost or death."""

    batch: Batch
    cause: str
    message: str
    failed: tuple[int, ...] = ()
    quota: float | None = None


class StepJobs:
    """The Jobs of one step."""

    def __init__(self, engine: Kubernetes, run_url: str, step: str) -> None:
        self.engine, self.api, self.run_url, self.step = engine, engine.api, run_url, step
        self.stage, _, self.name = step.partition("/")
        self.place = engine.places.get(self.stage) or Place(join(run_url, self.stage))
        self.store = Store(self.place.url)
        self.profile = engine.profile.of(self.stage)
        self.labels = {RUN: run_id(run_url), STAGE: label(self.stage), STEP: label(self.name)}
        self.selector = ",".join(f"{k}={v}" for k, v in self.labels.items())
        self.census = Census(engine.observer, step, self.profile.gpu_resource)

    # what a step needs, as found out before

    @property
    def _memory(self) -> str:
        return f"jobs/{self.name}.resources.json"

    def resources(self) -> Resources:
        """Return what pods get to begin with: what the profile says, or what an earlier run found that they need."""
        found = self.store.read_json(self._memory)
        told = self.profile.resources
        return told if found is None else told.model_copy(update={k: v for k, v in found.items() if k in _LEARNED})

    # a Job

    def run(self, current: Round, fates: list[Fate]) -> Iterator[Outcome | None]:
        """Create a Job, unless it is there, and follow it to its end; note how indexes failed."""
        name, batches = current.name or self._created(current), current.batches
        told: set[int] = set()
        began = moved = looked = self.engine.clock()
        if self.engine.observer.watches_pods:
            looked -= _LOOK
        while True:
            job = self.engine.ask(self.api.job, name)
            if job is None:
                # somebody deleted it: what it had not done is done by the next
                fates += [Fate(b, "lost", "its Job was deleted") for k, b in enumerate(batches) if k not in told]
                return
            status = job.get("status", {})
            ended = end_of(job)
            for index in sorted(_indexes(status.get("completedIndexes", "")) - told):
                told.add(index)
                moved = self.engine.clock()
                yield Outcome(batches[index], Report(batches[index].last - batches[index].first))
            if ended is not None:
                break
            if self.engine.lease is not None and self.engine.lease.lost():
                raise TryAgainError(f"{self.step}: cancelled, or taken over by another driver")
            if self.engine.stopping:
                if not self.engine.leaves:
                    self.api.delete_job(name)
                return
            if status.get("ready"):
                moved = self.engine.clock()
            if self.engine.clock() - looked >= _LOOK:
                looked, pods = self.engine.clock(), self._pods(name)
                self.census.look(name, pods)
                self._adapt(name, job, pods)
                if looked - moved > _STUCK and self._stuck(job, pods, fresh=not told and not status.get("failed")):
                    fates += [Fate(b, "lost", "its node is gone") for k, b in enumerate(batches) if k not in told]
                    self.engine.ask(self.api.delete_job, name)
                    return
            yield None
            # short Jobs are looked at often: there are many steps, and most have few blocks
            self.engine.sleep(min(self.engine.interval, 0.5 + 0.1 * (self.engine.clock() - began)))
        left = [index for index in range(len(batches)) if index not in told]
        pods = self._pods(name)
        self._tally("disrupted", disruptions(pods))
        if left:
            fates += self._fates(name, batches, left, ended, pods)
        self.census.close(name, pods)
        self.engine.ask(self.api.delete_job, name)

    def _stuck(self, job: Manifest, pods: list[Manifest], *, fresh: bool) -> bool:
        """Say what pods wait for; return whether the Job waits for the end of pods that nobody will tell.

        Raises:
            ConfigurationError, TryAgainError: where a Job that is `fresh`, of which no pod ever ran, waits in vain.
        """
        if fresh and (why := hopeless(pods, lambda: self._events(job["metadata"]["name"]))):
            raise kind_of(why)(f"{self.step}: {why}; no Job is left behind, run again to go on")
        going = [pod for pod in pods if not _ended(pod)]
        if going and all(pod["metadata"].get("deletionTimestamp") for pod in going):
            return True
        self._remark(self._awaited(job, pods))
        return False

    def _adapt(self, name: str, job: Manifest, pods: Sequence[Manifest]) -> None:
        """Ask for as many pods as the cluster has room for, and a few that wait, so that it may grow."""
        if self.profile.queue and not self.profile.queue_elastic:
            return
        now, status = job["spec"]["parallelism"], job.get("status", {})
        left = job["spec"]["completions"] - status.get("succeeded", 0) - len(_indexes(status.get("failedIndexes", "")))
        there = sum(pod["status"].get("phase") == "Running" for pod in pods)
        wanted = there + max(1, there // 4) if any(map(unschedulable, pods)) else 2 * now
        wanted = max(1, min(max(wanted, self.profile.least), self.profile.parallelism, left))
        if wanted != now:
            self.engine.ask(self.api.patch_job, name, {"spec": {"parallelism": wanted}})

    def _tally(self, what: str, count: int) -> None:
        """Add to what befell the pods of this step, in all its Jobs."""
        if count:
            key = f"jobs/{self.name}.tally.json"
            told = self.store.read_json(key) or {}
            self.store.write_json(key, told | {what: told.get(what, 0) + count})

    def again(self, current: Round, fates: list[Fate], attempts: int) -> Generator[Outcome | None, None, list[Round]]:
        """Yield what becomes of indexes that failed for good; return the rounds that the others get."""
        rounds: dict[tuple[Resources, int], list[Batch]] = {}
        for cause, count in Counter(fate.cause for fate in fates).items():
            self._tally(cause, count)
        for fate in fates:
            grown = self._grown(current.resources, fate)
            if fate.cause == "surroundings":
                raise TryAgainError(f"{self.step}: {fate.message}")
            if fate.cause == "blocks":
                yield Outcome(fate.batch, Report(fate.batch.last - fate.batch.first - len(fate.failed), fate.failed))
            elif grown is not None:
                self.engine.observer.happened(self.step, fate.cause)  # type: ignore[arg-type]
                rounds.setdefault((grown, current.deaths), []).append(fate.batch)
            elif fate.cause == "lost":
                rounds.setdefault((current.resources, current.deaths), []).append(fate.batch)
            elif len(parts := fate.batch.halves()) > 1:
                rounds.setdefault((current.resources, 0), []).extend(parts)
            elif current.deaths + 1 < attempts:
                rounds.setdefault((current.resources, current.deaths + 1), []).append(fate.batch)
            else:
                yield Outcome(fate.batch, None, f"its pod died {counted(current.deaths + 1, 'time')}: {fate.message}")
        return [Round(tuple(batches), resources, deaths) for (resources, deaths), batches in rounds.items()]

    def _grown(self, now: Resources, fate: Fate) -> Resources | None:
        """Return the resources with more of what a pod lacked, None where it lacked nothing or had the most."""
        cause = fate.cause
        if cause not in ("memory", "storage", "cpu"):
            return None
        grown = now.doubled(cause, getattr(self.profile.ceiling, cause), fate.quota)
        if grown is not None:
            self.store.write_json(self._memory, grown.model_dump(include=set(_LEARNED)))
        return grown

    def taken_up(self) -> list[Round]:
        """Return the Jobs of this step that an earlier driver left at work; delete others."""
        found = []
        for job in self.engine.ask(self.api.jobs, self.selector):
            name = job["metadata"]["name"]
            told = self.store.read_json(f"jobs/{name}.json")
            going_on = not job["metadata"].get("deletionTimestamp") and end_of(job) is None
            if told is not None and going_on:
                batches = tuple(Batch.parse(text) for text in told["batches"])
                found.append(Round(batches, Resources.model_validate(told["resources"]), told["deaths"], name))
            else:
                self.engine.ask(self.api.delete_job, name)
        return found

    def _created(self, current: Round) -> str:
        name = job_name(self.run_url, self.step)
        manifest = self.manifest(name, len(current.batches), current.resources)
        told = {"step": self.step, "resources": current.resources.model_dump(), "deaths": current.deaths}
        told["marks"] = self.place.marks
        if self.engine.lease is not None:
            self.engine.lease.check()
        self.store.write_json(f"jobs/{name}.json", {**told, "batches": [*map(str, current.batches)]})
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
        annotations = {ADDRESS: self.run_url, STEP: self.step}
        data = self.place.data or None
        request = Request(name, self.run_url, self.step, self.labels, annotations, indexes, resources, data=data)
        return job_manifest(self.profile, request)

    def clean_up(self) -> None:
        """Leave no Job behind that is not at work for the next driver."""
        for job in self.api.jobs(self.selector):
            self.api.delete_job(job["metadata"]["name"])

    # what went wrong

    def _fates(
        self, name: str, batches: Sequence[Batch], left: list[int], ended: Manifest, pods: Sequence[Manifest]
    ) -> list[Fate]:
        last = {index: pod for index, pod in last_of(pods).items() if pod.get("status", {}).get("phase") == "Failed"}
        for index in left[:_LOGS]:
            if index in last and (log := self.api.log(last[index]["metadata"]["name"], _LINES)):
                self.store.write(f"jobs/{name}.{index}.log", log.encode())
        if ended.get("reason") == "PodFailurePolicy":
            told = [last_word(worker_end(pod))[:500] for pod in pods if worker_end(pod).get("exitCode") in (64, 78)]
            raise ConfigurationError(f"{self.step}: {told[0] if told else ended.get('message', 'its Job failed')}")
        return [self._fate(batches[index], last.get(index)) for index in left]

    def _fate(self, batch: Batch, pod: Manifest | None) -> Fate:
        if pod is None:
            return Fate(batch, "death", "nothing of its pod is left")
        status, worker = pod["status"], worker_end(pod)
        if worker.get("reason") == "OOMKilled":
            return Fate(batch, "memory", "killed for memory")
        if status.get("reason") == "Evicted" and "ephemeral" in status.get("message", "").lower():
            return Fate(batch, "storage", status["message"])
        if worker.get("exitCode") == TryAgainError.exit_code:
            return Fate(batch, "surroundings", last_word(worker)[:500] or "a worker says to try again")
        told = _told(worker.get("message", ""))
        if worker.get("exitCode") == Starved.exit_code:
            return Fate(batch, "cpu", last_word(worker)[:500], quota=told.get("quota"))
        if failed := told.get("failed"):
            return Fate(batch, "blocks", last_word(worker)[:500], tuple(int(block) for block in failed))
        said = last_word(worker)[:500] or status.get("message") or f"exit code {worker.get('exitCode', 'unknown')}"
        return Fate(batch, "death", said)

    def _pods(self, name: str) -> list[Manifest]:
        return self.engine.ask(self.api.pods, pods_of(name))

    def _events(self, name: str) -> list[Manifest]:
        return self.engine.ask(self.api.events, name)

    def _awaited(self, job: Manifest, pods: list[Manifest]) -> str:
        """Return what pods that do not run wait for, "" where nobody says."""
        if job["spec"].get("suspend"):
            return f"queue '{self.profile.queue}' has not admitted its Job yet"
        for pod in (pod for pod in pods if pod.get("status", {}).get("phase") == "Pending"):
            if why := unschedulable(pod):
                return why
            for event in self._events(pod["metadata"]["name"]):
                if event.get("type") == "Warning" and event.get("reason") in _HOLDING:
                    return str(event.get("message", ""))
        return ""

    def _remark(self, waiting_for: str) -> None:
        """Say what pods wait for, now and then: it may end by itself, or need somebody."""
        now = self.engine.clock()
        if waiting_for and now >= self.engine.remark_after:
            self.engine.remark_after = now + _REMARK
            console.print(f"[yellow]{self.step}: no pod runs: {escape(_line(waiting_for))}[/]")


def _ended(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _indexes(text: str) -> set[int]:
    """Return the indexes that a Job's status names, as `1,3-5`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _told(message: str) -> Manifest:
    """Return what a worker said of its share: a line of JSON among its last."""
    for line in reversed(message.splitlines()):
        if line.startswith("{"):
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and "failed" in told:
                return told
    return {}
