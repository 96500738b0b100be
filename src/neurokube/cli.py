"""The command line: a thin face that parses, calls and prints.

Exit codes: 0 done; 64 usage; 65 bad data; 75 try again, nothing was lost; 78 configuration; 85 drained;
1 anything else.  Imports that take time happen inside the commands, so that `--help` answers at once.
"""

import json
import os
import shlex
import signal
import sys
from contextlib import nullcontext, suppress
from typing import Annotated, Any, NoReturn

import typer

from . import cli_cluster, cli_edits, cli_inspection, cli_models, cli_training, cli_volumes

app = typer.Typer(
    name="neurokube",
    help="Reconstruct brain tissue from volume electron microscopy: from an image stack to a segmentation.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(cli_models.app, name="models")
app.add_typer(cli_edits.app, name="edit")
cli_volumes.add(app)

Workers = Annotated[
    int | None, typer.Option("--workers", "-w", min=0, help="worker processes; 0: in this process [default: cores]")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
RunFolder = cli_cluster.RunFolder
WorkflowFile = Annotated[str, typer.Argument(help="workflow file (YAML)", show_default=False)]
Region = Annotated[str | None, typer.Option(help="cut-out Z0:Z1,Y0:Y1,X0:X1 in voxels")]


_CLUSTERS = ("kubernetes", "slurm", "lsf", "pbs")

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def main() -> None:
    """Run the command line; errors a user can mend are one line on standard error."""
    from .errors import NeuroKubeError

    try:
        # a kill during start-up, before a run has a handler of its own, ends like Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        code = app(standalone_mode=False, prog_name="neurokube")
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        _fail(_explained(error), 64)
    except NeuroKubeError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", 85)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        if os.environ.get("NEUROKUBE_DEBUG"):
            raise
        _fail(f"a bug: {type(error).__name__}: {error}; set NEUROKUBE_DEBUG=1 to see where, and report it", 1)


def _explained(error: typer.TyperException) -> str:
    """Return what is wrong with the command line, in our words, and where its help is."""
    message = error.format_message().replace("Input should be", "must be").split(", unable to parse")[0].rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see '{context.command_path if context else 'neurokube'} --help'"


def _fail(message: str, code: int) -> NoReturn:
    print(f"neurokube: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    """Reconstruct brain tissue from volume electron microscopy."""
    if version:
        from . import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        from .errors import UsageError

        print(context.get_help())
        raise UsageError("name one of the commands above")


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="where to write; must be new or an earlier demo")] = "demo",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Synthesize tissue, reconstruct it, score it, write a report: no data needed."""
    from .demo import demonstrate

    demonstrate(folder, workers=_workers(workers), quiet=quiet)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="folder of slices, TIFF, HDF5 (file.h5:dataset), MRC, NIfTI, ...")],
    destination: Annotated[str, typer.Argument(help="volume to create, as image.zarr")],
    voxel_size: Annotated[str | None, typer.Option(help="Z,Y,X in nm [default: what the file says]")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="values are labels, not intensities")] = False,
    dataset: Annotated[str | None, typer.Option(help="dataset inside an HDF5 file")] = None,
    to_8bit: Annotated[str | None, typer.Option(help="16 to 8 bit: 'auto', or LOW,HIGH intensities")] = None,
    offset: Annotated[
        str | None, typer.Option(help="position Z,Y,X of the first voxel in nm [default: what the file says, or 0]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a volume that is there")] = False,
    allow_gaps: Annotated[bool, typer.Option("--allow-gaps", help="accept missing slice numbers")] = False,
    channel: Annotated[int | None, typer.Option(min=0, help="one channel of a TIFF, counted from 0")] = None,
    workers: cli_volumes.Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Import an image stack as a volume, check it, and say what it looks like."""
    from .volumes.importing import import_volume

    report = import_volume(
        source,
        destination,
        voxel_size=None if voxel_size is None else _numbers(voxel_size, "--voxel-size"),
        kind="labels" if labels else "image",
        dataset=dataset,
        to_8bit="auto" if to_8bit == "auto" else None if to_8bit is None else _numbers(to_8bit, "--to-8bit", 2),
        offset=None if offset is None else _numbers(offset, "--offset"),
        overwrite=overwrite,
        allow_gaps=allow_gaps,
        channel=channel,
        workers=cli_volumes.threads(workers),
        quiet=quiet,
    )
    rate = f"{report.megavoxels_per_second:.1f} Mvoxel/s"
    if not cli_volumes.print_report(destination, report, rate, as_json=as_json, made=", read back and equal"):
        return
    if report.gray_range is not None:
        print("intensities {:g} to {:g} became 0 to 255".format(*report.gray_range))
    for finding in report.findings:
        print(f"{finding.severity}: {finding.message}")


@app.command()
def init(
    volume: Annotated[str, typer.Argument(help="imported volume")],
    output: Annotated[str, typer.Option("--output", "-o", help="file to write")] = "workflow.yaml",
    model: Annotated[
        str | None, typer.Option(help="name or folder of a model; 'none' for a filter [default: the nearest]")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="sstem, sbf-sem or fib-sem: prefer models for it")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
) -> None:
    """Write a commented workflow that fits a volume, with the model that is nearest to it."""
    from .workflow.template import write_workflow

    proposal = write_workflow(volume, output, model=model, modality=modality, overwrite=overwrite)
    if proposal is None:
        print("no model: boundaries come from a filter that needs no training")
    else:
        print(f"model {proposal.model}")
        for line in proposal.remarks:
            print(f"  {line}")
    print(f"{output} is ready: look it over, then: neurokube run {shlex.quote(output)}")


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="training file (YAML)", show_default=False)],
    from_: Annotated[str | None, typer.Option("--from", help="model to fine-tune: a name or a bundle's folder")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    go_on: Annotated[bool, typer.Option("--go-on", help="start, or go on where there is something to resume")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier training of that name")] = False,
    engine: Annotated[str, typer.Option(help="where it trains: local, kubernetes")] = "local",
    profile: Annotated[str, typer.Option(help="kubernetes: name of the cluster profile")] = "local",
    profiles: Annotated[str | None, typer.Option(help="kubernetes: file of cluster profiles")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="kubernetes: start it, and come back at once")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a network or a forest, or fine-tune a model; what comes out is a model bundle."""
    from .errors import ConfigurationError, UsageError
    from .training import ForestTraining, load_training

    if engine not in ("local", "kubernetes"):
        raise UsageError(f"--engine {engine}: choose local or kubernetes")
    if detach and engine != "kubernetes":
        raise UsageError("--detach: give it with --engine kubernetes")
    if go_on and (resume or overwrite):
        raise UsageError("--go-on: give it without --resume and --overwrite")
    settings = load_training(config)
    if isinstance(settings, ForestTraining):
        if engine != "local" or go_on:
            raise UsageError(f"{config}: a forest grows in seconds, here; leave --engine and --go-on out")
        _train_forest(settings, config, at_once=from_ is None and not resume, overwrite=overwrite, quiet=quiet)
        return
    if engine == "kubernetes":
        place = cli_training.cluster(profile, profiles)
        cli_training.train_there(
            settings, config, place, start=from_, resume=resume, overwrite=overwrite, detach=detach, quiet=quiet
        )
        return
    try:
        from .sweeps.alone import alone
        from .training.trainer import train as train_network
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; pip install 'neurokube[train]'") from None
    command = f"neurokube train {config}" + (f" --from {from_}" if from_ else "")
    with alone(settings) if go_on else nullcontext():
        bundle = train_network(
            settings,
            start=from_,
            resume=None if go_on else resume,
            overwrite=overwrite,
            command=command,
            quiet=quiet,
        )
    validation = bundle.card.scores.get("validation", {})
    f1 = validation.get("f1", {})
    unknown = [label for label in bundle.card.labels if label not in f1] if bundle.card.output != "image" else []
    print(f"{bundle.folder}: trained in {bundle.card.training['seconds'] / 60:.1f} minutes")
    for label, score in f1.items():
        print(f"  {label:<20} F1 {score:.3f} in validation, at a threshold of {bundle.card.thresholds[label]:.2f}")
    if "psnr" in validation:
        print(f"  {validation['psnr']:.2f} dB in validation; linear interpolation {validation['psnr_linear']:.2f} dB")
    if unknown:
        print(f"note: validation volumes do not tell {', '.join(unknown)} from what is not: no threshold was chosen")


