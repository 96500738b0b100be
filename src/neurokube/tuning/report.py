"""What a tuning says and leaves: tables, `trials.csv`, `tuning.png`, and the workflow with the best settings."""

import csv
import io
import shlex
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import NeuroKubeError, surroundings
from ..progress import page
from ..words import counted
from ..workflow.text import anywhere, edited
from .plot import plot
from .ranges import Range, shown
from .study import Trial
from .tuner import SCORES, TOLD, Tuning

_SHOWN = 10
"""Trials in the table on the terminal; all are in the file."""

_TITLES = {
    "voi": "VOI",
    "voi_split": "split",
    "voi_merge": "merge",
    "adapted_rand_error": "adapted Rand",
    "cremi": "CREMI",
}


def write_tuning(tuning: Tuning) -> str:
    """Write all files of a tuning; return the path of the tuned workflow.

    Raises:
        TryAgainError: where they cannot be written.
    """
    folder = Path(tuning.request.output)
    score = _TITLES[SCORES[tuning.request.score]]
    title = f"{Path(tuning.request.workflow).name}: {score} of {counted(len(tuning.trials), 'trial')}"
    picture = plot(title, score, tuning.ranges, tuning.trials, dict(tuning.importances))
    path = folder / "tuned.yaml"
    try:
        (folder / "trials.csv").write_text(_csv(tuning), encoding="utf-8")
        (folder / "tuning.png").write_bytes(picture)
        path.write_text(tuned_workflow(tuning), encoding="utf-8")
    except OSError as error:
        raise surroundings(error, str(folder)) or NeuroKubeError(f"{folder}: {error.strerror}") from None
    return str(path)


def tuned_workflow(tuning: Tuning) -> str:
    """Return the user's file with the best settings, and with paths that mean the same from anywhere."""
    text = Path(tuning.request.workflow).read_text(encoding="utf-8")
    changes = anywhere(text, tuning.workflow)
    for name, value in tuning.changed(tuning.best).items():
        stage, _, field = name.partition(".")
        changes["stages", stage, field] = value
    return edited(text, changes)


def as_dict(tuning: Tuning) -> dict[str, Any]:
    """Return all of it as plain values for JSON."""
    request = tuning.request
    return {
        "workflow": request.workflow,
        "tuned": str(Path(request.output) / "tuned.yaml"),
        "score": request.score,
        "stopped": tuning.stopped,
        "best": tuning.best.number,
        "changed": tuning.changed(tuning.best),
        "ranges": {r.name: str(r) for r in tuning.ranges},
        "varied": [r.name for r in tuning.ranges if _varied(tuning, r)],
        "importances": dict(tuning.importances),
        "cutouts": [{"truth": c.truth.url, "region": str(c)} for c in tuning.cutouts],
        "before": dict(tuning.trials[0].scores),
        "after": dict(tuning.best.scores),
        "validation": tuning.validation and {"before": dict(tuning.validation[0]), "after": dict(tuning.validation[1])},
        "trials": [
            {"trial": t.number, **t.settings, **t.scores, "seconds": t.seconds, "error": t.error} for t in tuning.trials
        ],
    }


def print_tuning(tuning: Tuning) -> None:
    """Print the best trials, the settings before and after, the scores before and after, and what to do next."""
    console = page()
    console.print(_trials_table(tuning))
    console.print(_settings_table(tuning))
    console.print(_scores_table(tuning))
    failed = sum(bool(trial.error) for trial in tuning.trials)
    if failed:
        first = next(trial for trial in tuning.trials if trial.error)
        print(f"{counted(failed, 'trial')} failed; trial {first.number}: {first.error}")
    if untried := _untried(tuning):
        print(untried)
    if tuning.validation and tuning.best.number and _worse(tuning):
        print("note: the hold-out got worse: the settings fit the tuned cut-out only; tune on more truth")
    folder = tuning.request.output
    print(f"{folder}: trials.csv has every trial, tuning.png shows them")
    if tuning.best.number == 0:
        print("no settings were better than those that the workflow has; more --trials go on from here")
        return
    tuned = shlex.quote(str(Path(folder) / "tuned.yaml"))
    print(f"{tuned} is {tuning.request.workflow} with the best settings; look it over, then: neurokube run {tuned}")


def _worse(tuning: Tuning) -> bool:
    assert tuning.validation is not None
    before, after = (scores[SCORES[tuning.request.score]] for scores in tuning.validation)
    return after > before


