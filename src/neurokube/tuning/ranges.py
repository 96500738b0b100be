"""Ranges: which settings are tuned, and between what.

A setting is named `stage.field`, or where there are no stages by its field.  What lies between the boundary map and
the segmentation can be tuned: the watershed and what is made of its fragments, and the multicut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from ..errors import UsageError
from ..stages import Stage
from ..stages.costs import Statistic
from ..volumes import VolumeSpec
from ..workflow.spec import plain, suggestion

Value = Any
"""A number, a truth value, a word, or None."""

Settings = dict[str, Value]
"""Values by `stage.field`."""

_DIGITS = 4
"""Significant digits of a proposed number; more would say nothing."""


@dataclass(frozen=True)
class Range:
    """What a setting may be: one of `choices`, or a number from `low` to `high`, both included.

    `whole` numbers have no fraction; of a `log` range each tenfold is as likely as another.
    """

    stage: str
    field: str
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    whole: bool = False
    log: bool = False

    @property
    def name(self) -> str:
        """`stage.field`; the field alone, where it is of no stage."""
        return f"{self.stage}.{self.field}" if self.stage else self.field

    def __str__(self) -> str:
        if self.choices:
            return ",".join(map(shown, self.choices))
        return f"{shown(self.low)}:{shown(self.high)}" + (":log" if self.log else "")

    def __contains__(self, value: Value) -> bool:
        if self.choices:
            return value in self.choices
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def tidy(self, value: Value) -> Value:
        """Return a proposed value with few digits, still within the range."""
        if self.choices:
            return value
        value = min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)
        return round(value) if self.whole else value

    def distribution(self) -> Any:
        """Return the range as Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def shown(value: Value) -> str:
    """Return a value as a person writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def grid(ranges: Sequence[Range], most: int) -> list[Settings]:
    """Return all combinations, the first range changing slowest; nothing where there are more, or no end of them."""
    if not all(r.choices for r in ranges) or prod(len(r.choices) for r in ranges) > most:
        return []
    return [
        dict(zip([r.name for r in ranges], values, strict=True)) for values in product(*(r.choices for r in ranges))
    ]


def usual_ranges(fragments: str, multicut: str, stages: Mapping[str, Stage], spec: VolumeSpec) -> list[Range]:
    """Return what is tuned where nobody says otherwise; `spec` is that of the boundary map.

    Lengths are nanometres, as widths of cells are; only smoothing, which is against noise, counts in voxels.  What
    is set at present is always within.
    """
    found = [
        Range(fragments, "threshold", low=32, high=224, whole=True),
        Range(fragments, "reach", low=40.0, high=250.0),
        Range(fragments, "distance_weight", low=0.0, high=1.0),
        Range(fragments, "smoothing", low=0.0, high=3 * min(spec.voxel_size)),
        Range(fragments, "depth", low=0.005, high=0.2, log=True),
        Range(fragments, "smallest", low=10, high=1000, whole=True, log=True),
        Range(multicut, "bias", low=0.05, high=0.95),
        Range(multicut, "size_weight", low=0.0, high=1.0),
        Range(multicut, "smallest", low=0, high=1000, whole=True),
    ]
    if getattr(stages[multicut], "forest", None) is None:
        found.append(Range(multicut, "statistic", choices=get_args(Statistic)))
    if spec.is_coarse:
        found += [
            Range(multicut, "z_bias", low=0.05, high=0.95),
            Range(multicut, "z_weight", low=0.1, high=10.0, log=True),
        ]
    return [_with(r, getattr(stages[r.stage], r.field)) for r in found]


def _with(each: Range, value: Value) -> Range:
    """Return the range, wide enough for a value."""
    if value is None or value in each:
        return each
    # a logarithm has no 0
    log = each.log and value > 0
    low, high = min(each.low, value), max(each.high, value)
    return Range(each.stage, each.field, low=low, high=high, whole=each.whole, log=log)


def parse_ranges(texts: Sequence[str], stages: Mapping[str, Stage], others: Mapping[str, str]) -> list[Range]:
    """Read `stage.field=LOW:HIGH[:log]` or `stage.field=A,B,C`, of the stages that can be tuned.

    `others` are stages that cannot be, each with the reason.

    Raises:
        UsageError: where a text says nothing that a stage allows.
    """
    ranges = [_parse(text, stages, others) for text in texts]
    for k, each in enumerate(ranges):
        if each.name in [r.name for r in ranges[:k]]:
            raise UsageError(f"--set {each.name}: given twice; leave one out")
    return sorted(ranges, key=lambda r: list(stages).index(r.stage))


def _parse(text: str, stages: Mapping[str, Stage], others: Mapping[str, str]) -> Range:
    name, equals, values = text.partition("=")
    stage, dot, field = name.strip().partition(".")
    if not (equals and dot and values.strip()):
        raise UsageError(
            f"--set {text}: write it as stage.field=LOW:HIGH or stage.field=A,B,C, as multicut.bias=0.2:0.8"
        )
    if stage in others:
        raise UsageError(f"--set {name}: {others[stage]}; what can be tuned is of {', '.join(stages)}")
    if stage not in stages:
        raise UsageError(f"--set {name}: there is no stage '{stage}'{suggestion(stage, stages)}")
    model = type(stages[stage])
    fields = [f for f in model.model_fields if f not in (*model.roles, *model.unkeyed, *model.found)]
    if field not in fields:
        raise UsageError(f"--set {name}: '{stage}' has no setting '{field}' to tune{suggestion(field, fields)}")
    return parse_values(
        f"--set {text}", stage, field, values, lambda value: getattr(_with_value(stages[stage], field, value), field)
    )


def parse_values(where: str, stage: str, field: str, values: str, taken: Callable[[Value], Value]) -> Range:
    """Read `LOW:HIGH[:log]` or `A,B,C`; `taken` returns a value as the field has it, `where` begins all complaints.

    Raises:
        UsageError: where the field does not allow it; `taken` says so by pydantic's ValidationError.
    """
    parts = values.split(":")
    if len(parts) == 1:
        choices = [_checked(where, field, part, taken) for part in values.split(",")]
        return Range(stage, field, choices=tuple(dict.fromkeys(choices)))
    if len(parts) > 3 or (len(parts) == 3 and parts[2].strip() != "log"):
        raise UsageError(f"{where}: write a range as LOW:HIGH, or LOW:HIGH:log")
    low, high = (_checked(where, field, end, taken) for end in parts[:2])
    log = len(parts) == 3
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        example = f"{stage}.{field}=A,B,C" if stage else f"{field}: A,B,C"
        raise UsageError(f"{where}: a range is between two numbers; write choices as {example}")
    if low >= high:
        raise UsageError(f"{where}: LOW must be below HIGH; turn them round, or write one value alone")
    if log and low <= 0:
        raise UsageError(f"{where}: a range with ':log' begins above 0; choose a LOW above it")
    return Range(stage, field, low=low, high=high, whole=isinstance(low, int) and isinstance(high, int), log=log)


def _checked(where: str, field: str, word: str, taken: Callable[[Value], Value]) -> Value:
    """Return the value that a word stands for, as the field has it."""
    try:
        value = taken(yaml.safe_load(word))
    except yaml.YAMLError:
        raise UsageError(f"{where}: '{word}' is no value; write a number or a word") from None
    except ValidationError as error:
        raise UsageError(f"{where}: {field}: {plain(error.errors()[0])}") from None
    if value is not None and not isinstance(value, bool | int | float | str):
        raise UsageError(f"{where}: only numbers and words can be tuned; leave it out")
    return value


def _with_value(stage: Stage, field: str, value: Value) -> Stage:
    return type(stage).model_validate({**stage.model_dump(exclude_unset=True), field: value})


def with_settings(stages: Mapping[str, Stage], settings: Mapping[str, Value]) -> dict[str, Stage]:
    """Return stages by name, with settings `stage.field` changed."""
    changed: dict[str, dict[str, Value]] = {}
    for name, value in settings.items():
        stage, _, field = name.partition(".")
        changed.setdefault(stage, {})[field] = value
    return {name: stage.model_copy(update=changed.get(name, {})) for name, stage in stages.items()}
