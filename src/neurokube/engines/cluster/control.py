"""What is done about a run on a cluster from outside its driver: put one there, look, read logs, cancel."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from ...errors import ConfigurationError, NeuroKubeError, TryAgainError
from ...volumes import Store
from ..base import run_id
from .api import Api, Manifest, Refused
from .manifest import COMPONENT, RUN, STEP, driver_manifest
from .profile import Profile

_PATIENCE, _INTERVAL = 60.0, 1.0
"""Seconds that a driver gets to start before one is told why it has not, and between looks."""

_QUOTA = "exceeded quota"
"""What a cluster says where a namespace has no more to give: others may leave some."""

_HOPELESS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")


@dataclass
class Overview:
    """What a cluster says of a run.

    `driver` is who holds it, "" for nobody; `jobs` how many Jobs a step has, `pods` its pods by phase, `waiting` why
    pods of the run wait, with how many each.
    """

    driver: str = ""
    jobs: dict[str, int] = field(default_factory=dict)
    pods: dict[str, Counter[str]] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        pods = {step: dict(counts) for step, counts in self.pods.items()}
        return {"driver": self.driver, "jobs": dict(self.jobs), "pods": pods, "waiting": dict(self.waiting)}


def profile_of(run_url: str) -> Profile | None:
    """Return the profile by which a run was last worked on, None where that was on no cluster."""
    told = Store(run_url).read_json("cluster.json")
    return None if told is None else Profile.model_validate(told)


def detach(
    api: Api,
    profile: Profile,
    run_url: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, str]:
    """Start a driver in the cluster; return its Job's name, and why it does not run yet, "" where it does.

    Raises:
        TryAgainError: where there is one at work, the quota is used up, or the cluster does not answer.
        ConfigurationError: where it cannot start; no Job is left behind.
    """
    for job in _drivers(api, run_url):
        if end_of(job) is None:
            raise TryAgainError(f"{run_url}: a driver is at work in the cluster already ({_name(job)})")
        api.delete_job(_name(job))
    name = f"nk-{run_id(run_url)}-driver-{uuid4().hex[:6]}"
    try:
        api.create_job(driver_manifest(profile, name, run_url))
    except Refused as refused:
        if refused.passing:
            raise TryAgainError(f"the driver: {refused}; try again") from None
        raise ConfigurationError(f"the driver: {refused}; correct the profile") from None
    began = clock()
    while clock() - began < _PATIENCE:
        now = api.job(name)
        if now is None or end_of(now) is not None:
            break
        pods = api.pods(pods_of(name))
        if any(pod["status"].get("phase") in ("Running", "Succeeded") for pod in pods):
            return name, ""
        sleep(_INTERVAL)
    pods = api.pods(pods_of(name))
    if why := hopeless(pods, lambda: api.events(name)):
        api.delete_job(name)
        raise kind_of(why)(f"the driver: {why}; no Job is left behind")
    return name, next(filter(None, map(unschedulable, pods)), "")


def cancel(api: Api, run_url: str) -> list[str]:
    """End whatever is at work on a run in the cluster; return the names of the Jobs that were deleted.

    Pods end the block at hand; what is recorded is kept.
    """
    if (lease := api.lease(lease_name(run_url))) is not None:
        # a driver somewhere else notices that it lost the run, and makes no further Job
        api.delete_lease(lease_name(run_url), lease["metadata"]["resourceVersion"])
    jobs = api.jobs(f"{RUN}={run_id(run_url)}")
    # the driver first, lest it make another
    names = [_name(job) for job in sorted(jobs, key=lambda job: not _is_driver(job))]
    for name in names:
        api.delete_job(name)
    return names


def overview(api: Api, run_url: str) -> Overview:
    """Look at a run's Jobs and pods."""
    found = Overview()
    if (lease := api.lease(lease_name(run_url))) is not None:
        found.driver = lease["spec"].get("holderIdentity") or ""
    steps = {}
    for job in api.jobs(f"{RUN}={run_id(run_url)}"):
        if not _is_driver(job):
            steps[_name(job)] = step = _step(job)
            found.jobs[step] = found.jobs.get(step, 0) + 1
            found.pods.setdefault(step, Counter())
        elif not found.driver and end_of(job) is None:
            found.driver = f"Job {_name(job)}, starting"
    for pod in api.pods(f"{RUN}={run_id(run_url)}"):
        step = steps.get(pod["metadata"]["labels"].get("batch.kubernetes.io/job-name", ""), "")
        if step:
            found.pods[step][pod["status"].get("phase", "Unknown")] += 1
        if pod["status"].get("phase") == "Pending":
            found.waiting[unschedulable(pod) or _held_up(pod) or "is starting"] += 1
    return found


