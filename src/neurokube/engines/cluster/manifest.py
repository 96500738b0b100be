"""The Job that runs a step, from a Jinja2 template that a user may replace."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from ...errors import ConfigurationError
from ..base import run_id
from .placement import affinity, cache, needed, scratch
from .profile import Profile, Resources

MANAGED, COMPONENT = "app.kubernetes.io/managed-by", "app.kubernetes.io/component"
RUN, STAGE, STEP = (f"neurokube.io/{name}" for name in ("run", "stage", "step"))
"""Labels of Jobs and pods: `RUN` is a digest of the run's address, which an annotation has whole."""

ADDRESS = "neurokube.io/run-url"

PLANNING = ".planning/"
"""Where in a run's folder pods are told what to find out before it is planned, and answer."""


@dataclass(frozen=True)
class Request:
    """What a Job is for: a step's batches, told to its pods by an object of the run, and what each gets."""

    name: str
    run_url: str
    step: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    indexes: int
    resources: Resources
    retries: int = 2
    command: tuple[str, ...] = ()
    """What pods run, in place of working through their share of the step."""
    data: Mapping[str, int] | None = None
    """How many bytes pods read and write where, by path or URL; None where nobody knows."""
    env: tuple[tuple[str, str], ...] = ()
    """What they see in their environment besides; the profile has the last word."""
    shared_memory: bool = False
    """Whether their processes exchange much by /dev/shm, of which there are else 64 MiB; it counts as memory."""


def job_manifest(profile: Profile, request: Request) -> dict[str, Any]:
    """Return the Job as Kubernetes takes it.

    Raises:
        ConfigurationError: where a template of the user's own renders to something else.
    """
    labels = {**profile.labels, MANAGED: "neurokube", COMPONENT: "worker", **request.labels}
    annotations = {**profile.annotations, **request.annotations}
    if profile.queue:
        labels["kueue.x-k8s.io/queue-name"] = profile.queue
        if profile.queue_least:
            annotations["kueue.x-k8s.io/job-min-parallelism"] = str(profile.queue_least)
        if profile.queue_elastic:
            annotations["kueue.x-k8s.io/elastic-job"] = "true"
    mounted = profile.model_copy(update={"volumes": needed(profile.volumes, request.data)})
    where, text = _rendered(
        mounted,
        "job.yaml.j2",
        name=request.name,
        labels=labels,
        annotations=annotations,
        indexes=request.indexes,
        parallelism=min(profile.parallelism, request.indexes),
        retries=request.retries,
        command=request.command or ["neurokube", "work", request.run_url, request.step, "--job", request.name],
        env=_environment(
            profile,
            *request.env,
            *_starving(profile, request.resources),
            *cache(profile, request.resources),
            *scratch(profile, request.resources),
        ),
        affinity=affinity(mounted, _of_run(request.labels), request.data),
        resources=_resources(profile, request.resources),
        shared_memory=request.shared_memory,
    )
    document: dict[str, Any] = _parsed(where, text)
    _check(where, document, request)
    return document


def driver_manifest(profile: Profile, name: str, run_url: str) -> dict[str, Any]:
    """Return the Job of a driver that goes on with a run, as Kubernetes takes it."""
    labels = {**profile.labels, MANAGED: "neurokube", COMPONENT: "driver", RUN: run_id(run_url)}
    own = {"NEUROKUBE_DRIVER": name, "NEUROKUBE_METRICS": "9464"}
    env = _environment(profile, *own.items())
    document: dict[str, Any] = _parsed(
        *_rendered(
            profile.model_copy(update={"template": None}),
            "driver.yaml.j2",
            name=name,
            labels=labels,
            annotations={**profile.annotations, ADDRESS: run_url},
            command=["neurokube", "resume", run_url],
            env=env,
            affinity=affinity(profile, _of_run(labels), None),
            resources=_resources(profile, profile.driver_resources),
        )
    )
    return document


def _of_run(labels: Mapping[str, str]) -> dict[str, str]:
    """Return what all pods of a run have in common, its driver included."""
    return {RUN: labels[RUN]} if RUN in labels else dict(labels)


