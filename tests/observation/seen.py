"""A cluster in memory whose pods can be seen at work, and compute real blocks."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from cluster import DONE, EVICTED, GONE, OOM, Cluster, Fate, Manifest

from neurokube.engines import Observer
from neurokube.workflow import work
from neurokube.workflow.pod import share_of


class Seen(Cluster):
    """A pod is listed as running until its tick has come, and when it has succeeded until its Job is deleted."""

    def pods(self, selector: str) -> list[Manifest]:
        found = super().pods(selector)
        for name, job in self.held.items():
            if f"batch.kubernetes.io/job-name={name}" == selector:
                done = job["status"].get("_done", set())
                found += [self._listed(job, index, "Succeeded", self.attempts[name, index]) for index in done]
                for index in self._next(job):
                    found.append(self._listed(job, index, "Running", self.attempts.get((name, index), 0) + 1))
        return found

    def _next(self, job: Manifest) -> list[int]:
        spec, status = job["spec"], job["status"]
        ended = status.get("_done", set()) | status.get("_failed", set())
        return [k for k in range(spec["completions"]) if k not in ended][: min(spec["parallelism"], self.slots)]

    def _listed(self, job: Manifest, index: int, phase: str, attempt: int) -> Manifest:
        spec = job["spec"]["template"]["spec"] | {"nodeName": f"node-{index % 2}"}
        name = f"{job['metadata']['name']}-{index}-{attempt}"
        noted = self.ignored.get((job["metadata"]["name"], index), 0)
        annotations = {
            "batch.kubernetes.io/job-completion-index": str(index),
            "batch.kubernetes.io/job-index-ignored-failure-count": str(noted),
        }
        return {"metadata": {"name": name, "annotations": annotations}, "spec": spec, "status": {"phase": phase}}


def computed(job: Manifest, index: int, attempt: int) -> Fate:
    """Do what a pod does."""
    _, _, run_url, step, *_ = job["spec"]["template"]["spec"]["containers"][0]["command"]
    os.environ["JOB_COMPLETION_INDEX"] = str(index)
    report = work(run_url, step, share_of(run_url, step, job["metadata"]["name"])[1], None)
    return Fate(1, f'{{"failed": {list(report.failed)}}}') if report.failed else DONE


def mishaps(index: int, attempt: int) -> Fate | None:
    """Return what befalls a pod: of seven indexes one is evicted twice, one loses its node once, one its memory."""
    told = {1: [EVICTED, EVICTED], 2: [GONE], 3: [OOM]}.get(index % 7, [])
    return told[attempt - 1] if attempt <= len(told) else None


class Noting(Observer):
    """Keeps what it is told."""

    watches_pods = True

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.told: list[tuple[Any, ...]] = []

    def working(self, step, running, waiting=0):
        with self.lock:
            self.told.append(("working", step, running, waiting))

    def pods(self, step, pods):
        with self.lock:
            self.told.append(("pods", step, tuple(pods)))

    def happened(self, step, what, number=1):
        with self.lock:
            self.told += [(what, step)] * number