def logs(
    api: Api | None, run_url: str, stages: Mapping[str, str], step: str = "", lines: int = 100
) -> Iterator[tuple[str, str]]:
    """Yield what drivers and pods printed, (whose, text): those there are, then those of failed indexes that were kept.

    `stages` says where each stage lies.  With a `step` only what belongs to it.
    """
    if api is not None:
        for job in api.jobs(f"{RUN}={run_id(run_url)}"):
            if _is_driver(job) if not step else _step(job) == step:
                for pod in api.pods(pods_of(_name(job))):
                    if text := api.log(pod["metadata"]["name"], lines):
                        yield f"pod {pod['metadata']['name']}", text
    for stage in stages if not step else [step.partition("/")[0]]:
        store = Store(stages[stage])
        for key in store.keys("jobs/"):
            name, _, index = key.removeprefix("jobs/").removesuffix(".log").partition(".")
            if not key.endswith(".log"):
                continue
            told: Manifest = store.read_json(f"jobs/{name}.json") or {}
            if not step or told.get("step") == step:
                text = (store.read(key) or b"").decode(errors="replace")
                yield f"{told.get('step', stage)}, index {index} of Job {name}", "\n".join(text.splitlines()[-lines:])


def lease_name(run_url: str) -> str:
    """Return the name of a run's Lease."""
    return f"nk-{run_id(run_url)}"


def pods_of(job: str) -> str:
    """Return the selector of a Job's pods."""
    return f"batch.kubernetes.io/job-name={job}"


def end_of(job: Manifest) -> Manifest | None:
    """Return the condition by which a Job has ended, None where it has not."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["status"] == "True" and c["type"] in ("Complete", "Failed")), None)


def last_of(pods: Iterable[Manifest]) -> dict[int, Manifest]:
    """Return the last pod of each index of a Job."""
    last: dict[int, Manifest] = {}
    for pod in sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp", ""))):
        index = pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index")
        if index is not None:
            last[int(index)] = pod
    return last


def disruptions(pods: Iterable[Manifest]) -> int:
    """Return how many pods of a Job were disrupted so far.

    The Job controller notes on each pod how many of its index there were before that did not count as failures.
    """
    noted = "batch.kubernetes.io/job-index-ignored-failure-count"
    found: dict[str, int] = {}
    for pod in pods:
        told = pod["metadata"].get("annotations", {})
        index = told.get("batch.kubernetes.io/job-completion-index", "")
        found[index] = max(found.get(index, 0), int(told.get(noted, "0")))
    return sum(found.values())


def worker_end(pod: Manifest) -> Manifest:
    """Return how the worker of a pod ended, {} where it did not, or never ran."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        if container["name"] == "worker":
            return container.get("state", {}).get("terminated") or {}
    return {}


def last_word(end: Manifest) -> str:
    """Return the last line that a worker left as it ended, "" where it left none."""
    lines = end.get("message", "").strip().splitlines()
    return lines[-1].removeprefix("neurokube: ") if lines else ""


def unschedulable(pod: Manifest) -> str:
    """Return why a pod finds no node, and the remedy; "" where it has one or has not been looked at."""
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            why = " ".join(str(condition.get("message", "")).split()).rstrip(".") or "no node has room"
            remedies = [remedy for word, remedy in _REMEDIES.items() if word in why]
            return f"{why}; {', or '.join(remedies)}" if remedies else why
    return ""


_REMEDIES = {
    "Insufficient": "wait for room, or lower 'resources' in the profile",
    "node affinity": "correct 'node_selector' or 'near_required' in the profile",
    "untolerated": "add to 'tolerations' in the profile",
}
"""What helps, by what the scheduler says."""


def hopeless(pods: Sequence[Manifest], events: Callable[[], list[Manifest]]) -> str:
    """Return why no pod of a Job will ever run, and the remedy; "" where one may.  `events` are those about the Job."""
    for pod in pods:
        if what := _held_up(pod):
            field = "'image' or 'pull_secrets'" if "mage" in what else "'secrets'"
            return f"pods cannot start: {what}; correct {field} in the profile"
        message = unschedulable(pod)
        if "persistentvolumeclaim" in message and "not found" in message:
            return f"{message}; create the claim, or correct 'volumes' in the profile"
    if not pods:
        for event in events():
            if event.get("reason") == "FailedCreate":
                told = " ".join(event.get("message", "").split())[:300]
                if _QUOTA in told:
                    return f"no pod is admitted: {told}; wait, ask for more quota, or lower 'resources' in the profile"
                return f"no pod is admitted: {told}; correct the profile"
    return ""


def kind_of(why: str) -> type[NeuroKubeError]:
    """Return the kind of error that something `hopeless` is: what others leave free is to be tried again."""
    return TryAgainError if _QUOTA in why else ConfigurationError


def _held_up(pod: Manifest) -> str:
    for container in pod.get("status", {}).get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in _HOPELESS:
            return " ".join(str(waiting.get("message") or waiting["reason"]).split())[:300]
    return ""


def _drivers(api: Api, run_url: str) -> list[Manifest]:
    return [job for job in api.jobs(f"{RUN}={run_id(run_url)}") if _is_driver(job)]


def _is_driver(job: Manifest) -> bool:
    return bool(job["metadata"].get("labels", {}).get(COMPONENT) == "driver")


def _name(job: Manifest) -> str:
    return str(job["metadata"]["name"])


def _step(job: Manifest) -> str:
    return str(job["metadata"].get("annotations", {}).get(STEP, "?"))
