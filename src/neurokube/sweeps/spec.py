"""The sweep file: a training, ranges of its fields, and by what a model is judged.

    base: training.yaml
    ranges:
      learning_rate: 0.0003:0.01:log
      size: small,medium
      augmentation.noise: 0:0.6
    score: f1.membranes
    trials: 20

A range is written as for `neurokube tune --set`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from ..errors import ConfigurationError, UsageError
from ..networks import Card, load_bundle
from ..networks.bundle import Name, first_mistake
from ..training.config import AnyTraining, ForestTraining, Training, Translation, load_training, read_document
from ..tuning.ranges import Range, Settings, Value, parse_values
from ..volumes.store import placed
from ..workflow.spec import suggestion

_FIXED = {
    *("task", "name", "workspace", "volumes", "validation", "targets", "fine", "segmentation", "labels", "factor"),
    *("modality", "licence", "description", "threads", "devices", "loaders", "cache", "scratch", "loggers"),
}
"""Fields that say what is learned, where and with what means: they must be the same for trials to be compared."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: Name | None = Field(None, description="the sweep is written to <workspace>/<name> [default: the file's name]")
    workspace: str = "sweeps"
    base: str = Field(description="training file; its settings are the first trial")
    from_: str | None = Field(None, alias="from", description="model to fine-tune in each trial")
    ranges: dict[str, str] = Field(min_length=1)
    score: str | None = Field(
        None, description="f1 (the mean over labels), f1.LABEL or psnr, of the card's validation [default: f1 or psnr]"
    )
    trials: PositiveInt = 20
    round: PositiveInt = Field(4, description="trials that are proposed together, and may be trained at once")
    seed: Annotated[NonNegativeInt, Field(lt=2**31)] = 0

    @field_validator("ranges", mode="before")
    @classmethod
    def _listed(cls, ranges: Any) -> Any:
        if not isinstance(ranges, dict):
            return ranges
        return {name: ",".join(map(str, told)) if isinstance(told, list) else told for name, told in ranges.items()}


@dataclass(frozen=True)
class Sweep:
    """A sweep: `base` with what `ranges` say, `round` trials at a time; `folder` has all of it."""

    file: str
    folder: Path
    base: AnyTraining
    model: str | None
    ranges: tuple[Range, ...]
    score: str
    trials: int
    round: int
    seed: int

    @cached_property
    def start(self) -> Settings:
        """The settings of the base, by the names of ranges."""
        return {r.name: _plain(_get(self.base, r.name)) for r in self.ranges}

    def document(self, settings: Settings, means: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return the training file of a trial: the base with settings, and with what it may use."""
        document: dict[str, Any] = self.base.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for path, value in settings.items():
            if value != self.start[path]:
                _put(document, path, value)
        return {**document, **means, "name": name, "workspace": str(self.folder)}

    def devices(self, auto: int) -> int:
        """Return how many devices a trial trains on, where `auto` are to be had."""
        if self.base.devices != "auto":
            return self.base.devices
        return 1 if getattr(self.base, "method", "") == "cyclegan" else auto


def flat_scores(card: Card) -> dict[str, float]:
    """Return a card's scores of validation, as f1, f1.LABEL and psnr."""
    validation = card.scores.get("validation") or {}
    found: dict[str, float] = {}
    if f1 := validation.get("f1"):
        found = {"f1": round(sum(f1.values()) / len(f1), 6), **{f"f1.{label}": v for label, v in f1.items()}}
    return found | {name: v for name, v in validation.items() if isinstance(v, int | float)}


def load_sweep(path: str, trials: int | None = None) -> Sweep:
    """Read a sweep file; paths in it count from its folder.

    Raises:
        UsageError: where there is no such file, or a range says nothing that the training allows.
        ConfigurationError: where it, or the training, is wrong; names the field.
    """
    # as text: YAML would read 10:30 as a number of minutes
    document = read_document(path, "a sweep file", "holds no settings; docs/training.md shows one", yaml.BaseLoader)
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        mistake, first = first_mistake(error), error.errors()[0]
        if first["type"] == "extra_forbidden":
            known = [field.alias or name for name, field in _File.model_fields.items()]
            mistake = mistake.replace(first["msg"], f"unknown field{suggestion(str(first['loc'][-1]), known)}")
        elif first["type"] == "missing":
            mistake = mistake.replace(first["msg"], "this field is missing; add it")
        raise ConfigurationError(f"{path}: {mistake}") from None
    here = Path(path).parent
    base = load_training(placed(file.base, here))
    if isinstance(base, ForestTraining):
        raise ConfigurationError(f"{path}: base: {file.base} grows a forest; a sweep is of networks")
    name = file.name or Path(path).stem
    model = None if file.from_ is None else _model(file.from_, here)
    return Sweep(
        path,
        Path(placed(file.workspace, here)) / name,
        base,
        model,
        tuple(_range(path, base, field, text) for field, text in file.ranges.items()),
        _score(path, file, base),
        trials or file.trials,
        file.round,
        file.seed,
    )


def _model(name: str, here: Path) -> str:
    if (here / name).exists():
        name = placed(name, here)
    load_bundle(name)
    return name


def _score(path: str, file: _File, base: AnyTraining) -> str:
    """Return the score, which trainings with the base's validation will have.

    Raises:
        ConfigurationError: where they will not.
    """
    if isinstance(base, Translation):
        raise ConfigurationError(f"{path}: base: no figure tells whether a translation looks right; look at pictures")
    if not base.validation:
        raise ConfigurationError(f"{path}: score: {file.base} names no 'validation' volumes to score on; add them")
    if isinstance(base, Training):
        told = {label for volume in base.validation for label in volume.truth}
        known = ["f1", *(f"f1.{label}" for label in base.all_labels if label in told)]
    else:
        known = ["psnr"]
    score = file.score or known[0]
    if score not in known:
        raise ConfigurationError(f"{path}: score: there will be no '{score}'{suggestion(score, known)}")
    return score


def _range(path: str, base: AnyTraining, field: str, text: str) -> Range:
    where = f"{path}: ranges.{field}"
    known = _fields(base)
    if field.partition(".")[0] in _FIXED and field.partition(".")[0] in type(base).model_fields:
        raise UsageError(f"{where}: must be the same for all trials; set it in {Path(path).name}'s base")
    if field not in known:
        raise UsageError(f"{where}: a training has no such setting{suggestion(field, known)}")
    try:
        return parse_values(f"{where}: {text}", "", field, text, lambda value: _get(_with(base, field, value), field))
    except ConfigurationError as error:
        raise UsageError(f"{where}: {error}") from None


def _fields(base: AnyTraining) -> list[str]:
    """Return the settings that may vary, those of groups as `group.field`."""
    found: list[str] = []
    for name, field in type(base).model_fields.items():
        if name not in _FIXED:
            group = field.default
            found += [f"{name}.{part}" for part in type(group).model_fields] if isinstance(group, BaseModel) else [name]
    return found


def _with(base: AnyTraining, path: str, value: Value) -> AnyTraining:
    document = base.model_dump(exclude_unset=True)
    _put(document, path, value)
    return type(base).model_validate(document)


def _put(document: dict[str, Any], path: str, value: Value) -> None:
    *groups, field = path.split(".")
    for group in groups:
        document = document.setdefault(group, {})
    document[field] = value


def _get(model: Any, path: str) -> Value:
    for field in path.split("."):
        model = getattr(model, field)
    return model


def _plain(value: Value) -> Value:
    """Return a value as a table shows it: several numbers as text."""
    return " x ".join(map(str, value)) if isinstance(value, tuple) else value
