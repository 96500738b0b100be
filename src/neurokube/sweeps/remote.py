"""A training in a pod of a cluster, started again wherever it is evicted, from its last checkpoint.

The pod runs `neurokube train CONFIG --go-on`.  What it reads and writes lies where the pod and this machine both reach
it, by one path: what can be checked is checked here, before anything starts.
"""

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engines.base import run_id
from ..engines.cluster import Api, Lease, Profile, Refused, Request
from ..engines.cluster.api import Manifest
from ..engines.cluster.control import end_of, hopeless, kind_of, last_of, lease_name, pods_of, unschedulable, worker_end
from ..engines.cluster.errand import create, failure, follow, reader
from ..engines.cluster.manifest import ADDRESS, RUN, STAGE, STEP, job_name, label
from ..engines.cluster.profile import amount
from ..engines.kubernetes import Kubernetes
from ..errors import ConfigurationError, Drained, TryAgainError
from ..networks import SHIPPED, Bundle, load_bundle
from ..training.config import AnyTraining, Translation
from ..training.folder import CHECKPOINTS, MARK, check_folder, identity_of
from ..volumes import open_volume

KIND = "train"
"""The stage of a profile that says what trainings get."""

ATTEMPTS = 3
"""How often a training may die at one place before it counts as failed."""

_INTERVAL, _ROOM = 1.0, 30.0
"""Seconds between looks at pods that are ending, and beyond their grace before they are left to themselves."""


@dataclass(frozen=True)
class Cluster:
    """A cluster as trainings need it; clock and sleep are for tests."""

    profile: Profile
    api: Api | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def connect(self) -> Kubernetes:
        """Return the engine, which checks on being entered what the user may do."""
        return Kubernetes(self.profile, self.api, clock=self.clock, sleep=self.sleep)

    @property
    def threads(self) -> int:
        """How many threads a training gets where its file does not say it: the cores that it asks for."""
        return max(1, math.floor(amount(self.profile.resources.cpu)))

    def request(self, folder: str, step: str, indexes: int, command: tuple[str, ...], loaders: int) -> Request:
        """Return the Job of pods that train."""
        run, threads = run_id(folder), str(self.threads)
        name = job_name(folder, step)
        return Request(
            name,
            folder,
            step,
            {RUN: run, STAGE: KIND, STEP: label(step)},
            {ADDRESS: folder, STEP: step},
            indexes,
            self.profile.resources,
            command=tuple(name if word == "{job}" else word for word in command),
            # torch asks who it works for, and the image need not know the user
            env=(("USER", KIND), *((f"{library}_NUM_THREADS", threads) for library in ("OMP", "OPENBLAS", "MKL"))),
            shared_memory=self.profile.resources.gpu > 1 or loaders > 0,
        )


def train_there(
    settings: AnyTraining,
    config: str,
    cluster: Cluster,
    *,
    start: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    detach: bool = False,
    told: Callable[[str], None] = print,
) -> Bundle | None:
    """Train in a pod, or go on with a training; return the model, None where the pod was left to itself (`detach`).

    `told` gets what the pod prints.  Asked to stop, this asks the pod to, and waits for its checkpoint.

    Raises:
        UsageError, ConfigurationError, DataError: where something does not fit; no pod is started then.
        NeuroKubeError: as the training ended in the pod.
        Drained: where it was asked to stop.
    """
    folder, file = Path(settings.workspace) / settings.name, os.path.abspath(config)  # noqa: PTH100
    model = reachable_model(start, cluster.profile, "--from")
    check_reach(cluster.profile, {"the training file": file})
    check_here(settings, cluster.profile)
    identity = identity_of(settings, None if model is None else load_bundle(model))
    check_folder(folder, identity, resume=not overwrite and (resume or (folder / MARK).exists()), overwrite=overwrite)
    command = ("neurokube", "train", file, "--go-on", *(() if model is None else ("--from", model)))
    request = cluster.request(str(folder), KIND, 1, command, settings.loaders)
    with cluster.connect() as engine, asked_to_stop() as asked:
        api = engine.api
        if detach:
            _begin(api, cluster, request, folder, overwrite=overwrite)
            _started(api, cluster, request)
            return None
        try:
            with Lease(api, lease_name(str(folder)), {RUN: run_id(str(folder))}, sleep=cluster.sleep):
                _watch(api, cluster, request, folder, asked.is_set, told, overwrite=overwrite)
        except Refused as refused:
            raise TryAgainError(f"{folder}: {refused}; run again to go on") from None
    if not (folder / "model").exists():
        raise ConfigurationError(
            f"{folder}: its pod left no model there: pods and this machine must reach it by one path; see 'volumes' "
            "in the profile"
        )
    return load_bundle(str(folder / "model"))


def _begin(api: Api, cluster: Cluster, request: Request, folder: Path, *, overwrite: bool) -> Request:
    """Return the Job that is at work on this training, or one that is created now."""
    for job in api.jobs(f"{RUN}={request.labels[RUN]}"):
        name = job["metadata"]["name"]
        if overwrite or end_of(job) is not None or job["metadata"].get("deletionTimestamp"):
            api.delete_job(name)
            wait_for_pods(api, cluster, name)
        else:
            return replace(request, name=name)
    if overwrite and (folder / MARK).exists():
        shutil.rmtree(folder)
    create(api, cluster.profile, request)
    return request


