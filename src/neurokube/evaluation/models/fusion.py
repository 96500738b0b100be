"""Fit the weights by which the stage `fusion` makes one boundary map of the channels of several models.

Logistic regression on the validation volumes, from exact counts of every combination of values that occurs: the
weights are those under which the truth is most likely, given the logits of the channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from rich.progress import Progress
from scipy.special import expit

from ... import __version__
from ...errors import ConfigurationError, DataError, NeuroKubeError, UsageError, surroundings
from ...networks import Bundle, load_bundle
from ...progress import progress
from ...stages.fusion import ChannelName, Weights, fuse, logits
from ...training.config import AnnotatedVolume
from ...volumes import open_volume
from ..curves import Curve
from .evaluate import lasting_name
from .prediction import channels_of, check_images, predict_volume
from .truth import TruthFile, load_truth, loaded, region_of

MOST = 8
"""Channels, so that the values of a voxel fit into 64 bits."""
_RIDGE = 1e-4
"""How much large weights cost: nothing to speak of, but a channel without an error would ask for endless ones."""
_DIGITS = 4
_NAME = TypeAdapter(ChannelName)
Values = NDArray[np.uint8]


@dataclass(frozen=True)
class Channel:
    """A label of a model, and what the fusion calls it."""

    name: str
    bundle: Bundle
    label: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the channel that `[NAME=]MODEL:LABEL` stands for; the name is the label where none is given.

        Raises:
            UsageError: where it says something else, or the model lacks the label.
            DataError: where the model is damaged.
        """
        name, given, rest = text.partition("=") if "=" in text else ("", "", text)
        model, colon, label = rest.rpartition(":")
        if not (colon and model and label) or (given and not name):
            raise UsageError(f"--channels {text}: write it as MODEL:LABEL or NAME=MODEL:LABEL, as net/model:membranes")
        try:
            name = _NAME.validate_python(name or label)
        except ValidationError:
            raise UsageError(
                f"--channels {text}: '{name or label}' cannot be a channel's name; give it one of letters, digits, "
                f"'_' and '-', as membranes={rest}"
            ) from None
        bundle = load_bundle(model)
        if label not in bundle.card.labels:
            raise UsageError(f"--channels {text}: {model} has no '{label}'; it has {', '.join(bundle.card.labels)}")
        return cls(name, bundle, label)


@dataclass(frozen=True)
class Joint:
    """How many voxels have each combination of channel values and are not, and are, a boundary.

    A key holds a combination, eight bits a channel; `keys` (n,) uint64 in ascending order, `counts` (n, 2) int64.
    """

    channels: int
    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the counts of no voxels."""
        return cls(channels, np.zeros(0, np.uint64), np.zeros((0, 2), np.int64))

    @property
    def values(self) -> Values:
        """The values of each combination, (n, channels)."""
        shifts = np.arange(8 * self.channels - 8, -8, -8).astype(np.uint64)
        return (self.keys[:, None] >> shifts).astype(np.uint8)

    def plus(self, channels: Sequence[Values], truth: NDArray[Any], known: NDArray[Any]) -> "Joint":
        """Return the counts with more voxels, arrays (z, y, x) of one shape; only known voxels count."""
        keys, counts = [self.keys], [self.counts]
        for z in range(len(truth)):
            here = known[z] != 0
            key = np.zeros(np.count_nonzero(here), np.uint64)
            for values in channels:
                key = key << np.uint64(8) | values[z][here]
            own, where = np.unique(key, return_inverse=True)
            sides = np.bincount(2 * where + (truth[z][here] != 0), minlength=2 * len(own))
            keys.append(own)
            counts.append(sides.reshape(-1, 2))
        merged, where = np.unique(np.concatenate(keys), return_inverse=True)
        total = np.zeros((len(merged), 2), np.int64)
        np.add.at(total, where, np.concatenate(counts))
        return Joint(self.channels, merged, total)

    def named(self, names: Sequence[str]) -> dict[str, Values]:
        """Return the values of each combination, (n,), by the names of the channels."""
        return dict(zip(names, self.values.T, strict=True))

    def curve(self, predicted: Values) -> Curve:
        """Return the curve of what is predicted, (n,), for each combination."""
        counts = np.zeros((256, 2), np.int64)
        np.add.at(counts, predicted, self.counts)
        return Curve(counts.T.copy())


def fit(joint: Joint) -> tuple[NDArray[np.float64], float]:
    """Return the weights (channels,) and the bias of a logistic regression, by Newton's method (IRLS)."""
    x = np.column_stack([logits()[joint.values], np.ones(len(joint.keys))])
    positive, voxels = joint.counts[:, 1].astype(np.float64), joint.counts.sum(1).astype(np.float64)
    total = voxels.sum()
    ridge = np.full(x.shape[1], _RIDGE)
    ridge[-1] = 0

    def loss(w: NDArray[np.float64]) -> float:
        score = x @ w
        return float((voxels @ np.logaddexp(0, score) - positive @ score) / total + (ridge * w * w).sum() / 2)

    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = expit(x @ w)
        slope = x.T @ (voxels * p - positive) / total + ridge * w
        curvature = (x * (voxels * p * (1 - p))[:, None]).T @ x / total + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        # far from the best weights a whole step can lead away from them
        while np.abs(step).max() > 1e-9 and loss(w - step) > loss(w):
            step = step / 2
        w = w - step
        if np.abs(step).max() < 1e-7:
            break
    return w[:-1], float(w[-1])


