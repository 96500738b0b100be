"""The census of a step's pods: what an observer is told of them, by looking at them now and then.

Only to be looked at, never to decide by: what the engine does follows from Jobs and the ledger.
"""

from typing import Any

from ..observer import Observer, Pod
from .api import Api, Manifest, Refused
from .profile import amount

INTERVAL = 15.0
"""Seconds between two looks, each a request for every 500 pods of a Job."""

_DRAINED, _BLOCKS_FAILED = 85, (1, 64, 65, 78)
"""Exit codes by which no worker died."""


class Census:
    """Tells an observer of the pods of a step's Jobs.

    A pod counts as evicted where Kubernetes says so, where it ended because it was asked to, and where it is gone
    although its Job is at work.  One that comes and goes between two looks is not seen.
    """

    def __init__(self, api: Api, observer: Observer, step: str, gpu_resource: str) -> None:
        self._api, self._observer, self._step, self._gpu_resource = api, observer, step, gpu_resource
        self._looked: dict[str, float] = {}
        self._alive: dict[str, dict[str, Pod]] = {}
        self._ended: dict[str, set[str]] = {}

    def look(self, job: str, now: float) -> None:
        """Look at the pods of a Job that is at work, unless that was a moment ago; `now` is in seconds."""
        if self._observer.watches_pods and now - self._looked.get(job, -INTERVAL) >= INTERVAL:
            self._looked[job] = now
            self._count(job)

    def close(self, job: str) -> None:
        """Look a last time at the pods of a Job that has ended, before it is deleted."""
        if self._observer.watches_pods:
            self._count(job)
            for kept in (self._looked, self._alive, self._ended):
                kept.pop(job, None)
            self._tell()

    def _count(self, job: str) -> None:
        try:
            pods = self._api.pods(f"batch.kubernetes.io/job-name={job}")
        except Refused:
            # the engine meets the same fault, and is the one to judge it
            return
        names = {pod["metadata"]["name"] for pod in pods}
        ended = self._ended.setdefault(job, set())
        alive: dict[str, Pod] = {}
        gone = len(self._alive.get(job, {}).keys() - names)
        evicted, died = gone, 0
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase")
            if phase in ("Pending", "Running"):
                alive[name] = self._seen(pod)
            elif name not in ended:
                ended.add(name)
                if phase == "Failed" and _evicted(pod):
                    evicted += 1
                elif phase == "Failed" and _code(pod) not in _BLOCKS_FAILED:
                    died += 1
        self._alive[job] = alive
        for what, number in (("eviction", evicted), ("death", died)):
            if number:
                self._observer.happened(self._step, what, number)  # type: ignore[arg-type]
        self._tell()

    def _tell(self) -> None:
        pods = [pod for alive in self._alive.values() for pod in alive.values()]
        running = sum(pod.running for pod in pods)
        self._observer.working(self._step, running, len(pods) - running)
        self._observer.pods(self._step, pods)

    def _seen(self, pod: Manifest) -> Pod:
        spec = pod.get("spec", {})
        requests = [container.get("resources", {}).get("requests", {}) for container in spec.get("containers", [])]

        def asked(what: str) -> float:
            try:
                return float(sum(amount(str(request.get(what, "0"))) for request in requests))
            except ValueError:
                # written in a way that profiles may not
                return 0.0

        return Pod(
            pod["metadata"]["name"],
            node=spec.get("nodeName", ""),
            running=pod["status"]["phase"] == "Running",
            cpu=asked("cpu"),
            memory=int(asked("memory")),
            gpus=int(asked(self._gpu_resource)),
        )


def _evicted(pod: Manifest) -> bool:
    status = pod["status"]
    disrupted = any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in status.get("conditions", []))
    return disrupted or _code(pod) == _DRAINED


def _code(pod: Manifest) -> Any:
    """Return the exit code of a pod's worker, None where there is none."""
    for container in pod["status"].get("containerStatuses", []):
        if container["name"] == "worker":
            return (container.get("state", {}).get("terminated") or {}).get("exitCode")
    return None