def _train_forest(settings: Any, config: str, *, at_once: bool, overwrite: bool, quiet: bool) -> None:
    from .errors import ConfigurationError, UsageError

    if not at_once:
        raise UsageError(f"{config}: a forest is grown at one go and from nothing; leave --from and --resume out")
    try:
        from .forests.training import said, train_forest
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; pip install 'neurokube[train]'") from None
    workers = _workers(settings.threads)
    bundle = train_forest(
        settings, lambda: _engine(workers), overwrite=overwrite, command=f"neurokube train {config}", quiet=quiet
    )
    for line in said(bundle):
        print(line)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do."""
    from .doctor import examine, print_findings

    findings = examine()
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        print_findings(findings)


@app.command()
def plan(
    workflow: Annotated[str, typer.Argument(help="workflow file (YAML); with --compare a run too", show_default=False)],
    region: Region = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="time a few places of the volume on this machine")] = (
        False
    ),
    blocks: Annotated[int | None, typer.Option(min=1, help="--calibrate: places to time [default: up to 3]")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="show the estimate of a run beside what came of it")] = (
        False
    ),
    workers: Workers = None,
    profile: Annotated[str | None, typer.Option(help="for this cluster profile, with its prices")] = None,
    profiles: Annotated[str | None, typer.Option(help="file of cluster profiles")] = None,
    price_cpu: Annotated[float | None, typer.Option(min=0, help="--calibrate: price of an hour of a core")] = None,
    price_gpu: Annotated[float | None, typer.Option(min=0, help="--calibrate: price of an hour of a GPU")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a run comes to, before anything runs: blocks, bytes, memory; with --calibrate time and cost."""
    from .errors import UsageError
    from .workflow.plan_text import print_comparison, print_plan

    if compare:
        from .workflow.comparison import compare as compared

        if calibrate or profile:
            raise UsageError("--compare: shows what was planned before; leave --calibrate and --profile out")
        found = compared(_run_of(workflow, region))
        print(json.dumps(found, indent=2)) if as_json else print_comparison(found)
        return
    if not calibrate and (blocks is not None or price_cpu is not None or price_gpu is not None):
        raise UsageError("--blocks, --price-cpu, --price-gpu: time and cost are only known with --calibrate; add it")
    from .workflow.estimate import FILE, estimate

    target = _target(workers, profile, profiles, price_cpu, price_gpu)
    planned = _planned(workflow, region)
    calibration = None
    if calibrate:
        from .workflow.calibration import calibrate as calibrated

        one = 0 if workers == 0 else 1
        calibration = calibrated(planned, lambda: _engine(one), places=blocks, quiet=quiet)
    told = estimate(planned, target, calibration).as_dict()
    print(json.dumps(told, indent=2)) if as_json else print_plan(told)
    if calibrate:
        planned.store.write_json(FILE, told, indent=2)