def _started(api: Api, cluster: Cluster, request: Request) -> None:
    """Wait a moment for the pod of a Job that is to be left alone, to say why it does not start."""
    began = cluster.clock()
    while cluster.clock() - began < 2 * _ROOM:
        job = api.job(request.name)
        if job is None or end_of(job) is not None or job.get("status", {}).get("ready"):
            return
        cluster.sleep(_INTERVAL)
    pods = api.pods(pods_of(request.name))
    if why := hopeless(pods, lambda: api.events(request.name)):
        api.delete_job(request.name)
        raise kind_of(why)(f"{request.step}: {why}; no Job is left behind")
    if why := next(filter(None, map(unschedulable, pods)), ""):
        print(f"note: its pod waits: {why}", file=sys.stderr)


def _watch(
    api: Api,
    cluster: Cluster,
    request: Request,
    folder: Path,
    stop: Callable[[], bool],
    told: Callable[[str], None],
    *,
    overwrite: bool,
) -> None:
    """Follow a training to its end, by another Job where its pod was killed."""
    read, deaths, before = reader(api, told), 0, _newest(folder)
    request = _begin(api, cluster, request, folder, overwrite=overwrite)
    while True:
        try:
            end, pods = follow(api, request, read, clock=cluster.clock, sleep=cluster.sleep, stop=stop)
        except Drained:
            wait_for_pods(api, cluster, request.name, lambda pods: read(pods, True))
            raise Drained(f"{folder}: stopped, with a checkpoint; the same command goes on from there") from None
        if end["type"] != "Failed":
            return
        # one that gets further each time is not the cause of it
        deaths, before = (deaths if _newest(folder) == before else 0) + 1, _newest(folder)
        if not killed(pods) or deaths == ATTEMPTS:
            raise failure(request.step, pods)
        told(f"{request.step}: its pod was killed; another goes on")
        request = replace(request, name=job_name(request.run_url, request.step))
        create(api, cluster.profile, request)


def killed(pods: list[Manifest]) -> bool:
    """Whether the last pod of a Job ended by no will of its own, and not for lack of memory: as by a force deletion."""
    last = last_of(pods).get(0)
    end = {} if last is None else worker_end(last)
    return not (end.get("reason") == "OOMKilled" or end.get("exitCode", 137) < 128)


def _newest(folder: Path) -> str:
    return max((path.name for path in (folder / CHECKPOINTS).glob("step-*.ckpt")), default="")


def wait_for_pods(
    api: Api, cluster: Cluster, job: str, look: Callable[[list[Manifest]], None] = lambda pods: None
) -> None:
    """Wait until the pods of a Job that was deleted have ended, as long as their grace period lasts."""
    began = cluster.clock()
    while cluster.clock() - began < cluster.profile.grace + _ROOM:
        pods = [p for p in api.pods(pods_of(job)) if p["status"].get("phase") not in ("Succeeded", "Failed")]
        if not pods:
            return
        look(pods)
        cluster.sleep(_INTERVAL)


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Note SIGTERM and Ctrl-C in an event; who asks a second time interrupts."""
    asked = threading.Event()

    def note(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def places(settings: AnyTraining) -> dict[str, str]:
    """Return what a training reads and writes, a path or URL by what it is called."""
    found = {"workspace": settings.workspace}
    for field, value in settings:
        if not isinstance(value, tuple):
            continue
        for k, volume in enumerate(value):
            if hasattr(volume, "image"):
                found[f"{field}.{k}.image"] = volume.image
                for label, source in getattr(volume, "truth", {}).items():
                    found[f"{field}.{k}.truth.{label}"] = source.path
    return found


def check_reach(profile: Profile, paths: Mapping[str, str]) -> None:
    """Check that pods see paths as this machine does.

    Raises:
        ConfigurationError: names what lies on no volume of the profile.
    """
    mounts = [Path(os.path.normpath(mount.path)) for mount in profile.volumes]
    for name, path in paths.items():
        if "://" not in path and not any(Path(path).is_relative_to(mount) for mount in mounts):
            known = ", ".join(map(str, mounts)) or "none"
            raise ConfigurationError(
                f"{name}: {path} lies on no volume that pods see ({known}); move it there, or add it to 'volumes' in "
                "the profile"
            )


def check_here(settings: AnyTraining, profile: Profile) -> None:
    """Check what of a training can be checked on this machine; volumes at URLs may be for pods alone to see.

    Raises:
        ConfigurationError: where pods do not see what they need.
        DataError: where a volume is missing.
    """
    check_reach(profile, places(settings))
    if isinstance(settings, Translation):
        reachable_model(settings.segmentation, profile, "segmentation")
    for name, path in places(settings).items():
        if name != "workspace" and "://" not in path:
            open_volume(path)


def reachable_model(model: str | None, profile: Profile, name: str) -> str | None:
    """Return a model by a name or path that means the same in pods.

    Raises:
        ConfigurationError: where pods do not see it.
    """
    if model is None:
        return None
    folder = load_bundle(model).folder
    if folder.parent == SHIPPED:
        return folder.name
    path = os.path.abspath(folder)  # noqa: PTH100
    check_reach(profile, {name: path})
    return path
