"""What a sweep says and leaves: `trials.csv`, `sweep.png`, a table, and which model is best."""

import csv
import io
import shlex
from math import inf
from typing import Any

from rich.table import Table

from ..errors import NeuroKubeError, surroundings
from ..progress import page
from ..tuning.plot import plot
from ..tuning.ranges import shown
from ..tuning.study import Trial
from ..words import counted
from .sweeper import Swept
from .trials import name_of

_SHOWN = 20
"""Trials in the table on the terminal; all are in the file."""


def write_sweep(swept: Swept) -> None:
    """Write table and plot.

    Raises:
        TryAgainError: where they cannot be written.
    """
    sweep = swept.sweep
    title = f"{sweep.folder.name}: {sweep.score} of {counted(len(swept.trials), 'trial')}"
    picture = plot(title, sweep.score, sweep.ranges, swept.trials, dict(swept.importances), rising=True)
    try:
        (sweep.folder / "trials.csv").write_text(_csv(swept), encoding="utf-8")
        (sweep.folder / "sweep.png").write_bytes(picture)
    except OSError as error:
        raise surroundings(error, str(sweep.folder)) or NeuroKubeError(f"{sweep.folder}: {error.strerror}") from None


def as_dict(swept: Swept) -> dict[str, Any]:
    """Return all of it as plain values for JSON."""
    return {
        "sweep": str(swept.sweep.folder),
        "score": swept.sweep.score,
        "best": swept.best.number,
        "model": swept.model,
        "ranges": {r.name: str(r) for r in swept.sweep.ranges},
        "importances": dict(swept.importances),
        "trials": [
            {
                "trial": trial.number,
                "settings": dict(trial.settings),
                "score": _score(trial),
                "scores": dict(trial.scores),
                "seconds": trial.seconds,
                "error": trial.error,
            }
            for trial in swept.trials
        ],
    }


def print_sweep(swept: Swept) -> None:
    """Print the best trials, failed ones, and how to use the best model."""
    sweep, best = swept.sweep, swept.best
    page().print(_table(swept))
    failed = [trial for trial in swept.trials if trial.error]
    if failed:
        print(f"{counted(len(failed), 'trial')} failed; trial {failed[0].number}: {failed[0].error}")
    print(f"{sweep.folder}: trials.csv has every trial, sweep.png shows them")
    print(f"best: trial {best.number}, {sweep.score} {_score(best):.4f} ({_gain(swept)})")
    print(f"use it in a workflow as 'model: {swept.model}', or go on from it: --from {shlex.quote(swept.model)}")


def _gain(swept: Swept) -> str:
    base = swept.trials[0]
    if swept.best is base:
        return "the base as it is; more trials go on from here"
    if base.value == inf:
        return "the base failed"
    return f"the base as it is: {_score(base):.4f}"


def _score(trial: Trial) -> float | None:
    return None if trial.value == inf else -trial.value


def _table(swept: Swept) -> Table:
    ranked = sorted(swept.trials, key=lambda trial: trial.value)
    chosen = ranked[:_SHOWN]
    if swept.trials[0] not in chosen:
        chosen.append(swept.trials[0])
    left = len(ranked) - len(chosen)
    table = Table(title=f"the best of {len(ranked)} trials" if left else "trials", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column(swept.sweep.score, justify="right")
    table.add_column("seconds", justify="right")
    for each in swept.sweep.ranges:
        table.add_column(each.name, justify="right", overflow="fold")
    for trial in chosen:
        score = "failed" if trial.value == inf else f"{-trial.value:.4f}"
        name = f"best {trial.number}" if trial is swept.best else str(trial.number)
        settings = [shown(trial.settings[r.name]) for r in swept.sweep.ranges]
        style = "bold green" if trial is swept.best else None
        table.add_row(name, score, f"{trial.seconds:.0f}", *settings, style=style)
    return table


def _csv(swept: Swept) -> str:
    file = io.StringIO()
    names = [r.name for r in swept.sweep.ranges]
    told = list(dict.fromkeys(name for trial in swept.trials for name in trial.scores))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", *names, *told, "seconds", "best", "model", "error"])
    for trial in swept.trials:
        settings = [trial.settings[name] for name in names]
        scores = [trial.scores.get(name, "") for name in told]
        best = "best" if trial is swept.best else ""
        model = f"{name_of(trial.number)}/model" if trial.scores else ""
        writer.writerow([trial.number, *settings, *scores, trial.seconds, best, model, trial.error])
    return file.getvalue()