@app.command()
def run(
    workflow: WorkflowFile,
    workers: Workers = None,
    region: Region = None,
    engine: Annotated[
        str | None,
        typer.Option(help="where it runs: local, kubernetes, slurm, lsf, pbs [default: what the profile is of]"),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="name of the cluster profile")] = None,
    profiles: Annotated[str | None, typer.Option(help="file of cluster profiles")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cluster's jobs, run nothing")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="kubernetes: by a driver in the cluster, and come back at once")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(envvar="NEUROKUBE_METRICS", help="[ADDRESS:]PORT where Prometheus finds the driver's metrics"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run a workflow; run it again to go on after any interruption."""
    from .errors import UsageError
    from .workflow import execute
    from .workflow.exporter import exported
    from .workflow.status import print_summary
    from .workflow.stores import places

    if engine not in (None, "local", *_CLUSTERS):
        raise UsageError(f"--engine {engine}: choose local, {', '.join(_CLUSTERS)}")
    local = engine == "local" or (engine is None and profile is None)
    if dry_run and local:
        raise UsageError("--dry-run: give it with a cluster's --profile; 'neurokube plan' shows what a run comes to")
    chosen = _engine(_workers(workers)) if local else _cluster(profile or "local", profiles, engine)
    kind = chosen.kind
    if detach and (dry_run or kind != "kubernetes"):
        raise UsageError("--detach: give it with a profile of Kubernetes, and without --dry-run")
    if kind == "kubernetes" and not dry_run:
        with chosen:
            planned = _planned(workflow, region, chosen.settle)
    else:
        planned = _planned(workflow, region)
    if dry_run:
        chosen.places = places(planned.plan)
        for name, step in planned.plan.steps.items():
            print(f"---\n{chosen.manifest(planned.url, name, len(step.blocks))}", end="")
        return
    if detach:
        cli_cluster.detached(planned, chosen)
        return
    with exported(planned, kind, metrics) as observer:
        summary = execute(planned, chosen, observer=observer, quiet=quiet)
        print_summary(planned, summary)


@app.command()
def status(run: RunFolder, as_json: AsJson = False) -> None:
    """Show how far a run is; ends with 1 where blocks failed."""
    from .workflow import Run
    from .workflow.status import print_status, read_status

    state = read_status(Run.open(run))
    if (cluster := cli_cluster.seen(run)) is not None:
        state["cluster"] = cluster
    if as_json:
        print(json.dumps(state, indent=2))
    else:
        print_status(state)
    if state["quarantined"]:
        raise typer.Exit(1)


@app.command()
def work(
    run: RunFolder,
    step: Annotated[str, typer.Argument(help="STAGE/STEP, as 'neurokube plan' names it")],
    batch: Annotated[str, typer.Option(help="I/N: share I (from 0) of N of the step's blocks")] = "0/1",
    job: Annotated[str | None, typer.Option(help="Job of Kubernetes, whose index JOB_COMPLETION_INDEX this is")] = None,
) -> None:
    """Work through a share of a step's blocks: what a pod runs.  SIGTERM ends it after a block, with 85."""
    from .engines import Batch
    from .errors import UsageError
    from .workflow import Run
    from .workflow.pod import main as work_as_pod
    from .workflow.pod import work_share

    if job is not None:
        raise typer.Exit(work_as_pod(run, step, job))
    try:
        index, of = (int(n) for n in batch.split("/"))
    except ValueError:
        raise UsageError(f"--batch {batch}: write it as I/N, as 0/8") from None
    if not 0 <= index < of:
        raise UsageError(f"--batch {batch}: I counts from 0 to N - 1")
    work_share(run, step, Batch.share(index, of, len(Run.open(run).plan.step(step).blocks)))


@app.command()
def evaluate(
    prediction: Annotated[str, typer.Argument(help="volume to score, or with --models a file of truths (YAML)")],
    truth: Annotated[str, typer.Argument(help="ground truth; with --models or --skeletons leave it out")] = "",
    models: Annotated[str | None, typer.Option(help="A,B,...: score models on the volumes of a file of truths")] = None,
    permutations: Annotated[int, typer.Option(min=1, max=16, help="with --models: flips and turns averaged")] = 1,
    output: Annotated[str, typer.Option("--output", "-o", help="with --models: folder of the report")] = "evaluation",
    mask: Annotated[bool, typer.Option("--mask", help="score as masks, not as instances")] = False,
    threshold: Annotated[float | None, typer.Option(help="masks: prediction from this value on")] = None,
    min_size: Annotated[int, typer.Option(min=0, help="leave out truth bodies under this many voxels")] = 0,
    components: Annotated[
        bool, typer.Option(help="relabel the truth by connected components within the volume")
    ] = True,
    worst: Annotated[int, typer.Option(min=0, max=1000, help="splits, and merges, to name and place")] = 10,
    view: Annotated[
        bool, typer.Option("--view", help="show them in Neuroglancer, each by a link, until Ctrl-C")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="with --view: port on 127.0.0.1; 0: any")] = 0,
    report: Annotated[str | None, typer.Option(help="page (HTML) to write, with pictures of them")] = None,
    image: Annotated[str | None, typer.Option(help="with --view or --report: the image that was segmented")] = None,
    skeletons: Annotated[
        str | None, typer.Option(help="score on skeletons too: .swc or .nml, or a folder of them")
    ] = None,
    skeletonize: Annotated[bool, typer.Option("--skeletonize", help="score on skeletons of the truth too")] = False,
    skeleton_unit: Annotated[str, typer.Option(help="what positions in .swc are in: nm, um or voxels")] = "nm",
    merge_nodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="nodes of each that make a segment a merger of skeletons [default: 1; with --skeletonize 10]"
        ),
    ] = None,
    region: Region = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a segmentation, or a mask, against ground truth, and say where it is wrong; or models, with --models."""
    from .blocks import parse_region
    from .errors import UsageError
    from .volumes import open_volume
    from .workflow.status import check_finished

    if models is not None:
        _evaluate_models(models, prediction, output, permutations, as_json, quiet)
        return
    if not truth and (mask or skeletonize or view or report or not skeletons):
        raise UsageError("evaluate: name a prediction and its ground truth, or --skeletons, or a file and --models")
    if mask and (skeletonize or view or report or skeletons):
        raise UsageError("--mask: a mask has neither splits nor merges; leave --mask, or all about them, out")
    box = parse_region(region) if region is not None else None
    volumes = [open_volume(url) for url in (prediction, truth) if url]
    for volume, part in zip(volumes, (box, None), strict=False):
        if remark := check_finished(volume, part):
            print(f"note: {remark}", file=sys.stderr)
    # a run of a region is scored against the truth where it lies
    volumes = [volumes[0], *(volume.beneath(volumes[0].spec) for volume in volumes[1:])]
    if mask:
        _evaluate_mask([v.crop(box) if box else v for v in volumes], threshold, as_json, quiet)
        return
    from .evaluation import MistakesReport, assess, read_skeletons

    seen = open_volume(image) if image else None
    page = MistakesReport.planned(report, volumes[0], volumes[1], seen, box) if report else None
    traced = read_skeletons(skeletons, unit=skeleton_unit, voxel_size=volumes[0].spec.voxel_size) if skeletons else None
    with _viewer_of(prediction, truth, image, port) if view else nullcontext() as server:
        assessment = assess(
            volumes[0],
            volumes[1] if truth else None,
            traced,
            skeletonized=skeletonize,
            min_size=min_size,
            components=components,
            worst=worst,
            merge_nodes=merge_nodes,
            region=box,
            quiet=quiet,
        )
        links = _links(server, assessment) if server else []
        if page:
            page.write(assessment.mistakes, assessment.tables(), _provenance(), links)
        if as_json:
            written = {"report": report} if report else {}
            print(json.dumps({**assessment.as_dict(links), **written}, indent=2), flush=True)
        else:
            assessment.print(links)
            if report:
                print(f"{report}: scores, and pictures of the worst mistakes", flush=True)
        if server:
            print("Ctrl-C ends the viewer", file=sys.stderr)
            with suppress(KeyboardInterrupt):
                server.serve_forever()


@app.command()
def fuse(
    truth: Annotated[str, typer.Argument(help="file of truths (YAML): validation to fit, test to score")],
    channels: Annotated[str, typer.Option(help="[NAME=]MODEL:LABEL,...: what to fuse", show_default=False)],
    label: Annotated[str | None, typer.Option(help="truth that is fitted [default: the file's only one]")] = None,
    permutations: Annotated[int, typer.Option(min=1, max=16, help="flips and turns averaged")] = 1,
    output: Annotated[str, typer.Option("--output", "-o", help="file to write")] = "fusion.yaml",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fit the weights by which the stage 'fusion' makes one boundary map of the outputs of several models."""
    from .evaluation.models import fit_fusion, print_fusion

    names = [name for name in channels.split(",") if name]
    report = fit_fusion(names, truth, output, label=label, permutations=permutations, overwrite=overwrite, quiet=quiet)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_fusion(report)


