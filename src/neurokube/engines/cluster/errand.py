"""An errand: pods that do something for a run, or for nobody's run, started again wherever they are evicted."""

import time
from collections.abc import Callable

from ...errors import ConfigurationError, DataError, Drained, NeuroKubeError, TryAgainError, UsageError
from .api import Api, Manifest, Refused
from .control import end_of, hopeless, kind_of, last_word, pods_of, worker_end
from .manifest import Request, job_manifest
from .profile import Profile

_INTERVAL, _STUCK, _PATIENCE = 2.0, 60.0, 600.0
"""Seconds between looks, without a pod at work after which it is looked into why, and without an answer."""


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
    create(api, profile, request)
    end, pods = follow(api, request, reader(api, told), clock=clock, sleep=sleep, stop=stop)
    if end["type"] == "Failed":
        raise failure(request.step, pods)


def create(api: Api, profile: Profile, request: Request) -> None:
    """Create the Job of an errand.

    Raises:
        ConfigurationError: where the cluster does not take it.
    """
    try:
        api.create_job(job_manifest(profile, request))
    except Refused as refused:
        if refused.passing:
            raise TryAgainError(f"{request.step}: {refused}; run again to go on") from None
        raise ConfigurationError(f"{request.step}: {refused}; correct the profile") from None


def follow(
    api: Api,
    request: Request,
    look: Callable[[list[Manifest], bool], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Manifest, list[Manifest]]:
    """Follow a Job to its end and delete it; return the condition by which it ended, and its pods.

    `look` gets its pods again and again, and whether there is something to be seen of them.  Where the cluster does
    not answer it is asked again for a while.

    Raises:
        Drained: where `stop` asked to; its pods are asked to stop.
        TryAgainError: where somebody else deleted it.
        ConfigurationError: where its pods can never start.
    """
    moved = heard = clock()
    kept = False
    try:
        while True:
            try:
                job, pods = api.job(request.name), api.pods(pods_of(request.name))
                heard = clock()
            except Refused as refused:
                if not refused.passing or stop() or clock() - heard > _PATIENCE:
                    # it goes on without us, and is there for whoever comes next
                    kept = True
                    raise TryAgainError(f"{request.step}: {refused}; run again to go on") from None
                sleep(_INTERVAL)
                continue
            if job is None:
                raise TryAgainError(f"{request.step}: its Job was deleted; run again to go on")
            end = end_of(job)
            ready = bool(job.get("status", {}).get("ready")) or end is not None
            if ready:
                moved = clock()
            look(pods, ready)
            if end is not None:
                return end, pods
            if stop():
                raise Drained(f"{request.step}: stopped; run again to go on")
            if clock() - moved > _STUCK and (why := hopeless(pods, lambda: api.events(request.name))):
                raise kind_of(why)(f"{request.step}: {why}; no Job is left behind")
            sleep(_INTERVAL)
    finally:
        if not kept:
            api.delete_job(request.name)


def reader(api: Api, told: Callable[[str], None]) -> Callable[[list[Manifest], bool], None]:
    """Return what tells, when it looks at pods, the lines of the newest that were not told yet."""
    printed: dict[str, int] = {}

    def look(pods: list[Manifest], ready: bool) -> None:
        if pods and ready:
            newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))["metadata"]["name"]
            lines = api.log(newest, 10_000).splitlines()
            for line in lines[printed.get(newest, 0) :]:
                told(line)
            printed[newest] = max(len(lines), printed.get(newest, 0))

    return look


def failure(step: str, pods: list[Manifest]) -> NeuroKubeError:
    """Return the error to show for a Job that failed: the last word of its pods, of the kind that they ended with."""
    kinds = {
        kind.exit_code: kind for kind in (ConfigurationError, TryAgainError, UsageError, DataError, NeuroKubeError)
    }
    for pod in reversed(pods):
        end = worker_end(pod)
        if end.get("reason") == "OOMKilled":
            return ConfigurationError(f"{step}: its pod was killed for memory; give 'resources' more in the profile")
        if word := last_word(end):
            return kinds.get(end.get("exitCode", 1), NeuroKubeError)(f"{step}: {word}")
    return NeuroKubeError(f"{step}: its pod failed without a word")
