"""Score several models on the same annotated volumes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from ...errors import ConfigurationError, NeuroKubeError, UsageError, surroundings
from ...networks import SHIPPED, Bundle, load_bundle
from ...networks.bundle import installed_folder
from ...progress import progress
from ...training.config import AnnotatedVolume
from ...training.truth import described
from ...volumes import open_volume
from ..curves import LEVELS, Curve, mean_f1
from .page import write_page
from .prediction import channels_of, check_images, predict_volume
from .report import ModelScores, ModelsReport, Origin, Score, write_numbers
from .sections import Section, section_of
from .truth import TruthFile, load_truth, loaded, region_of

_MOST_PERMUTATIONS = 16
_HALF = 128
Curves = dict[str, Curve]
"""A curve a label."""


@dataclass
class _Model:
    """A model and what was counted of it so far."""

    name: str
    bundle: Bundle
    labels: tuple[str, ...]
    """Those that are scored, in the order of the card."""
    validation: Curves = field(default_factory=dict)
    test: Curves = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class _Survey:
    """What the annotated volumes hold, looked at before anything is predicted."""

    volumes: dict[str, list[dict[str, Any]]]
    sections: dict[str, Section]
    """The section that shows a label, for the labels of which the test volumes have a voxel."""


def evaluate_models(
    models: Sequence[str], truth: str, folder: str, *, permutations: int = 1, quiet: bool = False
) -> ModelsReport:
    """Score models on the test volumes of a file of truths; write evaluation.json, scores.csv and report.html.

    A threshold is the one of the best F1 on the file's validation volumes; without any, the one on the model's
    card.  The best model is the one with the highest mean F1 there.  `models` are names or folders of bundles;
    `permutations` flips and turns are averaged.  One volume, and one prediction of it, is in memory at a time.

    Raises:
        UsageError: where a file or model is missing, or a model is named twice.
        ConfigurationError: where the file of truths is wrong, or a model fits no volume or label of it.
        DataError: where a volume or a model is damaged, or a truth is empty or does not fit its image.
    """
    if not 1 <= permutations <= _MOST_PERMUTATIONS:
        raise UsageError(f"--permutations {permutations}: give 1 to {_MOST_PERMUTATIONS}")
    bundles = _opened(models)
    file = load_truth(truth)
    _make(folder)
    survey = _surveyed(file)
    contenders = _contenders(bundles, tuple(survey.sections), truth)
    remarks = _fitting(contenders, file, permutations)
    with progress(quiet=quiet) as bars:
        _count(contenders, file.validation, "validation", {}, permutations, bars)
        _count(contenders, file.test, "test", survey.sections, permutations, bars)
    report = _report(contenders, file, survey, remarks, folder=folder, truth=truth, permutations=permutations)
    try:
        write_numbers(report)
        write_page(report, survey.sections)
    except OSError as error:
        raise surroundings(error, folder) or NeuroKubeError(f"{folder}: {error.strerror}") from None
    return report


def _opened(models: Sequence[str]) -> dict[str, Bundle]:
    """Return the models by the name that tells them apart."""
    if not models:
        raise UsageError("--models: name at least one model, or several with commas between")
    bundles: dict[Path, Bundle] = {}
    given: dict[Path, str] = {}
    for model in models:
        bundle = load_bundle(model)
        place = bundle.folder.resolve()
        if place in bundles:
            raise UsageError(f"--models: {given[place]} and {model} are the same model; name it once")
        bundles[place], given[place] = bundle, model
    names = [bundle.card.name for bundle in bundles.values()]
    return {
        bundle.card.name if names.count(bundle.card.name) == 1 else given[place]: bundle
        for place, bundle in bundles.items()
    }


def _make(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise surroundings(error, folder) or UsageError(f"{folder}: {error.strerror}; name another folder") from None


def _surveyed(file: TruthFile) -> _Survey:
    """Look at every volume once: what is wrong with one is said before hours of prediction."""
    volumes: dict[str, list[dict[str, Any]]] = {"test": [], "validation": []}
    sections: dict[str, Section] = {}
    for role, entries in (("validation", file.validation), ("test", file.test)):
        for number, entry in enumerate(entries):
            volume = loaded(entry, file.labels)
            region = region_of(entry)
            volumes[role] += [{**row, "region": str(region)} for row in described([volume], file.labels)]
            for k, label in enumerate(file.labels if role == "test" else ()):
                found = section_of(volume, label, np.uint32(1 << k), number, region.start[0])
                if found is not None and (label not in sections or found.voxels > sections[label].voxels):
                    sections[label] = found
    return _Survey(volumes, {label: sections[label] for label in file.labels if label in sections})


def _contenders(bundles: Mapping[str, Bundle], labels: Sequence[str], truth: str) -> list[_Model]:
    contenders = []
    for name, bundle in bundles.items():
        shared = tuple(label for label in bundle.card.labels if label in labels)
        if not shared:
            raise ConfigurationError(
                f"{name}: predicts {', '.join(bundle.card.labels)}, but {truth} has the truth of "
                f"{', '.join(labels)}; name labels in 'truth:' as the model does"
            )
        contenders.append(_Model(name, bundle, shared))
    return contenders


def _fitting(contenders: Sequence[_Model], file: TruthFile, permutations: int) -> list[str]:
    """Check that each model can predict each volume; return what a person should know about it."""
    entries = [*file.test, *file.validation]
    found = [check_images(model.name, model.bundle, model.labels, entries, permutations) for model in contenders]
    return [remark for remarks in found for remark in remarks]


def _count(
    contenders: Sequence[_Model],
    entries: Sequence[AnnotatedVolume],
    role: str,
    sections: Mapping[str, Section],
    permutations: int,
    bars: Progress,
) -> None:
    """Predict volumes by all models and add what is right and wrong to their curves; keep what will be shown."""
    if not entries:
        return
    total = sum(region_of(entry).shape[0] for entry in entries) * len(contenders)
    bar = bars.add_task(role, total=total, unit="sections")
    for number, entry in enumerate(entries):
        labels = tuple(dict.fromkeys(label for model in contenders for label in model.labels))
        volume = loaded(entry, labels)
        for model in contenders:
            started = time.monotonic()
            predicted = predict_volume(
                model.bundle,
                open_volume(entry.image),
                region_of(entry),
                labels=model.labels,
                permutations=permutations,
                channels=channels_of(model.bundle, entry),
                advance=lambda n: bars.advance(bar, n),
            )
            model.seconds += time.monotonic() - started
            curves = model.test if role == "test" else model.validation
            for label, channel in zip(model.labels, predicted, strict=True):
                bit = np.uint32(1 << labels.index(label))
                curve = curves.get(label, Curve.empty())
                for values, positive, known in zip(channel, volume.positive, volume.known, strict=True):
                    curve = curve.plus(values, positive & bit, known & bit)
                curves[label] = curve
                if label in sections and sections[label].volume == number:
                    sections[label].keep(model.name, channel)


def _report(
    contenders: Sequence[_Model],
    file: TruthFile,
    survey: _Survey,
    remarks: list[str],
    *,
    folder: str,
    truth: str,
    permutations: int,
) -> ModelsReport:
    labels = tuple(survey.sections)
    missing = [label for label in file.labels if label not in labels]
    remarks += [f"the test volumes have no voxel of '{label}': it is not scored" for label in missing]
    if len({frozenset(model.labels) for model in contenders}) > 1:
        remarks.append(
            "the models have different labels: a mean is over those that a model has; where the best is chosen, one "
            "that it lacks counts 0"
        )
    scored = [_scored(model, labels, bool(file.validation), remarks) for model in contenders]
    best, best_from = _best(scored, bool(file.validation), remarks)
    return ModelsReport(
        folder=folder,
        truth=str(Path(truth).absolute()),
        permutations=permutations,
        labels=labels,
        models=tuple(scored),
        best=best,
        best_from=best_from,
        volumes=survey.volumes,
        remarks=tuple(remarks),
    )


def _scored(model: _Model, labels: Sequence[str], has_validation: bool, remarks: list[str]) -> ModelScores:
    scores = {}
    for label in (label for label in labels if label in model.labels):
        level, origin = _threshold(model, label)
        scores[label] = Score(model.test[label], level, origin)
        if origin == "default":
            remarks.append(f"{model.name}: no threshold for '{label}' in validation or card: 0.5 is used")
        elif has_validation and origin == "card":
            remarks.append(f"{model.name}: the validation volumes do not show '{label}': its card's threshold is used")
    bundle = model.bundle
    return ModelScores(
        name=model.name,
        model=lasting_name(bundle),
        sha256=bundle.card.sha256,
        labels=bundle.card.labels,
        scores=scores,
        selection=_selection(model, labels, has_validation),
        seconds=model.seconds,
    )


def _threshold(model: _Model, label: str) -> tuple[int, Origin]:
    curve = model.validation.get(label)
    if curve is not None and curve.known:
        return curve.best, "validation"
    on_card = model.bundle.card.thresholds.get(label)
    if on_card is not None:
        return min(LEVELS - 1, max(1, round(on_card * (LEVELS - 1)))), "card"
    return _HALF, "default"


def _selection(model: _Model, labels: Sequence[str], has_validation: bool) -> float | None:
    """Return the mean F1 outside of the test by which a model is chosen; None where nothing is known.

    Of `labels`, those of the test, one that the model lacks counts 0: else who knows little would be the best.
    """
    share = sum(label in model.labels for label in labels) / len(labels)
    if has_validation:
        known = [curve for curve in model.validation.values() if curve.known]
        return share * mean_f1(known) if known else None
    found = list(_card_scores(model.bundle.card.scores, model.labels))
    return share * sum(found) / len(found) if found else None


def _card_scores(scores: Mapping[str, Any], labels: Sequence[str]) -> Iterator[float]:
    """Yield the validation F1 of labels, as far as a card has them: models from elsewhere may say other things."""
    validation = scores.get("validation")
    by_label = validation.get("f1") if isinstance(validation, dict) else None
    if isinstance(by_label, dict):
        yield from (float(by_label[label]) for label in labels if isinstance(by_label.get(label), int | float))


def _best(models: Sequence[ModelScores], has_validation: bool, remarks: list[str]) -> tuple[ModelScores | None, str]:
    best_from = "mean F1 on the validation volumes" if has_validation else "the validation scores on the cards"
    if not has_validation:
        remarks.append("no 'validation:' in the file of truths: thresholds and choice go by the models' cards")
    ranked = [model for model in models if model.selection is not None]
    if not ranked:
        remarks.append("no model has a validation score: none is called the best; add 'validation:' volumes")
        return None, best_from
    remarks += [f"{model.name}: no validation score, so it is not chosen" for model in models if model not in ranked]
    return max(ranked, key=lambda model: model.selection or 0.0), best_from


def lasting_name(bundle: Bundle) -> str:
    """Return what finds the model from anywhere: its name where it is installed or shipped, else its path."""
    is_known = bundle.folder.parent in (installed_folder(), SHIPPED)
    return bundle.folder.name if is_known else str(bundle.folder)