@app.command()
def tune(
    workflow: WorkflowFile,
    truth: Annotated[list[str], typer.Argument(help="annotated label volumes on the image", show_default=False)],
    region: Annotated[
        list[str] | None, typer.Option(help="tune on Z0:Z1,Y0:Y1,X0:X1 voxels of the image; may be given again")
    ] = None,
    validate: Annotated[
        list[str] | None, typer.Option(help="a region that is held out, and scored once at the end")
    ] = None,
    score: Annotated[str, typer.Option(help="voi, adapted-rand or cremi: what is to become small")] = "voi",
    trials: Annotated[int, typer.Option(help="settings to try, in all")] = 100,
    multicuts: Annotated[int, typer.Option(help="settings of the multicut to try on each of the watershed")] = 10,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="stage.field=LOW:HIGH[:log] or =A,B,C: tune only this; may be given again [default: all]"
        ),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="the multicut stage, where there are several")] = None,
    min_size: Annotated[int, typer.Option(min=0, help="leave out truth bodies under this many voxels")] = 0,
    components: Annotated[
        bool, typer.Option(help="relabel the truth by connected components within the volume")
    ] = True,
    seed: Annotated[int, typer.Option(help="the same seed tries the same settings")] = 0,
    output: Annotated[str, typer.Option("--output", "-o", help="folder of the result; goes on with what is there")] = (
        "tuning"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="forget the trials that are there")] = False,
    workers: Workers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find watershed and multicut settings that fit annotated volumes; run it again to go on after any interruption."""
    from .blocks import parse_region
    from .errors import Drained
    from .tuning import Request, as_dict, print_tuning, write_tuning
    from .tuning import tune as tune_settings

    request = Request(
        workflow=workflow,
        truths=tuple(truth),
        output=output,
        regions=tuple(parse_region(text) for text in region or ()),
        validation=tuple(parse_region(text) for text in validate or ()),
        stage=stage,
        score=score,
        trials=trials,
        multicuts=multicuts,
        sets=tuple(set_ or ()),
        min_size=min_size,
        components=components,
        seed=seed,
    )
    tuning = tune_settings(request, _engine(_workers(workers)), overwrite=overwrite, quiet=quiet)
    write_tuning(tuning)
    if as_json:
        print(json.dumps(as_dict(tuning), indent=2))
    else:
        print_tuning(tuning)
    if tuning.stopped:
        raise Drained(f"stopped with {len(tuning.trials)} of {trials} trials made; run again to go on")


@app.command()
def annotate(
    source: Annotated[
        str, typer.Argument(help="what was painted: label stack, napari, Fiji, IMOD, Paintera, webKnossos")
    ],
    destination: Annotated[str, typer.Argument(help="volume to create, as labels.zarr")],
    image: Annotated[str, typer.Option(help="the imported image that was painted on", show_default=False)],
    at: Annotated[
        str | None, typer.Option(help="Z,Y,X voxel of the image where it starts [default: as it says]")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="dataset inside the source")] = None,
    names: Annotated[str | None, typer.Option(help="ID=NAME,...: what ids are")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a volume that is there")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Import annotations onto the voxels of their image, to train on; 0 is what nobody annotated."""
    from dataclasses import asdict

    from .volumes.annotations import import_annotation
    from .words import counted

    report = import_annotation(
        source,
        destination,
        image=image,
        offset=None if at is None else _voxels(at),
        dataset=dataset,
        names=None if names is None else _names(names),
        overwrite=overwrite,
        quiet=quiet,
    )
    if as_json:
        print(json.dumps({**asdict(report), "region": str(report.region)}, indent=2))
        return
    count = len(report.sections)
    print(f"{destination}: {report.description}, voxels {report.region} of {image}, {counted(count, 'section')}")
    for number, voxels in report.voxels.items():
        print(f"  {number:>4} {report.names.get(number, ''):<20} {voxels} voxels")
    for remark in report.remarks:
        print(f"note: {remark}")


