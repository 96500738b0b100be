"""What models scored, for a person, a program and a spreadsheet."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ... import __version__
from ..curves import Curve

Origin = Literal["validation", "card", "default"]
"""Where a threshold comes from: validation volumes, the model's card, or nowhere (0.5)."""
ORIGINS: dict[Origin, str] = {
    "validation": "the validation volumes",
    "card": "the model's card",
    "default": "nowhere: 0.5",
}


@dataclass(frozen=True)
class Score:
    """How well a model finds a label in the test volumes from a predicted value, `level` of 255, on."""

    curve: Curve
    level: int
    origin: Origin

    @property
    def threshold(self) -> float:
        """The probability from which a voxel counts."""
        return self.level / 255

    @property
    def precision(self) -> float:
        """Share of the predicted voxels that are true; 1 where none is predicted."""
        return float(self.curve.precision[self.level])

    @property
    def recall(self) -> float:
        """Share of the true voxels that are predicted."""
        return float(self.curve.recall[self.level])

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, the Dice coefficient."""
        return float(self.curve.f1[self.level])

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve."""
        return self.curve.average_precision

    def as_dict(self) -> dict[str, Any]:
        """Return scores and counts as plain values for JSON."""
        (negative, missed), (wrong, found) = (self.curve.counts[:, part].sum(1).tolist() for part in self._sides)
        return {
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "average_precision": self.average_precision,
            "threshold": self.threshold,
            "threshold_from": self.origin,
            "true_positives": found,
            "false_positives": wrong,
            "false_negatives": missed,
            "true_negatives": negative,
        }

    @property
    def _sides(self) -> tuple[slice, slice]:
        return slice(None, self.level), slice(self.level, None)


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model: of each label that it shares with the truth.

    `selection` is the mean F1 by which the best model is chosen, None where nothing is known.
    """

    name: str
    model: str
    sha256: str
    labels: tuple[str, ...]
    scores: dict[str, Score]
    selection: float | None
    seconds: float

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the labels that model and truth share."""
        return sum(score.f1 for score in self.scores.values()) / len(self.scores)

    def as_dict(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return everything as plain values for JSON; `labels` are those of the truth."""
        return {
            "name": self.name,
            "model": self.model,
            "sha256": self.sha256,
            "mean_f1": self.mean_f1,
            "selection_f1": self.selection,
            "seconds": round(self.seconds, 1),
            "labels": {label: score.as_dict() for label, score in self.scores.items()},
            "lacks": [label for label in labels if label not in self.labels],
        }


@dataclass(frozen=True)
class ModelsReport:
    """Models on the same test volumes.

    `best` is the model to use, by its `selection` and not by what it scored in the test; None where no model
    has one.  `volumes` says what was tested and validated on.
    """

    folder: str
    truth: str
    permutations: int
    labels: tuple[str, ...]
    models: tuple[ModelScores, ...]
    best: ModelScores | None
    best_from: str
    volumes: dict[str, list[dict[str, Any]]]
    remarks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; without the key `best` where none is known."""
        best = {} if self.best is None else {"best": self.best.model}
        return {
            **best,
            "best_from": self.best_from,
            "models": [model.as_dict(self.labels) for model in self.models],
            "labels": list(self.labels),
            "truth": self.truth,
            "volumes": self.volumes,
            "permutations": self.permutations,
            "neurokube": __version__,
            "remarks": list(self.remarks),
        }


def write_numbers(report: ModelsReport) -> None:
    """Write evaluation.json, which a workflow can name as 'best of', and scores.csv into the report's folder."""
    folder = Path(report.folder)
    rows = [
        {"model": model.name, "label": label, **score.as_dict()}
        for model in report.models
        for label, score in model.scores.items()
    ]
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    (folder / "evaluation.json").write_text(json.dumps(report.as_dict(), indent=2), encoding="utf-8")


def print_models(report: ModelsReport) -> None:
    """Print F1 by label and model as a table, what is to be known about it, and where the rest lies."""
    from rich.table import Table

    from ...progress import page

    console = page()
    for models in _grouped(report, console.width):
        table = Table("F1 on the test volumes")
        for model in models:
            table.add_column(model.name, justify="right")
        for label in report.labels:
            table.add_row(label, *(_cell(model, label) for model in models))
        table.add_section()
        table.add_row("mean", *(f"{model.mean_f1:.3f}" for model in models))
        console.print(table)
    for remark in report.remarks:
        print(f"note: {remark}")
    if report.best is not None:
        print(f"best by {report.best_from}: {report.best.name}")
    print(f"charts, pictures and all numbers: {report.folder}/report.html, evaluation.json, scores.csv")


def _grouped(report: ModelsReport, width: int) -> list[list[ModelScores]]:
    """Return the models in groups whose tables are at most `width` characters wide, at least one in each."""
    first = max(len(label) for label in (*report.labels, "F1 on the test volumes")) + 4
    groups: list[list[ModelScores]] = []
    left = 0
    for model in report.models:
        wide = max(len(model.name), *(len(_cell(model, label)) for label in report.labels)) + 3
        if not groups or wide > left:
            groups.append([])
            left = width - first
        groups[-1].append(model)
        left -= wide
    return groups


def _cell(model: ModelScores, label: str) -> str:
    return f"{model.scores[label].f1:.3f}" if label in model.scores else "no such label"
