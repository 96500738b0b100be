"""The sweeper: one round of trials after the other, made here or in a cluster."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from rich.progress import Progress, TaskID

from .. import __version__
from ..errors import ConfigurationError, NeuroKubeError, UsageError
from ..networks import load_bundle
from ..progress import progress
from ..tuning.study import Trial, importances
from ..volumes import Store
from ..workflow.plan import digest
from ..workflow.run import locked
from .spec import Sweep
from .trials import Trials, name_of


class Maker(Protocol):
    """Makes trials, see `local` and `cluster`."""

    def means(self, sweep: Sweep) -> dict[str, Any]:
        """Return what each training may use."""

    def make(
        self, trials: Trials, numbers: Sequence[int], threads: int, stop: Callable[[], bool], look: Callable[[], None]
    ) -> None:
        """Make trials until each has a result."""


@dataclass(frozen=True)
class Swept:
    """What came of it: all trials, the first with the settings of the base."""

    sweep: Sweep
    trials: tuple[Trial, ...]
    importances: Mapping[str, float]

    @property
    def best(self) -> Trial:
        """The best trial; of equal ones the first."""
        return min(self.trials, key=lambda trial: trial.value)

    @property
    def model(self) -> str:
        """The best model."""
        return str(self.sweep.folder / name_of(self.best.number) / "model")


def sweep(
    request: Sweep,
    maker: Maker,
    *,
    stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
    quiet: bool = False,
    after: Callable[[Swept], None] = lambda swept: None,
) -> Swept:
    """Make trials until there are as many as asked for; again to go on after any interruption.

    `after` gets what there is after each round, and before an interruption.

    Raises:
        UsageError: where the folder holds another sweep.
        NeuroKubeError: where no trial of the first round succeeded.
        Drained: where `stop` asked to; trainings kept checkpoints.
        TryAgainError: where the folder is in use, or the surroundings failed.
    """
    require_optuna()
    folder = request.folder
    if folder.is_dir() and not (folder / "sweep.json").exists() and any(p.name != ".lock" for p in folder.iterdir()):
        raise UsageError(f"{folder}: holds something else than a sweep; name another by 'name'")
    with locked(str(folder)):
        means = _claim(request, maker.means(request), overwrite=overwrite)
        trials = Trials(request, means)
        with progress(quiet=quiet) as bars:
            bar = bars.add_task("sweep", total=request.trials, unit="trials")
            numbers: list[int] = []
            for first in range(0, request.trials, request.round):
                last = min(first + request.round, request.trials)
                numbers += (proposed := trials.propose(first, last))

                def look(numbers: Sequence[int] = tuple(numbers)) -> None:
                    _tell(bars, bar, trials.known(numbers), request.score)

                try:
                    if left := trials.open(proposed):
                        maker.make(trials, left, means["threads"], stop, look)
                finally:
                    known = trials.known(numbers)
                    if any(trial.value < inf for trial in known):
                        after(_swept(request, known))
                _check_first(trials, known)
                look()
                if len(proposed) < last - first:
                    bars.update(bar, total=len(numbers))
                    break
        return _swept(request, trials.known(numbers))


def require_optuna() -> None:
    """Refuse where a part is missing that sweeps need.

    Raises:
        ConfigurationError: names it.
    """
    try:
        import optuna  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; pip install 'neurokube[train]'") from None


def _swept(request: Sweep, trials: Sequence[Trial]) -> Swept:
    return Swept(request, tuple(trials), importances(request.ranges, trials, request.seed))


def _check_first(trials: Trials, known: Sequence[Trial]) -> None:
    """Go no further where nothing works: the mistake is in the base, or around it."""
    if known and all(trial.value == inf for trial in known):
        trials.forget([trial.number for trial in known])
        raise NeuroKubeError(
            f"no trial succeeded; trial {known[0].number}: {known[0].error}; mend the cause and run again, or with "
            "--overwrite where files of the sweep or its base change"
        )


def _tell(bars: Progress, bar: TaskID, trials: Sequence[Trial], score: str) -> None:
    best = min((trial.value for trial in trials), default=inf)
    said = f"sweep, best {score} {-best:.4f}" if best < inf else "sweep"
    bars.update(bar, completed=len(trials), description=said)


def _identity(request: Sweep) -> dict[str, Any]:
    """Return what trials depend on; while it is the same a sweep can go on."""
    return {
        "base": digest(request.base.model_dump(mode="json", exclude={"workspace", "name", "description"})),
        "from": None if request.model is None else load_bundle(request.model).card.sha256,
        "ranges": {r.name: str(r) for r in request.ranges},
        "score": request.score,
        "round": request.round,
        "seed": request.seed,
    }


def _claim(request: Sweep, means: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Make the folder that of this sweep; return what its trainings use, which stays as it was at first.

    Raises:
        UsageError: where it is that of another, which is not to be overwritten.
    """
    store, identity = Store(str(request.folder)), _identity(request)
    found = store.read_json("sweep.json")
    if found is not None and not overwrite:
        if other := [name for name, value in identity.items() if found.get(name) != value]:
            raise UsageError(
                f"{request.folder}: holds a sweep that differs in {', '.join(other)}; name another by 'name', or give "
                "--overwrite"
            )
        return dict(found["means"])
    for trial in request.folder.glob("trial-*"):
        shutil.rmtree(trial)
    store.write_json("sweep.json", {"neurokube": __version__, **identity, "means": means}, indent=2)
    return means
