"""The trials in a sweep's folder.

    <sweep>/sweep.json                what the trials depend on
    <sweep>/trial-0003/trial.json     its settings, as they were proposed
    <sweep>/trial-0003/training.yaml  the same as a training file
    <sweep>/trial-0003/result.json    scores and seconds, or why it failed; written last
    <sweep>/trial-0003/...            what a training leaves

What is proposed is a function of the seed and of the rounds before, so that it does not matter in which order, by how
many workers and with what interruptions the trials of a round are made.
"""

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigurationError
from ..training import parse_training
from ..tuning.ranges import Settings, grid
from ..tuning.study import Trial, estimated
from ..volumes import Store
from .spec import Sweep

_RANDOM = 10
"""As many are drawn at random before there is anything to learn from."""


def name_of(number: int) -> str:
    """Return the folder of a trial."""
    return f"trial-{number:04d}"


class Trials:
    """The trials of a sweep, as they lie in its folder; `means` are fields of all trainings (threads, devices)."""

    def __init__(self, sweep: Sweep, means: Mapping[str, Any]) -> None:
        self.sweep = sweep
        self.folder = sweep.folder
        self._means = means
        self._store = Store(str(sweep.folder))

    def known(self, numbers: Sequence[int]) -> list[Trial]:
        """Return the trials among some that have a result."""
        found = []
        for number in numbers:
            told = self._store.read_json(f"{name_of(number)}/trial.json")
            result = self._store.read_json(f"{name_of(number)}/result.json")
            if told is None or result is None:
                continue
            score = result.get("score")
            value = inf if score is None else -score
            found.append(
                Trial(number, told["settings"], value, result["scores"], result["seconds"], result.get("error", ""))
            )
        return found

    def open(self, numbers: Sequence[int]) -> list[int]:
        """Return which of them have no result."""
        return [number for number in numbers if self._store.read(f"{name_of(number)}/result.json") is None]

    def fail(self, number: int, error: str) -> None:
        """Note that a trial failed."""
        note_result(self.folder, number, error=error)

    def forget(self, numbers: Sequence[int]) -> None:
        """Take back the results of trials, so that they are made again."""
        for number in numbers:
            self._store.delete(f"{name_of(number)}/result.json")

    def propose(self, first: int, last: int) -> list[int]:
        """Propose the trials of a round, unless they were; return their numbers, fewer where all there is was tried."""
        before = self.known(range(first))
        pending: list[Settings] = []
        numbers: list[int] = []
        for number in range(first, last):
            told = self._store.read_json(f"{name_of(number)}/trial.json")
            settings = told["settings"] if told else self._proposed(number, before, pending)
            if settings is None:
                break
            if told is None:
                self._write(number, settings)
            pending.append(settings)
            numbers.append(number)
        return numbers

    def _proposed(self, number: int, before: Sequence[Trial], pending: Sequence[Settings]) -> Settings | None:
        sweep = self.sweep
        if number == 0:
            return sweep.start
        if listed := grid(sweep.ranges, sweep.trials):
            tried = [*(trial.settings for trial in before), *pending]
            return next((settings for settings in listed if settings not in tried), None)
        return estimated(sweep.ranges, before, _RANDOM, 100_003 * sweep.seed + number, pending)

    def _write(self, number: int, settings: Settings) -> None:
        name = name_of(number)
        document = self.sweep.document(settings, self._means, name)
        self._store.write(f"{name}/training.yaml", yaml.safe_dump(document, sort_keys=False).encode())
        told = {"settings": settings, "score": self.sweep.score, "from": self.sweep.model}
        self._store.write_json(f"{name}/trial.json", told, indent=2)
        try:
            parse_training(document, where=f"{self.folder / name / 'training.yaml'}")
        except ConfigurationError as error:
            # settings that each may be, but not together
            self.fail(number, str(error))


def note_result(
    folder: Path,
    number: int,
    *,
    score: float | None = None,
    scores: Mapping[str, float] | None = None,
    seconds: float = 0.0,
    error: str = "",
) -> None:
    """Write what came of a trial; durable when it returns."""
    result: dict[str, Any] = {"scores": dict(scores or {}), "seconds": seconds}
    result |= {"error": error} if score is None else {"score": score}
    Store(str(folder)).write_json(f"{name_of(number)}/result.json", result, indent=2)