def _rendered(profile: Profile, template: str, **values: Any) -> tuple[str, str]:
    """Return what comes of a template of ours, or of the profile's own, and what to call it."""
    from jinja2 import Environment, StrictUndefined, TemplateError

    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
    environment.filters["json"] = lambda value: json.dumps(value, default=list)
    where = template if profile.template is None else "the profile's 'template'"
    source = Path(__file__).with_name(template).read_text() if profile.template is None else profile.template
    try:
        text = environment.from_string(source).render(
            profile=profile,
            env_from=[{"secretRef": {"name": name}} for name in profile.secrets],
            pull_secrets=[{"name": name} for name in profile.pull_secrets],
            mounts=_mounts(profile),
            volumes=_volumes(profile),
            **values,
        )
    except TemplateError as error:
        raise ConfigurationError(f"{where}: no Job comes of it ({str(error).splitlines()[0]}); correct it") from None
    return where, text


def _parsed(where: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{where}: no Job comes of it ({str(error).splitlines()[0]}); correct it") from None


def _starving(profile: Profile, resources: Resources) -> list[tuple[str, str]]:
    """Let pods stop that lack processor time, where there is more to be had."""
    return [("NEUROKUBE_STARVES", "1")] if resources.doubled("cpu", profile.ceiling.cpu) is not None else []


def _environment(profile: Profile, *more: tuple[str, str]) -> list[dict[str, str]]:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    home = {"HOME": "/tmp", "TMPDIR": "/tmp"}
    # else each start looks through all that is installed
    plugins = {"PYDANTIC_DISABLE_PLUGINS": "1"}
    together = {**threads, **home, **plugins, **dict(more), **profile.env}
    return [{"name": name, "value": value} for name, value in together.items()]


def _resources(profile: Profile, resources: Resources) -> dict[str, dict[str, str]]:
    bounded = {"memory": resources.memory, "ephemeral-storage": resources.storage}
    if resources.gpu:
        bounded[profile.gpu_resource] = str(resources.gpu)
    limited = {} if resources.cpu_limit is None else {"cpu": resources.cpu_limit}
    return {"requests": {"cpu": resources.cpu, **bounded}, "limits": {**limited, **bounded}}


def _mounts(profile: Profile) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]
    if profile.scratch:
        mounts.append({"name": "scratch", "mountPath": "/scratch"})
    for k, mount in enumerate(profile.volumes):
        mounts.append({"name": f"volume-{k}", "mountPath": mount.path, "readOnly": mount.read_only})
    return mounts


def _volumes(profile: Profile) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    if profile.scratch:
        medium = {"medium": profile.scratch_medium} if profile.scratch_medium else {}
        volumes.append({"name": "scratch", "emptyDir": {"sizeLimit": profile.scratch, **medium}})
    for k, mount in enumerate(profile.volumes):
        if mount.claim:
            source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": mount.claim, "readOnly": mount.read_only}}
        else:
            source = {"hostPath": {"path": mount.host_path}}
        volumes.append({"name": f"volume-{k}", **source})
    return volumes


def _check(path: str, document: Any, request: Request) -> None:
    """Check what the engine relies on; the rest is for the API server to judge."""
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: renders to no Job but to {document!r:.60}; take job.yaml.j2 as a start")
    try:
        spec = document["spec"]
        wanted = {
            "kind: Job": document["kind"] == "Job",
            "metadata.name": document["metadata"]["name"] == request.name,
            "all of its labels": request.labels.items() <= document["metadata"]["labels"].items(),
            "spec.completionMode: Indexed": spec["completionMode"] == "Indexed",
            "spec.completions": spec["completions"] == request.indexes,
            "spec.backoffLimitPerIndex": spec["backoffLimitPerIndex"] >= 0,
            "a container 'worker'": "worker" in [c["name"] for c in spec["template"]["spec"]["containers"]],
        }
    except (KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: the Job lacks {error}; take job.yaml.j2 as a start") from None
    if lacking := [what for what, there in wanted.items() if not there]:
        raise ConfigurationError(f"{path}: the Job must have {lacking[0]} as given; take job.yaml.j2 as a start")


def job_name(run_url: str, step: str) -> str:
    """Return a name that no other Job has, and that tells run and step."""
    return f"nk-{run_id(run_url)[:6]}-{label(step)[:30].strip('-')}-{uuid4().hex[:6]}"


def label(text: str) -> str:
    """Return a text as a label's value may be."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
