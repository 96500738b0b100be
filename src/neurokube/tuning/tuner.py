"""The tuner: proposes settings, reconstructs and scores them, and keeps what came out, one trial after the other."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from .. import __version__
from ..blocks import Box
from ..engines.base import Engine, Kept
from ..errors import ConfigurationError, DataError, Drained, NeuroKubeError, UsageError, surroundings
from ..evaluation import InstanceScores, count_instances
from ..progress import progress
from ..volumes import Store
from ..workflow import Run, Workflow, load_workflow
from ..workflow.plan import digest, input_key
from ..workflow.run import locked
from ..workflow.spec import suggestion
from .cutouts import Cutout, cutouts_of, open_truths
from .ranges import Range, Settings, parse_ranges, usual_ranges
from .reconstruction import Chain, Reconstructions
from .study import Search, Study, Trial, importances

SCORES = {"voi": "voi", "adapted-rand": "adapted_rand_error", "cremi": "cremi"}
"""What can be made small, by the names that users give."""

TOLD = ("voi", "voi_split", "voi_merge", "adapted_rand_error", "cremi")
"""Scores that are kept of a trial: means over the cut-outs."""


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    `multicuts` are tried on each setting of the watershed; `regions` and `validation` are voxels of the image.
    """

    workflow: str
    truths: tuple[str, ...]
    output: str
    regions: tuple[Box, ...] = ()
    validation: tuple[Box, ...] = ()
    stage: str | None = None
    score: str = "voi"
    trials: int = 100
    multicuts: int = 10
    sets: tuple[str, ...] = ()
    min_size: int = 0
    components: bool = True
    seed: int = 0

    def check(self) -> None:
        """Check what needs no file.

        Raises:
            UsageError: where a number or a name cannot be.
        """
        if self.score not in SCORES:
            raise UsageError(f"--score {self.score}: there is no such score{suggestion(self.score, SCORES)}")
        for option, value, least in (
            ("trials", self.trials, 1),
            ("multicuts", self.multicuts, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise UsageError(f"--{option} {value}: give a whole number from {least} on")
        if not self.truths:
            raise UsageError("name the truth: one or more label volumes")


@dataclass(frozen=True)
class Tuning:
    """What came of it: all trials, the first with the settings as they were; scores of the hold-out, if there is one.

    `validation` holds scores before and after.
    """

    request: Request
    workflow: Workflow
    multicut: str
    ranges: tuple[Range, ...]
    cutouts: tuple[Cutout, ...]
    trials: tuple[Trial, ...]
    importances: Mapping[str, float]
    validation: tuple[Mapping[str, float], Mapping[str, float]] | None
    stopped: bool

    @property
    def best(self) -> Trial:
        """The best trial; of equal ones the first, so that nothing is changed in vain."""
        return min(self.trials, key=lambda trial: trial.value)

    def changed(self, trial: Trial) -> Settings:
        """Return the settings of a trial that are not as they were."""
        return {name: v for name, v in trial.settings.items() if v != self.trials[0].settings[name]}


def tune(request: Request, engine: Engine, *, overwrite: bool = False, quiet: bool = False) -> Tuning:
    """Try settings until there are as many trials as asked for; again to go on after any interruption.

    Ctrl-C ends with what is there (`stopped`); a kill costs the trial at hand.

    Raises:
        UsageError, DataError, ConfigurationError: where something does not fit; nothing is computed then.
        Drained: where it was stopped before the first trial ended.
        TryAgainError: where the folder is in use, full or read-only.
    """
    request.check()
    _require_optuna()
    # multicuts are varied, and what follows them stays: `tuned_workflow` says it
    workflow = load_workflow(request.workflow).followed()
    chain = Chain.of(workflow, _multicut(workflow, request))
    truths = open_truths(request.truths)
    cutouts = cutouts_of(workflow, truths, request.regions)
    held_out = cutouts_of(workflow, truths, request.validation) if request.validation else []
    _check_held_out(cutouts, held_out)
    folder = Path(request.output)
    kept = Kept(engine)
    reconstructions = Reconstructions(workflow, chain, folder.absolute(), kept, components=request.components)
    try:
        plans = [reconstructions.first(cutout) for cutout in [*cutouts, *held_out]]
    except (ConfigurationError, DataError) as error:
        raise type(error)(f"{request.workflow}: {error}") from None
    search = _search(request, workflow, chain, plans[0])
    for cutout, plan in zip([*cutouts, *held_out], plans, strict=True):
        _check_truth(cutout, plan, request)
    _check_folder(folder)
    with locked(str(folder)):
        _claim(folder, _identity(request, cutouts, plans[: len(cutouts)], chain, search), overwrite=overwrite)
        study = Study(folder, search.ranges)
        try:
            stopped = _try(request, search, study, reconstructions, cutouts, quiet)
            validation = None
            if held_out and not stopped:
                validation = _validation(study, reconstructions, held_out, request, quiet)
                stopped = validation is None
        finally:
            kept.close()
        told = importances(search.ranges, study.trials, request.seed)
    ranges, trials = search.ranges, tuple(study.trials)
    return Tuning(request, workflow, chain.multicut, ranges, tuple(cutouts), trials, told, validation, stopped)


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; pip install 'neurokube[train]'") from None


def _multicut(workflow: Workflow, request: Request) -> str:
    """Return the multicut stage to tune."""
    names = [name for name, stage in workflow.stages.items() if stage.kind == "multicut"]
    if request.stage is not None:
        if request.stage not in names:
            raise UsageError(f"--stage {request.stage}: is no multicut stage of {request.workflow}{_known(names)}")
        return request.stage
    if not names:
        raise ConfigurationError(f"{request.workflow}: has no multicut stage, so there is nothing to tune; add one")
    if len(names) > 1:
        raise UsageError(f"{request.workflow}: has several multicut stages; name one by --stage: {', '.join(names)}")
    return names[0]


def _known(names: Sequence[str]) -> str:
    return f"; known are {', '.join(names)}" if names else ", which has none; add one"


def _search(request: Request, workflow: Workflow, chain: Chain, plan: Run) -> Search:
    """Return what is varied, around the settings as they are."""
    open_to = {name: workflow.stages[name] for name in (*chain.shared, chain.multicut)}
    closed = {
        name: f"'{name}' comes before the fragments"
        if name in chain.base
        else f"the multicut '{chain.multicut}' does not read '{name}'"
        for name in workflow.stages
        if name not in open_to
    }
    if request.sets:
        ranges = parse_ranges(request.sets, open_to, closed)
    else:
        spec = plan.plan.stages[-1].sources["fragments"].spec
        ranges = usual_ranges(chain.fragments, chain.multicut, open_to, spec)
    start = {r.name: getattr(workflow.stages[r.stage], r.field) for r in ranges}
    costly = tuple(r for r in ranges if r.stage != chain.multicut)
    cheap = tuple(r for r in ranges if r.stage == chain.multicut)
    return Search(start, costly, cheap, request.multicuts, request.seed)


def _check_held_out(cutouts: Sequence[Cutout], held_out: Sequence[Cutout]) -> None:
    for held in held_out:
        for cutout in cutouts:
            if held.region and cutout.region and held.region.clip(cutout.region).size:
                raise UsageError(
                    f"--validate {held.region}: is also tuned on ({cutout.region}), so it would tell nothing; "
                    "choose --region and --validate apart"
                )


def _check_truth(cutout: Cutout, plan: Run, request: Request) -> None:
    """Check that there is something to score, before work starts."""
    _, truth = cutout.compared(plan.plan.stages[-1].sources["fragments"].spec)
    count_instances(truth, truth, components=False, quiet=True).scores(request.min_size)


def _check_folder(folder: Path) -> None:
    if ":/" in str(folder):
        raise UsageError(f"--output {folder}: must be a folder on this machine; name one")
    if folder.is_file():
        raise UsageError(f"{folder}: a file; name another folder by --output")
    if folder.is_dir() and not (folder / "tuning.json").exists() and any(p.name != ".lock" for p in folder.iterdir()):
        raise UsageError(f"{folder}: holds something else than a tuning; name another folder by --output")


def _identity(
    request: Request, cutouts: Sequence[Cutout], plans: Sequence[Run], chain: Chain, search: Search
) -> dict[str, Any]:
    """Return what trials depend on; while it is the same a study can go on."""
    scored = [
        {"truth": input_key(cutout.truth, None), "region": str(cutout), "key": plan.plan.stages[-1].key}
        for cutout, plan in zip(cutouts, plans, strict=True)
    ]
    return {
        "score": request.score,
        "min_size": request.min_size,
        "components": request.components,
        "seed": request.seed,
        "multicuts": request.multicuts,
        "ranges": {r.name: str(r) for r in search.ranges},
        "start": search.start,
        "stage": chain.multicut,
        "cutouts": [{k: v for k, v in entry.items() if k != "key"} for entry in scored],
        "workflow": digest([entry["key"] for entry in scored]),
    }


_CALLED = {
    "start": "present settings",
    "ranges": "ranges",
    "cutouts": "truth or region",
    "workflow": "image, stages or software",
    "stage": "multicut stage",
}


def _claim(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder that of this tuning.

    Raises:
        UsageError: where it is that of another, which is not to be overwritten.
    """
    store = Store(str(folder))
    found = store.read_json("tuning.json")
    if found is not None and not overwrite:
        if other := [name for name, value in identity.items() if found.get(name) != value]:
            raise UsageError(
                f"{folder}: holds a tuning that differs in {', '.join(_CALLED.get(n, n) for n in other)}; "
                "name another folder by --output, or give --overwrite"
            )
        return
    # runs are found by what they hold, so they may stay
    store.delete("study.journal")
    store.write_json("tuning.json", {"neurokube": __version__, **identity}, indent=2)


def _try(
    request: Request,
    search: Search,
    study: Study,
    reconstructions: Reconstructions,
    cutouts: Sequence[Cutout],
    quiet: bool,
) -> bool:
    """Make trials; return whether it was stopped before all were made."""
    settings = search.propose(study.trials, request.trials)
    if len(study.trials) >= request.trials or settings is None:
        return False
    try:
        reconstructions.prepare(cutouts, quiet=quiet)
        with progress(quiet=quiet) as bars:
            bar = bars.add_task("tune", total=request.trials, completed=len(study.trials), unit="trials")
            while len(study.trials) < request.trials and settings is not None:
                _tell(bars, bar, study.trials, request.score)
                study.add(_trial(request, len(study.trials), settings, reconstructions, cutouts))
                settings = search.propose(study.trials, request.trials)
            _tell(bars, bar, study.trials, request.score)
            bars.update(bar, total=len(study.trials))
    except (KeyboardInterrupt, Drained):
        if not study.trials:
            raise Drained(
                "stopped before the first trial ended; what was computed is kept, run again to go on"
            ) from None
        return True
    except OSError as error:
        raise surroundings(error, request.output) or error from None
    return False


def _tell(bars: Progress, bar: TaskID, trials: Sequence[Trial], score: str) -> None:
    best = min((trial.value for trial in trials), default=inf)
    said = f"tune, best {score} {best:.3f}" if best < inf else "tune"
    bars.update(bar, completed=len(trials), description=said)


def _trial(
    request: Request,
    number: int,
    settings: Settings,
    reconstructions: Reconstructions,
    cutouts: Sequence[Cutout],
) -> Trial:
    """Reconstruct and score; what cannot be reconstructed with these settings is a trial that failed."""
    began = time.monotonic()
    try:
        scores = mean_scores(reconstructions.scores(cutouts, settings, request.min_size))
    except NeuroKubeError as error:
        # settings as they are must work; what stops the program stops it whatever the settings
        if number == 0 or error.exit_code not in (NeuroKubeError.exit_code, DataError.exit_code):
            raise
        return Trial(number, settings, seconds=_since(began), error=str(error))
    return Trial(number, settings, scores[SCORES[request.score]], scores, _since(began))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def mean_scores(scores: Sequence[InstanceScores]) -> dict[str, float]:
    """Return the means of what is told of cut-outs, by name."""
    return {name: sum(getattr(s, name) for s in scores) / len(scores) for name in TOLD}


def _validation(
    study: Study, reconstructions: Reconstructions, held_out: Sequence[Cutout], request: Request, quiet: bool
) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
    """Return scores of the hold-out before and after, the only look at it; None where it was stopped."""
    best = min(study.trials, key=lambda trial: trial.value)
    try:
        reconstructions.prepare(held_out, quiet=quiet)
        before, after = (
            mean_scores(reconstructions.scores(held_out, trial.settings, request.min_size))
            for trial in (study.trials[0], best)
        )
    except (KeyboardInterrupt, Drained):
        return None
    return before, after
