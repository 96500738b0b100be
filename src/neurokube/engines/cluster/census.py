"""The census of a step's pods: what an observer is told of them, by looking at them now and then.

Only to be looked at, never to decide by: what the engine does follows from Jobs and the ledger.
"""

from collections.abc import Sequence
from typing import Any

from ..observer import Observer, Pod
from .api import Manifest
from .control import disruptions, worker_end
from .profile import amount

_DRAINED, _BLOCKS_FAILED = 85, (1, 64, 65, 78, 86)
"""Exit codes by which no worker died."""


class Census:
    """Tells an observer of the pods of a step's Jobs.

    Evictions are those that the Job controller counted: none is missed between two looks.  A death is missed whose pod
    is gone before the next look.
    """

    def __init__(self, observer: Observer, step: str, gpu_resource: str) -> None:
        self._observer, self._step, self._gpu_resource = observer, step, gpu_resource
        self._evictions: dict[str, int] = {}
        self._alive: dict[str, dict[str, Pod]] = {}
        self._ended: dict[str, set[str]] = {}

    def look(self, job: str, pods: Sequence[Manifest]) -> None:
        """Count the pods of a Job that is at work."""
        if self._observer.watches_pods:
            self._count(job, pods)

    def close(self, job: str, pods: Sequence[Manifest]) -> None:
        """Count the pods of a Job that has ended a last time."""
        if self._observer.watches_pods:
            self._count(job, pods)
            for kept in (self._alive, self._ended, self._evictions):
                kept.pop(job, None)
            self._tell()

    def _count(self, job: str, pods: Sequence[Manifest]) -> None:
        ended = self._ended.setdefault(job, set())
        alive: dict[str, Pod] = {}
        evictions, died = disruptions(pods), 0
        evicted = max(0, evictions - self._evictions.get(job, 0))
        self._evictions[job] = max(evictions, self._evictions.get(job, 0))
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase")
            if phase in ("Pending", "Running"):
                alive[name] = self._seen(pod)
            elif name not in ended:
                ended.add(name)
                died += phase == "Failed" and not _evicted(pod) and _code(pod) not in _BLOCKS_FAILED
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
    return worker_end(pod).get("exitCode")