@dataclass(frozen=True)
class Result:
    """How well one map tells boundaries: `level` of 255 is the threshold of the best F1 in validation."""

    level: int
    validation: float
    test: float

    @classmethod
    def of(cls, validation: Curve, test: Curve) -> Self:
        """Choose the threshold in validation and score it in both."""
        level = validation.best
        return cls(level, float(validation.f1[level]), float(test.f1[level]))

    def as_dict(self) -> dict[str, float]:
        """Return plain values for YAML and JSON."""
        return {"threshold": _short(self.level / 255), "validation": _short(self.validation), "test": _short(self.test)}


@dataclass(frozen=True)
class FusionReport:
    """Fitted weights, and what they bring."""

    file: str
    truth: str
    label: str
    weights: Weights
    channels: tuple[Channel, ...]
    fusion: Result
    alone: dict[str, Result]
    voxels: dict[str, int]
    remarks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values; the stage reads `weights` and `bias`."""
        return {
            **self.weights.model_dump(),
            "label": self.label,
            "threshold": self.fusion.as_dict()["threshold"],
            "channels": {
                channel.name: {
                    "model": lasting_name(channel.bundle),
                    "label": channel.label,
                    "sha256": channel.bundle.card.sha256,
                }
                for channel in self.channels
            },
            "f1": {
                "fusion": self.fusion.as_dict(),
                "alone": {name: result.as_dict() for name, result in self.alone.items()},
            },
            "voxels": self.voxels,
            "truth": self.truth,
            "neurokube": __version__,
            "remarks": list(self.remarks),
        }


def fit_fusion(
    channels: Sequence[str],
    truth: str,
    output: str,
    *,
    label: str | None = None,
    permutations: int = 1,
    overwrite: bool = False,
    quiet: bool = False,
) -> FusionReport:
    """Fit weights on the validation volumes of a file of truths, score them on its test volumes, write `output`.

    `channels` are `[NAME=]MODEL:LABEL`; `label` is the truth that is fitted [default: the file's only one].  All
    channels of one volume are in memory at a time.

    Raises:
        UsageError: where a file, model or label is missing, a name is given twice, or `output` is there.
        ConfigurationError: where the file of truths is wrong or has no validation, or a model fits no volume.
        DataError: where a volume or a model is damaged, or the truth is empty or does not fit its image.
    """
    if Path(output).exists() and not overwrite:
        raise UsageError(f"{output}: is there already; choose another name with --output, or give --overwrite")
    found = _parsed(channels)
    file = load_truth(truth)
    label = _label(file, label, truth)
    entries = {
        role: [entry for entry in entries if label in entry.truth]
        for role, entries in (("validation", file.validation), ("test", file.test))
    }
    if not entries["validation"]:
        raise ConfigurationError(
            f"{truth}: no volume under 'validation:' has the truth of '{label}'; weights are fitted there, so name one"
        )
    models = _by_model(found)
    every = [entry for role in entries.values() for entry in role]
    remarks: list[str] = []
    for bundle, labels in models:
        remarks += check_images(bundle.card.name, bundle, labels, every, permutations)
    for entry in every:
        # what is wrong with one is said before hours of prediction
        loaded(entry, (label,))
    with progress(quiet=quiet) as bars:
        joints = {role: _count(found, models, each, label, permutations, role, bars) for role, each in entries.items()}
    fitted, bias = fit(_both_sides(joints["validation"], label, truth))
    names = [channel.name for channel in found]
    weights = Weights(weights=dict(zip(names, map(_short, fitted), strict=True)), bias=_short(bias))
    report = FusionReport(
        file=output,
        truth=str(Path(truth).absolute()),
        label=label,
        weights=weights,
        channels=tuple(found),
        fusion=Result.of(*(joint.curve(fuse(joint.named(names), weights)) for joint in joints.values())),
        alone={
            name: Result.of(*(joint.curve(joint.named(names)[name]) for joint in joints.values())) for name in names
        },
        voxels={role: int(joint.counts.sum()) for role, joint in joints.items()},
        remarks=tuple(dict.fromkeys(remarks)),
    )
    _write(report)
    return report


def _parsed(channels: Sequence[str]) -> list[Channel]:
    if not 1 <= len(channels) <= MOST:
        raise UsageError(f"--channels: name 1 to {MOST}, as A:membranes,B:boundaries")
    found = [Channel.parse(text) for text in channels]
    names = [channel.name for channel in found]
    if twice := [(name, text) for name, text in zip(names, channels, strict=True) if names.count(name) > 1]:
        name, text = twice[-1]
        raise UsageError(f"--channels: two are called '{name}'; give one another name, as other={text.split('=')[-1]}")
    return found


def _label(file: TruthFile, label: str | None, truth: str) -> str:
    if label is None and len(file.labels) > 1:
        raise UsageError(f"{truth}: has the truth of {', '.join(file.labels)}; choose what to fit with --label")
    if label is not None and label not in file.labels:
        raise UsageError(f"--label {label}: the test volumes of {truth} have the truth of {', '.join(file.labels)}")
    return label or file.labels[0]


def _by_model(channels: Sequence[Channel]) -> list[tuple[Bundle, tuple[str, ...]]]:
    """Return each model once, with the labels that are wanted of it."""
    bundles = {channel.bundle.folder: channel.bundle for channel in channels}
    return [
        (bundle, tuple(dict.fromkeys(c.label for c in channels if c.bundle.folder == folder)))
        for folder, bundle in bundles.items()
    ]


def _count(
    channels: Sequence[Channel],
    models: Sequence[tuple[Bundle, tuple[str, ...]]],
    entries: Sequence[AnnotatedVolume],
    label: str,
    permutations: int,
    role: str,
    bars: Progress,
) -> Joint:
    """Predict volumes by all models and count what comes out together."""
    total = sum(region_of(entry).shape[0] for entry in entries) * len(models)
    bar = bars.add_task(role, total=total, unit="sections")
    joint = Joint.empty(len(channels))
    for entry in entries:
        predicted: dict[tuple[Path, str], Values] = {}
        for bundle, labels in models:
            maps = predict_volume(
                bundle,
                open_volume(entry.image),
                region_of(entry),
                labels=labels,
                permutations=permutations,
                channels=channels_of(bundle, entry),
                advance=lambda n: bars.advance(bar, n),
            )
            predicted |= {(bundle.folder, name): values for name, values in zip(labels, maps, strict=True)}
        volume = loaded(entry, (label,))
        wanted = [predicted[channel.bundle.folder, channel.label] for channel in channels]
        joint = joint.plus(wanted, volume.positive, volume.known)
    return joint


def _both_sides(joint: Joint, label: str, truth: str) -> Joint:
    for side, what in enumerate((f"a voxel that is not '{label}'", f"a voxel of '{label}'")):
        if not joint.counts[:, side].any():
            raise DataError(f"{truth}: the validation volumes do not show {what}; name one that shows both")
    return joint


def _short(number: float) -> float:
    return round(float(number), _DIGITS)


def _write(report: FusionReport) -> None:
    text = yaml.safe_dump(report.as_dict(), sort_keys=False, allow_unicode=True, width=100)
    try:
        Path(report.file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise surroundings(error, report.file) or NeuroKubeError(f"{report.file}: {error.strerror}") from None


def print_fusion(report: FusionReport) -> None:
    """Print weights, and F1 of the fusion beside that of each channel alone, as a table."""
    from rich.table import Table

    from ...progress import page

    table = Table(report.label, "weight", "threshold", "F1 in validation", "F1 in the test")
    for name, result in report.alone.items():
        table.add_row(name, f"{report.weights.weights[name]:.3f}", *_cells(result))
    table.add_section()
    table.add_row("fusion", f"bias {report.weights.bias:.3f}", *_cells(report.fusion))
    page().print(table)
    for remark in report.remarks:
        print(f"note: {remark}")
    read = ", ".join(f"{channel.name}: STAGE.{channel.label}" for channel in report.channels)
    print(f"{report.file} is ready; a workflow uses it as  fusion: {{channels: {{{read}}}, fitted: {report.file}}}")


def _cells(result: Result) -> list[str]:
    return [f"{result.level / 255:.2f}", f"{result.validation:.4f}", f"{result.test:.4f}"]
