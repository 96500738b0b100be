"""Commands on runs of a cluster: resume, logs, cancel; and what `status` and `run --detach` ask of it."""

import os
from typing import Annotated, Any

import typer

from .words import counted


def _from_anywhere(run: str) -> str:
    """Return a run's folder as it is called wherever it is looked at from: pods, Jobs and Leases know it by that."""
    return run if "://" in run else os.path.abspath(os.path.expanduser(run))  # noqa: PTH100, PTH111


RunFolder = Annotated[str, typer.Argument(help="run folder or URL", show_default=False, callback=_from_anywhere)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(resume)
    app.command()(logs)
    app.command()(cancel)
    app.command(hidden=True)(settle)


def resume(
    run: RunFolder,
    detach: Annotated[bool, typer.Option("--detach", help="by a driver in the cluster, and come back at once")] = False,
    workers: Annotated[int | None, typer.Option("--workers", "-w", min=1, help="local: worker processes")] = None,
    metrics: Annotated[
        str | None, typer.Option(envvar="NEUROKUBE_METRICS", help="[ADDRESS:]PORT of the driver's metrics")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")] = False,
) -> None:
    """Go on with a run as it was planned, where it was at work: on this machine or its cluster."""
    from .engines.cluster.control import profile_of
    from .errors import UsageError
    from .workflow import Run, execute
    from .workflow.exporter import exported
    from .workflow.status import print_summary

    planned = Run.open(run).edited()
    profile = profile_of(run)
    if profile is None:
        from .cli import _engine, _workers

        if detach:
            raise UsageError(f"--detach: {run} was on no cluster; start it by 'neurokube run --engine kubernetes'")
        with exported(planned, "local", metrics) as observer:
            print_summary(planned, execute(planned, _engine(_workers(workers)), observer=observer, quiet=quiet))
        return
    from .engines.kubernetes import Kubernetes

    if "NEUROKUBE_DRIVER" in os.environ:
        # a pod of the cluster has its own way to it
        profile = profile.model_copy(update={"context": None})
    engine = Kubernetes(profile)
    if detach:
        detached(planned, engine)
        return
    with exported(planned, "kubernetes", metrics) as observer:
        print_summary(planned, execute(planned, engine, observer=observer, quiet=quiet))


def logs(
    run: RunFolder,
    step: Annotated[str, typer.Argument(help="STAGE/STEP: what its pods print [default: the driver]")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="the last so many of each")] = 100,
) -> None:
    """Print what a run's driver in the cluster, or the pods of a step, said; and logs of indexes that failed."""
    from .engines.cluster.control import logs as read_logs
    from .workflow import Run

    opened = Run.open(run)
    if step:
        opened.plan.step(step)
    api, why = _api(run)
    found = False
    for whose, text in read_logs(api, run, {s.name: s.url for s in opened.plan.stages}, step, lines):
        print(f"== {whose}\n{text.rstrip()}")
        found = True
    if not found:
        print(f"{run}: no logs: {why or 'no driver or pod of it is there, and no index failed'}")


def cancel(run: RunFolder) -> None:
    """End what is at work on a run in its cluster; what is recorded is kept."""
    from .engines.cluster.control import cancel as end
    from .errors import UsageError
    from .workflow import Run

    Run.open(run)
    api, why = _api(run)
    if api is None:
        raise UsageError(f"{run}: {why}; a run of this machine is ended by Ctrl-C")
    names = end(api, run)
    if names:
        deleted = f"{counted(len(names), 'Job')} deleted ({', '.join(names)})"
        print(f"{run}: cancelled, {deleted}; 'neurokube resume {run}' goes on")
    else:
        print(f"{run}: nothing of it is at work in the cluster")


def settle(
    run: RunFolder,
    stage: Annotated[str, typer.Argument(help="stage of the run")],
    job: Annotated[str, typer.Option(help="Job of Kubernetes that this is a pod of")],
) -> None:
    """Find out how a stage is computed on this machine: what a pod runs before a run is planned."""
    from .engines.cluster.manifest import PLANNING
    from .errors import ConfigurationError
    from .volumes import Store
    from .workflow.run import settle as settle_here

    store = Store(run)
    task = store.read_json(f"{PLANNING}{job}.json")
    if task is None:
        raise ConfigurationError(f"{run}: there is no task for Job '{job}'; leave 'settle' to pods, or see 'volumes'")
    store.write_json(f"{PLANNING}{job}.answer.json", settle_here(run, stage, task))


def detached(planned: Any, engine: Any) -> None:
    """Start a driver in the cluster for a planned run, and say how to look at it."""
    from .engines.cluster.control import detach

    with engine:
        with planned.lock(), engine.hold(planned.url):
            planned.prepare()
        # the driver needs the lock, where it sees this machine's
        name, waits = detach(engine.api, engine.profile, planned.url)
    if waits:
        print(f"note: the driver waits: {waits}")
    print(f"{planned.url}: a driver goes on in the cluster (Job {name}); this machine may be switched off")
    print(f"look with: neurokube status {planned.url}; neurokube logs {planned.url}; end with: neurokube cancel ...")


def seen(run: str) -> dict[str, Any] | None:
    """Return what a run's cluster says of it, for `status`; None where it is on none."""
    from .volumes import Store

    # most runs are on none, and need nothing of a cluster's client
    if Store(run).read_json("cluster.json") is None:
        return None
    from .engines.cluster import Refused
    from .engines.cluster.control import overview

    api, why = _api(run)
    if api is None:
        return {"unknown": why}
    try:
        return overview(api, run).as_dict()
    except Refused as refused:
        return {"unknown": str(refused)}


def _api(run: str) -> tuple[Any, str]:
    """Return the API of a run's cluster, or None and why there is none."""
    from .engines.cluster import RealApi
    from .engines.cluster.control import profile_of
    from .errors import ConfigurationError

    profile = profile_of(run)
    if profile is None:
        return None, "on no cluster"
    try:
        return RealApi(profile), ""
    except ConfigurationError as error:
        return None, str(error)
