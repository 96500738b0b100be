"""Commands on trainings beside `train`: sweeps of them, and what the pods of those run."""

import json
from typing import Annotated, Any

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(sweep)
    app.command(hidden=True)(trial)


def sweep(
    file: Annotated[str, typer.Argument(help="sweep file (YAML)", show_default=False)],
    engine: Annotated[str, typer.Option(help="where trials are made: local, kubernetes")] = "local",
    profile: Annotated[str, typer.Option(help="kubernetes: name of the cluster profile")] = "local",
    profiles: Annotated[str | None, typer.Option(help="kubernetes: file of cluster profiles")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="trials in all [default: as the file says]")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="trials at once [default: as there is room for]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="forget the trials that are there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    quiet: Quiet = False,
) -> None:
    """Train with other settings each time, and say which model scores best; run it again to go on."""
    from .errors import UsageError
    from .sweeps import as_dict, load_sweep, print_sweep, write_sweep

    if engine not in ("local", "kubernetes"):
        raise UsageError(f"--engine {engine}: choose local or kubernetes")
    request = load_sweep(file, trials)
    if engine == "kubernetes":
        swept = _swept_there(request, cluster(profile, profiles, workers), overwrite, quiet)
    else:
        swept = _swept_here(request, workers, overwrite, quiet)
    write_sweep(swept)
    if as_json:
        print(json.dumps(as_dict(swept), indent=2))
    else:
        print_sweep(swept)


def trial(
    folder: Annotated[str, typer.Argument(help="folder of the sweep")],
    number: Annotated[int, typer.Argument(min=0, help="trial")] = 0,
    job: Annotated[str | None, typer.Option(help="Job of Kubernetes, whose index JOB_COMPLETION_INDEX this is")] = None,
    driver: Annotated[int | None, typer.Option(help="process with which this one ends")] = None,
) -> None:
    """Make a trial of a sweep: what a pod, or a process of its driver, runs.  SIGTERM ends it after a step, with 85."""
    from .sweeps import make_trial, trial_of

    make_trial(folder, number if job is None else trial_of(folder, job), driver=driver)


def cluster(profile: str, profiles: str | None, workers: int | None = None) -> Any:
    """Return the cluster of a profile, as trainings have it."""
    from .engines.cluster import load_profile
    from .sweeps.remote import KIND, Cluster

    chosen = load_profile(profile, profiles).of(KIND)
    if workers is not None:
        chosen = chosen.model_copy(update={"parallelism": workers})
    return Cluster(chosen)


def train_there(
    settings: Any,
    config: str,
    place: Any,
    *,
    start: str | None,
    resume: bool,
    overwrite: bool,
    detach: bool,
    quiet: bool,
) -> None:
    """Train in a pod, and print what it prints."""
    from .sweeps.remote import train_there as train

    told = (lambda line: None) if quiet else (lambda line: print(line, flush=True))
    bundle = train(settings, config, place, start=start, resume=resume, overwrite=overwrite, detach=detach, told=told)
    if bundle is None:
        print(f"{settings.workspace}/{settings.name}: trains in the cluster; this machine may be switched off")
        print("the same command without --detach follows it, and Ctrl-C then ends it, with a checkpoint")
    else:
        print(f"use it in a workflow as 'model: {bundle.folder}'")


def _swept_here(request: Any, workers: int | None, overwrite: bool, quiet: bool) -> Any:
    from .errors import ConfigurationError
    from .sweeps import sweep, write_sweep
    from .sweeps.local import LocalTrials
    from .sweeps.remote import asked_to_stop

    try:
        import lightning  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; pip install 'neurokube[train]'") from None
    with asked_to_stop() as asked:
        return sweep(
            request, LocalTrials(workers), stop=asked.is_set, overwrite=overwrite, quiet=quiet, after=write_sweep
        )


def _swept_there(request: Any, place: Any, overwrite: bool, quiet: bool) -> Any:
    from .sweeps import write_sweep
    from .sweeps.cluster import sweep_there
    from .sweeps.remote import asked_to_stop

    with asked_to_stop() as asked:
        return sweep_there(request, place, stop=asked.is_set, overwrite=overwrite, quiet=quiet, after=write_sweep)
