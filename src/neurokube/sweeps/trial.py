"""One trial: a training that starts or goes on, and the note of what came of it."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from ..engines.lifeline import lives
from ..errors import ConfigurationError, Drained, NeuroKubeError, TryAgainError, UsageError
from ..networks import Bundle
from ..training import ForestTraining, load_training
from ..training.config import AnyTraining
from ..volumes import Store
from .alone import alone
from .spec import flat_scores
from .trials import name_of, note_result

_INTERVAL = 0.5
"""Seconds between looks at whether the driver is still there."""


def make_trial(folder: str, number: int, *, driver: int | None = None, quiet: bool = False) -> None:
    """Train what a trial of a sweep says, and note its result; a training that fails for its own fault is one too.

    Where the process `driver` ends, so does this one, with a checkpoint.

    Raises:
        ConfigurationError: where there is no such trial.
        Drained: where it was asked to stop.
        TryAgainError: where the surroundings failed.
    """
    if driver is not None:
        threading.Thread(target=_watch, args=(driver,), daemon=True).start()
    sweep, name = Path(folder), name_of(number)
    told = Store(folder).read_json(f"{name}/trial.json")
    if told is None:
        raise ConfigurationError(
            f"{folder}: there is no trial {number}; pods and the driver must reach it by one path, see 'volumes' in "
            "the profile"
        )
    settings = load_training(str(sweep / name / "training.yaml"))
    assert not isinstance(settings, ForestTraining)
    with alone(settings):
        if Store(folder).read(f"{name}/result.json") is not None:
            return
        began = time.monotonic()
        try:
            bundle = _trained(settings, f"neurokube train {sweep / name / 'training.yaml'}", told["from"], quiet)
        except (Drained, TryAgainError):
            raise
        except NeuroKubeError as error:
            note_result(sweep, number, seconds=_since(began), error=str(error))
        except Exception as error:
            # what a card has not memory for, for one
            first = (str(error).splitlines() or [""])[0]
            note_result(sweep, number, seconds=_since(began), error=f"{type(error).__name__}: {first}")
            if os.environ.get("NEUROKUBE_DEBUG"):
                raise
        else:
            scores, wanted = flat_scores(bundle.card), told["score"]
            if wanted in scores:
                seconds = bundle.card.training["seconds"]
                note_result(sweep, number, score=scores[wanted], scores=scores, seconds=seconds)
            else:
                known = ", ".join(scores) or "none"
                error_text = f"score: the model's card has no '{wanted}' of validation; it has: {known}"
                note_result(sweep, number, seconds=_since(began), error=error_text)


def trial_of(folder: str, job: str) -> int:
    """Return the number of the trial that this pod is to make, by what the driver wrote for its Job.

    Raises:
        UsageError: where this is no such pod.
    """
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    told: Any = Store(folder).read_json(f"jobs/{job}.json")
    if told is None or not index.isdecimal() or int(index) >= len(told["trials"]):
        raise UsageError(f"{folder}: Job '{job}' has no index '{index}'; leave --job to pods, and see 'volumes'")
    return int(told["trials"][int(index)])


def _trained(settings: AnyTraining, command: str, start: str | None, quiet: bool) -> Bundle:
    try:
        from ..training.trainer import train
    except ModuleNotFoundError as error:
        raise TryAgainError(f"{error.name} is not installed; pip install 'neurokube[train]'") from None
    command += f" --from {start}" if start else ""
    return train(settings, resume=None, start=start, command=command, quiet=quiet)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _watch(driver: int) -> None:
    while lives(driver):
        time.sleep(_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