def _columns(tuning: Tuning) -> list[str]:
    """Return the scores in the order of columns, that which counts first."""
    first = SCORES[tuning.request.score]
    return [first, *(name for name in TOLD if name != first)]


def _numbers(tuning: Tuning, scores: Mapping[str, float]) -> list[str]:
    return [f"{scores[name]:.3f}" for name in _columns(tuning)]


def _trials_table(tuning: Tuning) -> Table:
    ranked = sorted((t for t in tuning.trials if t.value < inf), key=lambda t: t.value)
    chosen = ranked[:_SHOWN]
    if tuning.trials[0] not in chosen:
        chosen.append(tuning.trials[0])
    left = len(tuning.trials) - len(chosen)
    table = Table(title=f"the best of {len(tuning.trials)} trials" if left else "trials", title_justify="left")
    table.add_column("trial", justify="right")
    columns = list(dict.fromkeys([SCORES[tuning.request.score], "voi_split", "voi_merge"]))
    for name in columns:
        table.add_column(_TITLES[name], justify="right")
    table.add_column("settings that differ from the workflow's", overflow="fold")
    for trial in chosen:
        style = "bold green" if trial is tuning.best else None
        numbers = [f"{trial.scores[name]:.3f}" for name in columns]
        table.add_row(_marked(tuning, trial), *numbers, _differences(tuning, trial), style=style)
    return table


def _marked(tuning: Tuning, trial: Trial) -> str:
    return f"best {trial.number}" if trial is tuning.best else str(trial.number)


def _differences(tuning: Tuning, trial: Trial) -> str:
    if trial.number == 0:
        return "(as it was)"
    parts: dict[str, list[str]] = {}
    for name, value in tuning.changed(trial).items():
        stage, _, field = name.partition(".")
        parts.setdefault(stage, []).append(f"{field} {shown(value)}")
    return "; ".join(f"{stage}: {', '.join(settings)}" for stage, settings in parts.items())


def _settings_table(tuning: Tuning) -> Table:
    table = Table(title="settings", title_justify="left")
    table.add_column("setting", no_wrap=True)
    for name in ("tried", "before", "after", "importance"):
        table.add_column(name, justify="right", overflow="fold")
    told = tuning.importances
    for each in sorted(tuning.ranges, key=lambda r: -told.get(r.name, 0)):
        before, after = (shown(t.settings[each.name]) for t in (tuning.trials[0], tuning.best))
        share = f"{told[each.name]:.0%}" if each.name in told else "-"
        tried = str(each) if _varied(tuning, each) else "not varied"
        table.add_row(each.name, tried, before, f"[bold]{after}[/]" if after != before else after, share)
    return table


def _varied(tuning: Tuning, each: Range) -> bool:
    """Whether a setting was anything else than it was before."""
    return len({trial.settings[each.name] for trial in tuning.trials}) > 1


def _untried(tuning: Tuning) -> str:
    """Say why the watershed is as it was, where the trials did not reach beyond the first group; else nothing."""
    request, left = tuning.request, [r for r in tuning.ranges if r.stage != tuning.multicut]
    if len(tuning.trials) > request.multicuts or any(_varied(tuning, r) for r in left) or not left:
        return ""
    stages = ", ".join(dict.fromkeys(r.stage for r in left))
    return (
        f"note: {stages}: settings were not varied, as the first {counted(request.multicuts, 'trial')} share them; "
        f"give more --trials, or fewer --multicuts"
    )


def _scores_table(tuning: Tuning) -> Table:
    table = Table(title="scores, 0 is perfect", title_justify="left")
    table.add_column("")
    for name in _columns(tuning):
        table.add_column(_TITLES[name], justify="right")
    where = "tuned on" if tuning.validation else ""
    table.add_row(f"{where} before".strip(), *_numbers(tuning, tuning.trials[0].scores))
    table.add_row(f"{where} after".strip(), *_numbers(tuning, tuning.best.scores), style="bold green")
    if tuning.validation:
        before, after = tuning.validation
        table.add_row("held out before", *_numbers(tuning, before))
        table.add_row("held out after", *_numbers(tuning, after), style="bold green")
    return table


def _csv(tuning: Tuning) -> str:
    file = io.StringIO()
    names = [r.name for r in tuning.ranges]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", *names, *TOLD, "seconds", "best", "error"])
    for trial in tuning.trials:
        settings = [trial.settings[name] for name in names]
        scores = [trial.scores.get(name, "") for name in TOLD]
        best = "best" if trial is tuning.best else ""
        writer.writerow([trial.number, *settings, *scores, trial.seconds, best, trial.error])
    return file.getvalue()