@app.command()
def view(
    run: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0: any that is free")] = 0,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="open a web browser")] = True,
) -> None:
    """Look at a run, or a volume, in Neuroglancer; no internet needed."""
    from .viewer import view_run

    view_run(run, port=port, open_browser=open_browser)


def _viewer_of(prediction: str, truth: str, image: str | None, port: int) -> Any:
    from .viewer import serve_evaluation

    return serve_evaluation(prediction, truth, image, port=port)


def _links(server: Any, assessment: Any) -> list[str]:
    from .viewer import show_mistakes

    return show_mistakes(server, assessment.mistakes)


def _provenance() -> dict[str, str]:
    from . import __version__

    return {"neurokube": __version__, "command": shlex.join(["neurokube", *sys.argv[1:]])}


def _evaluate_mask(volumes: Any, threshold: float | None, as_json: bool, quiet: bool) -> None:
    from .evaluation import evaluate_mask, print_scores

    scores = evaluate_mask(*volumes, threshold=threshold, quiet=quiet)
    if as_json:
        print(json.dumps(scores.as_dict(), indent=2))
    else:
        print_scores(scores)


def _evaluate_models(models: str, truth: str, folder: str, permutations: int, as_json: bool, quiet: bool) -> None:
    from .evaluation.models import evaluate_models, print_models

    names = [name for name in models.split(",") if name]
    report = evaluate_models(names, truth, folder, permutations=permutations, quiet=quiet)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_models(report)


