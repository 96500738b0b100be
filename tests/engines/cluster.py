"""A cluster in memory: the Job controller and the pods of Indexed Jobs, as far as the engine can tell them apart.

A pod lasts one tick of the clock, in which `fate` says what becomes of it.  Which indexes are tried again is
decided by the Job's own podFailurePolicy and backoffLimitPerIndex, read from its manifest.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from neurokube.engines.cluster import Refused

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Fate:
    """How a pod ends."""

    code: int = 0
    message: str = ""
    reason: str = "Error"
    disrupted: bool = False
    evicted: str = ""
    silent: bool = False
    """Its node no longer answers: the pod is to be deleted, and never ends."""


DONE, OOM = Fate(), Fate(137, reason="OOMKilled")
EVICTED = Fate(85, disrupted=True)
GONE = Fate(137, disrupted=True)
SILENT = Fate(silent=True)


@dataclass
class Cluster:
    """What `Api` asks for."""

    fate: Callable[[Manifest, int, int], Fate] = lambda job, index, attempt: DONE
    slots: int = 10**9
    now: float = 0.0
    held: dict[str, Manifest] = field(default_factory=dict)
    created: list[Manifest] = field(default_factory=list)
    pod_list: list[Manifest] = field(default_factory=list)
    forbidden: frozenset[tuple[str, str]] = frozenset()
    faults: list[Refused] = field(default_factory=list)
    waiting: Manifest | None = None
    unscheduled: str = ""
    event_list: list[Manifest] = field(default_factory=list)
    leases: dict[str, Manifest] = field(default_factory=dict)
    versions: int = 0
    lock: Any = field(default_factory=Lock)
    attempts: dict[tuple[str, int], int] = field(default_factory=dict)
    failures: dict[tuple[str, int], int] = field(default_factory=dict)
    ignored: dict[tuple[str, int], int] = field(default_factory=dict)

    # the API

    def create_job(self, job: Manifest) -> None:
        self._fault()
        if job["metadata"]["name"] in self.held:
            raise Refused(409, "exists")
        self.held[job["metadata"]["name"]] = deepcopy(job) | {"status": {}}
        self.created.append(deepcopy(job))

    def job(self, name: str) -> Manifest | None:
        self._fault()
        return deepcopy(self.held.get(name))

    def jobs(self, selector: str) -> list[Manifest]:
        return [deepcopy(job) for job in self.held.values() if _has(job, selector)]

    def patch_job(self, name: str, patch: Manifest) -> None:
        if name in self.held:
            self.held[name]["spec"] |= patch["spec"]

    def lease(self, name: str) -> Manifest | None:
        self._fault()
        return deepcopy(self.leases.get(name))

    def put_lease(self, lease: Manifest) -> Manifest:
        name, version = lease["metadata"]["name"], lease["metadata"].get("resourceVersion")
        with self.lock:
            now = self.leases.get(name)
            if version != (now and now["metadata"]["resourceVersion"]):
                raise Refused(409, "changed")
            self.versions += 1
            held = deepcopy(lease)
            held["metadata"]["resourceVersion"] = str(self.versions)
            self.leases[name] = held
            return deepcopy(held)

    def delete_lease(self, name: str, version: str) -> None:
        with self.lock:
            now = self.leases.get(name)
            if now is not None and now["metadata"]["resourceVersion"] != version:
                raise Refused(409, "changed")
            self.leases.pop(name, None)

    def delete_job(self, name: str) -> None:
        self.held.pop(name, None)
        self.pod_list = [p for p in self.pod_list if p["metadata"]["labels"]["batch.kubernetes.io/job-name"] != name]

    def pods(self, selector: str) -> list[Manifest]:
        return [deepcopy(pod) for pod in self.pod_list if _has(pod, selector)]

    def log(self, pod: str, lines: int) -> str:
        return ""

    def events(self, name: str) -> list[Manifest]:
        return self.event_list

    def may(self, verb: str, group: str, resource: str) -> bool:
        self._fault()
        return (verb, resource) not in self.forbidden

    def _fault(self) -> None:
        if self.faults:
            raise self.faults.pop(0)

    # the controllers

    def sleep(self, seconds: float) -> None:
        # steps that are worked through at once each have a thread
        with self.lock:
            self.now += seconds
            for job in list(self.held.values()):
                self._reconcile(job)

    def _reconcile(self, job: Manifest) -> None:
        spec, status, name = job["spec"], job["status"], job["metadata"]["name"]
        done, failed = status.setdefault("_done", set()), status.setdefault("_failed", set())
        silent = status.setdefault("_silent", set())
        left = [k for k in range(spec["completions"]) if k not in done | failed | silent]
        status["ready"] = 0 if self.waiting else min(len(left), spec["parallelism"], self.slots)
        for index in left[: min(spec["parallelism"], self.slots)]:
            if self.waiting is not None:
                self._pod(job, index, Fate(), self.waiting)
                continue
            key = (name, index)
            self.attempts[key] = attempt = self.attempts.get(key, 0) + 1
            fate = self.fate(job, index, attempt)
            if fate == DONE:
                done.add(index)
                continue
            self._pod(job, index, fate)
            if fate.silent:
                silent.add(index)
                continue
            action = _action(spec["podFailurePolicy"]["rules"], fate)
            self.ignored[key] = self.ignored.get(key, 0) + (action == "Ignore")
            if action == "FailJob":
                status["conditions"] = [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]
                return
            if action == "FailIndex":
                failed.add(index)
            elif action == "Count":
                self.failures[key] = self.failures.get(key, 0) + 1
                if self.failures[key] > spec["backoffLimitPerIndex"]:
                    failed.add(index)
        status["completedIndexes"] = _written(done)
        status["failedIndexes"] = _written(failed)
        if len(done) + len(failed) == spec["completions"]:
            reason = {"reason": "FailedIndexes"} if failed else {}
            status["conditions"] = [{"type": "Failed" if failed else "Complete", "status": "True", **reason}]

    def _pod(self, job: Manifest, index: int, fate: Fate, waiting: Manifest | None = None) -> None:
        name = job["metadata"]["name"]
        ended = {"terminated": {"exitCode": fate.code, "reason": fate.reason, "message": fate.message}}
        state = {"waiting": waiting} if waiting else ended
        status: Manifest = {"phase": "Pending" if waiting else "Failed", "conditions": []}
        status["containerStatuses"] = [{"name": "worker", "state": state}]
        if waiting and self.unscheduled:
            held = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": self.unscheduled}
            status["conditions"].append(held)
        if fate.disrupted:
            status["conditions"].append({"type": "DisruptionTarget", "status": "True"})
        if fate.silent:
            status |= {"phase": "Running", "containerStatuses": []}
        if fate.evicted:
            status |= {"reason": "Evicted", "message": fate.evicted, "containerStatuses": []}
        labels = job["metadata"]["labels"] | {"batch.kubernetes.io/job-name": name}
        annotations = {
            "batch.kubernetes.io/job-completion-index": str(index),
            "batch.kubernetes.io/job-index-ignored-failure-count": str(self.ignored.get((name, index), 0)),
        }
        place = {
            "name": f"{name}-{index}-{len(self.pod_list)}",
            "labels": labels,
            "annotations": annotations,
            "creationTimestamp": f"{self.now:012.3f}",
        }
        if fate.silent:
            place["deletionTimestamp"] = place["creationTimestamp"]
        self.pod_list.append({"metadata": place, "status": status})


def _has(thing: Manifest, selector: str) -> bool:
    wanted = dict(part.split("=") for part in selector.split(","))
    return wanted.items() <= thing["metadata"]["labels"].items()


def _action(rules: list[Manifest], fate: Fate) -> str:
    for rule in rules:
        if "onPodConditions" in rule and fate.disrupted:
            return str(rule["action"])
        if "onExitCodes" in rule and not fate.evicted and fate.code in rule["onExitCodes"]["values"]:
            return str(rule["action"])
    return "Count"


def _written(indexes: set[int]) -> str:
    return ",".join(str(k) for k in sorted(indexes))
