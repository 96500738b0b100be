"""The study: trials that were made, kept by Optuna, and what to try next.

Trials come in groups that share all but the settings of the multicut, since fragments and their graph cost most of
the time.  A group's settings come from what groups achieved at best, those of the multicut from all trials; each by a
tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011).  What is tried next is a function of the seed and of
the trials before it, so that an interrupted study goes on as if nothing had been.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from .ranges import Range, Settings, grid

_RANDOM_GROUPS, _RANDOM_TRIALS = 5, 10
"""As many are drawn at random before there is anything to learn from."""

_FEWEST, _DEPTH = 20, 8
"""Trials from which on importances are told, and the depth of the trees that tell them; deeper ones fit noise."""


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, with the value that counts (inf: failed), all scores, and the seconds it took."""

    number: int
    settings: Settings
    value: float = inf
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Search:
    """What is to be tried: settings to begin with, and ranges.

    `costly` ranges are of what multicuts share, `cheap` ones of the multicut; `each` trials make a group.
    """

    start: Settings
    costly: tuple[Range, ...]
    cheap: tuple[Range, ...]
    each: int
    seed: int

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All ranges."""
        return self.costly + self.cheap

    def propose(self, trials: Sequence[Trial], most: int) -> Settings | None:
        """Return what to try after these trials, of `most` in all; None where all there is was tried.

        Few enough choices are tried one by one.
        """
        number = len(trials)
        if number == 0:
            return self.start
        if listed := grid(self.ranges, most):
            tried = [trial.settings for trial in trials]
            return next((settings for settings in listed if settings not in tried), None)
        if not self.costly:
            return self._estimated(self.cheap, trials, _RANDOM_TRIALS, number)
        if not self.cheap:
            return self._estimated(self.costly, trials, _RANDOM_GROUPS, number)
        place = number % self.each
        if place:
            shared = trials[number - place].settings
            return self._only(shared, self.costly) | self._estimated(self.cheap, trials, _RANDOM_TRIALS, number)
        groups = [min(trials[k : k + self.each], key=_value) for k in range(0, number, self.each)]
        best = min(trials, key=_value).settings
        # groups are compared by the same multicut first, the best there is
        return self._estimated(self.costly, groups, _RANDOM_GROUPS, number) | self._only(best, self.cheap)

    def _estimated(self, ranges: Sequence[Range], trials: Sequence[Trial], random: int, number: int) -> Settings:
        return estimated(ranges, trials, random, 100_003 * self.seed + number)

    @staticmethod
    def _only(settings: Settings, ranges: Sequence[Range]) -> Settings:
        return {r.name: settings[r.name] for r in ranges}


def estimated(
    ranges: Sequence[Range], trials: Sequence[Trial], random: int, seed: int, pending: Sequence[Settings] = ()
) -> Settings:
    """Return what to try next by a tree-structured Parzen estimator; of the first `random` trials, any.

    What is `pending`, begun and not known yet, is kept away from: it counts as if it were bad.
    """
    from optuna.samplers import TPESampler

    sampler = TPESampler(n_startup_trials=random, multivariate=True, seed=seed, constant_liar=True)
    with _quiet():
        study = _in_memory(ranges, trials, sampler)
        study.add_trials([_begun(ranges, settings) for settings in pending])
        asked = study.ask({r.name: r.distribution() for r in ranges})
    return {r.name: r.tidy(asked.params[r.name]) for r in ranges}


def importances(ranges: Sequence[Range], trials: Sequence[Trial], seed: int) -> dict[str, float]:
    """Return the share of each setting in how scores differ, by functional ANOVA (Hutter et al., ICML 2014).

    Empty where there are too few trials, or all score the same.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    known = [t for t in trials if t.value < inf and all(t.settings[r.name] in r for r in ranges)]
    if len(known) < _FEWEST or len({t.value for t in known}) < 2:
        return {}
    with _quiet():
        study = _in_memory(ranges, known, None)
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed, max_depth=_DEPTH))
    return {name: float(share) for name, share in found.items()}


def _value(trial: Trial) -> float:
    return trial.value


def _in_memory(ranges: Sequence[Range], trials: Sequence[Trial], sampler: Any) -> Any:
    import optuna

    study = optuna.create_study(sampler=sampler)
    study.add_trials([_frozen(ranges, trial) for trial in trials if trial.value < inf])
    return study


def _frozen(ranges: Sequence[Range], trial: Trial, attributes: dict[str, Any] | None = None) -> Any:
    """Return a trial as Optuna has it; what the first one has outside of its range, Optuna cannot hold."""
    from optuna.trial import TrialState, create_trial

    held = [r for r in ranges if trial.settings[r.name] in r]
    failed = trial.value == inf
    return create_trial(
        state=TrialState.FAIL if failed else TrialState.COMPLETE,
        value=None if failed else trial.value,
        params={r.name: trial.settings[r.name] for r in held},
        distributions={r.name: r.distribution() for r in held},
        user_attrs=attributes or {},
    )


def _begun(ranges: Sequence[Range], settings: Settings) -> Any:
    from optuna.trial import TrialState, create_trial

    held = [r for r in ranges if settings[r.name] in r]
    return create_trial(
        state=TrialState.RUNNING,
        params={r.name: settings[r.name] for r in held},
        distributions={r.name: r.distribution() for r in held},
    )


class Study:
    """The trials in a folder: Optuna's journal, one line a trial, which other programs of Optuna's open too.

    Only one process may have it open; who does holds a lock on the folder.
    """

    def __init__(self, folder: Path, ranges: Sequence[Range]) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        class Held(JournalFileOpenLock):
            """The folder's lock is enough; one of the journal's own would outlive a killed process."""

            def acquire(self) -> bool:
                return True

            def release(self) -> None:
                return None

        file = folder / "study.journal"
        _drop_torn_line(file)
        self._ranges = ranges
        with _quiet():
            storage = JournalStorage(JournalFileBackend(str(file), lock_obj=Held(str(file))))
            self._study = optuna.create_study(storage=storage, study_name="tuning", load_if_exists=True)
        self.trials = [Trial(number=k, **t.user_attrs["trial"]) for k, t in enumerate(self._study.get_trials())]

    def add(self, trial: Trial) -> None:
        """Keep a trial; durable when it returns."""
        told = {"settings": trial.settings, "seconds": trial.seconds, "error": trial.error}
        if trial.value < inf:
            told |= {"value": trial.value, "scores": dict(trial.scores)}
        with _quiet():
            self._study.add_trial(_frozen(self._ranges, trial, {"trial": told}))
        self.trials.append(trial)


def _drop_torn_line(file: Path) -> None:
    """Take away what a killed process left of a line."""
    if file.exists():
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            with file.open("r+b") as journal:
                journal.truncate(content.rfind(b"\n") + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling each trial, and that parts of it are new."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