def _workers(workers: int | None) -> int:
    from .machine import cores

    return cores() if workers is None else workers


def _engine(workers: int) -> Any:
    from .engines import InProcess
    from .engines.local import Local

    return Local(workers) if workers else InProcess()


def _cluster(profile: str, profiles: str | None, engine: str | None) -> Any:
    from .engines.cluster.profile import load_profile, read_profile
    from .errors import ConfigurationError, UsageError

    path, document = read_profile(profile, profiles)
    kind = document.get("kind", "kubernetes") if isinstance(document, dict) else "kubernetes"
    if kind not in _CLUSTERS:
        raise ConfigurationError(f"{path}: profiles.{profile}.kind: choose {', '.join(_CLUSTERS)}")
    if engine not in (None, kind):
        raise UsageError(f"--engine {engine}: profile '{profile}' is one of {kind}; leave --engine out")
    if kind == "kubernetes":
        from .engines.kubernetes import Kubernetes

        return Kubernetes(load_profile(profile, profiles))
    from .engines.hpc import Hpc, load_job_profile

    return Hpc(load_job_profile(profile, profiles))


def _planned(workflow: str, region: str | None, errand: Any = None) -> Any:
    from .blocks import parse_region
    from .errors import ConfigurationError, DataError
    from .workflow import Run, load_workflow

    box = parse_region(region) if region is not None else None
    loaded = load_workflow(workflow)
    try:
        planned = Run.planned(loaded, box, errand=errand)
    except (ConfigurationError, DataError) as error:
        raise type(error)(f"{workflow}: {error}") from None
    for name, chosen in planned.plan.chosen.items():
        print(f"{name}: {chosen}", file=sys.stderr)
    for remark in planned.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return planned


