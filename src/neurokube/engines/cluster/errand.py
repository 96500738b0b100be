"""An errand: one pod that does something for a run, or for nobody's run, started again wherever it is evicted."""

import time
from collections.abc import Callable

from ...errors import ConfigurationError, Drained, NeuroKubeError, TryAgainError
from .api import Api, Manifest, Refused
from .control import end_of, hopeless, pods_of
from .manifest import Request, job_manifest
from .profile import Profile

_INTERVAL, _STUCK = 2.0, 60.0
"""Seconds between looks, and without a pod at work after which it is looked into why."""


def run_errand(
    api: Api,
    profile: Profile,
    request: Request,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[str], None] = lambda text: None,
) -> None:
    """Run a Job of one index to its end; it is deleted afterwards.

    `told` gets what the pod prints, in whole lines, as they come.

    Raises:
        NeuroKubeError: where it failed, with its last word and the exit code that stands for its kind.
        Drained: where `stop` asked to.
    """
    try:
        api.create_job(job_manifest(profile, request))
    except Refused as refused:
        raise ConfigurationError(f"{request.step}: {refused}; correct the profile") from None
    moved, printed = clock(), 0
    try:
        while True:
            job = api.job(request.name)
            if job is None:
                raise TryAgainError(f"{request.step}: its Job was deleted; run again to go on")
            end = end_of(job)
            pods = api.pods(pods_of(request.name))
            if job.get("status", {}).get("ready") or end is not None:
                moved = clock()
                printed = _tell(api, pods, printed, told)
            if end is not None:
                if end["type"] == "Failed":
                    raise _failure(request.step, pods)
                return
            if stop():
                raise Drained(f"{request.step}: stopped; run again to go on")
            if clock() - moved > _STUCK and (why := hopeless(pods, lambda: api.events(request.name))):
                raise ConfigurationError(f"{request.step}: {why}; no Job is left behind")
            sleep(_INTERVAL)
    finally:
        api.delete_job(request.name)


def _tell(api: Api, pods: list[Manifest], printed: int, told: Callable[[str], None]) -> int:
    """Tell lines of the newest pod that were not told; return how many of it were."""
    if not pods:
        return printed
    newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    lines = api.log(newest["metadata"]["name"], 10_000).splitlines()
    # another pod begins anew
    for line in lines[printed if len(lines) >= printed else 0 :]:
        told(line)
    return len(lines)


def _failure(step: str, pods: list[Manifest]) -> NeuroKubeError:
    kinds = {kind.exit_code: kind for kind in (ConfigurationError, TryAgainError, NeuroKubeError)}
    for pod in reversed(pods):
        for status in pod.get("status", {}).get("containerStatuses", []):
            end = status.get("state", {}).get("terminated") or {}
            if end.get("reason") == "OOMKilled":
                return ConfigurationError(
                    f"{step}: its pod was killed for memory; give 'resources' more in the profile"
                )
            lines = end.get("message", "").strip().splitlines()
            if lines:
                kind = kinds.get(end.get("exitCode", 1), NeuroKubeError)
                return kind(f"{step}: {lines[-1].removeprefix('neurokube: ')}")
    return NeuroKubeError(f"{step}: its pod failed without a word")