def _run_of(path: str, region: str | None) -> Any:
    """Return the run at a URL, or that of a workflow file."""
    from pathlib import Path

    from .blocks import parse_region
    from .errors import ConfigurationError
    from .workflow import Run, load_workflow
    from .workflow.run import run_url

    if "://" in path or Path(path).is_dir():
        return Run.open(path)
    if not Path(path).exists():
        raise ConfigurationError(f"{path}: neither the folder of a run nor a workflow file; give one that is there")
    return Run.open(run_url(load_workflow(path), parse_region(region) if region is not None else None))


def _target(
    workers: int | None, profile: str | None, profiles: str | None, price_cpu: float | None, price_gpu: float | None
) -> Any:
    from .workflow.estimate import Target

    if profile is None and profiles is None:
        return Target(max(1, _workers(workers)), None, price_cpu, price_gpu)
    from .engines.cluster import load_profile

    found = load_profile(profile or "local", profiles)
    prices = found.prices
    return Target(
        found.parallelism,
        found,
        prices.cpu if price_cpu is None else price_cpu,
        prices.gpu if price_gpu is None else price_gpu,
    )


def _voxels(text: str) -> tuple[int, int, int]:
    z, y, x = (int(n) for n in _numbers(text, "--at"))
    return z, y, x


def _names(text: str) -> dict[int, str]:
    from .errors import UsageError

    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {int(number): name for number, name in pairs}
    except ValueError:
        raise UsageError(f"--names {text}: write it as 1=membranes,2=mitochondria") from None


def _numbers(text: str, option: str, count: int = 3) -> Any:
    from .errors import UsageError

    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        example = "40,4,4" if count == 3 else "1000,30000"
        raise UsageError(f"{option} {text}: give {count} numbers with commas between, as {example}")
    return numbers


cli_cluster.register(app)
cli_training.register(app)
cli_inspection.register(app)
