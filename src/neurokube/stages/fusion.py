"""Fusion: one boundary map out of the probability channels of several networks.

Each channel says how likely a voxel is something; in favour of a boundary, or against it, counts the logarithm of
its odds, times a weight (naive Bayes where weights are 1; logistic regression where they were fitted, by
`neurokube fuse`):

    boundary = sigmoid(bias + sum over channels of weight * logit(probability))

A value v of 0 to 255 stands for the probability (v + 1/2) / 256.  Weighted logits are whole numbers, from a table
made by decimal arithmetic, and so is their sum: the same bits come out on every machine, and a channel of weight 1
alone comes out as it went in.
"""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..blocks import Box
from ..errors import ConfigurationError
from ..networks.bundle import first_mistake
from ..volumes.store import placed
from .base import Data, Source, Stage, Step, Target, TiledStage, over_cells, pyramid_steps, same_grid

MOST_CHANNELS = 16
ChannelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]

_UNIT = 4096
"""Logits are counted in 1/4096: neighbouring results are at least 64 of these apart."""
_CONTEXT = Context(prec=28)


class Weights(BaseModel):
    """How much each channel counts, and what is there without any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: dict[ChannelName, Weight] = Field(min_length=1, max_length=MOST_CHANNELS)
    bias: Weight = 0.0


class Fusion(TiledStage):
    """One boundary map from the probabilities of several networks."""

    kind: ClassVar[str] = "fusion"
    version: ClassVar[int] = 1
    found: ClassVar[tuple[str, ...]] = ("settled",)
    unkeyed: ClassVar[tuple[str, ...]] = (*Stage.unkeyed, "channels", "weights", "bias", "fitted")

    channels: dict[ChannelName, str] = Field(
        min_length=1, max_length=MOST_CHANNELS, description="what is fused, by name: an output of another stage each"
    )
    weights: dict[ChannelName, Weight] | None = Field(None, description="how much each channel counts")
    bias: Weight | None = Field(None, description="with weights: what is added; below 0: fewer boundaries [default: 0]")
    fitted: str | None = Field(None, description="in place of weights: the file that 'neurokube fuse' wrote")
    settled: Weights | None = Field(None, description="what planning found")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.weights is None) == (self.fitted is None):
            raise ValueError("give either 'weights' or 'fitted'")
        if self.bias is not None and self.weights is None:
            raise ValueError("bias: goes with weights; 'fitted' has its own")
        return self

    def references(self) -> dict[str, str]:
        """Return what is read, a role a channel: `channels.NAME`."""
        return {f"channels.{name}": reference for name, reference in self.channels.items()}

    def placed(self, folder: Path) -> Self:
        """Return the stage with its file of weights as it is from anywhere."""
        return self if self.fitted is None else self.model_copy(update={"fitted": placed(self.fitted, folder)})

    def settle(self, sources: Mapping[str, Source], before: Stage | None) -> Self:
        """Return the stage with its weights, which its file may hold."""
        if self.fitted is not None:
            where, found = "fitted", load_weights(self.fitted)
        else:
            where, found = "weights", Weights(weights=self.weights or {}, bias=self.bias or 0.0)
        if missing := [name for name in self.channels if name not in found.weights]:
            raise ConfigurationError(
                f"{where}: no weight for the channel '{missing[0]}'; there are weights for {', '.join(found.weights)}"
            )
        if unused := [name for name in found.weights if name not in self.channels]:
            raise ConfigurationError(
                f"{where}: a weight for '{unused[0]}', which is no channel; name it in channels, with what it reads"
            )
        return self.model_copy(update={"settled": found})

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan one pass over tiles, and the pyramid."""
        assert self.settled is not None
        weights, roles = self.settled, {name: f"channels.{name}" for name in self.channels}
        first = next(iter(roles.values()))
        for role in roles.values():
            spec = sources[role].spec
            if not spec.is_grey:
                raise ConfigurationError(
                    f"{role}: '{sources[role].name}' holds {spec.dtype} {spec.kind}; only probabilities from 0 to 255 "
                    "can be fused: name an output of a semantics or boundaries stage"
                )
            same_grid(first, sources[first].spec, role, spec)
        output = self.output("boundaries", replace(sources[first].spec, channels=None), pyramid=True)

        def compute(cell: int, box: Box, data: Data) -> None:
            channels = {name: data.volume(role).read(box) for name, role in roles.items()}
            data.write("boundaries", box, fuse(channels, weights))

        return [
            Step("fusion", output.grid(), (Target(output),), over_cells(output.grid(), compute)),
            *pyramid_steps(output),
        ]


def load_weights(path: str) -> Weights:
    """Read what `neurokube fuse` wrote.

    Raises:
        ConfigurationError: where there is no such file, or it is something else.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return Weights.model_validate({name: document[name] for name in Weights.model_fields})
    except OSError as error:
        raise ConfigurationError(f"fitted: {path}: {error.strerror}; write it with 'neurokube fuse'") from None
    except ValidationError as error:
        raise ConfigurationError(f"fitted: {path}: {first_mistake(error)}; write it anew") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise ConfigurationError(f"fitted: {path}: not what 'neurokube fuse' writes") from None


def fuse(channels: Mapping[str, NDArray[np.uint8]], weights: Weights) -> NDArray[np.uint8]:
    """Return channels, arrays of one shape by name, as one, 0 to 255; every name has a weight."""
    total: NDArray[np.int32] | None = None
    for name, values in channels.items():
        evidence = _evidence(weights.weights[name])[values]
        total = evidence if total is None else np.add(total, evidence, out=total)
    assert total is not None
    first, table = _values()
    total += np.int32(_whole(Decimal(weights.bias)) - first)
    return table[np.clip(total, 0, len(table) - 1, out=total)]


def logits() -> NDArray[np.float64]:
    """Return what each value 0 to 255 says, as the logarithm of its odds."""
    value = np.arange(256)
    return np.log((2 * value + 1) / (511 - 2 * value))


@lru_cache
def _evidence(weight: float) -> NDArray[np.int32]:
    """Return the weighted logit of each value 0 to 255."""
    with localcontext(_CONTEXT):
        return np.array([_whole(logit * Decimal(weight)) for logit in _exact_logits()], np.int32)


@lru_cache(maxsize=1)
def _exact_logits() -> list[Decimal]:
    return [_log_odds(2 * v + 1, 511 - 2 * v) for v in range(256)]


@lru_cache(maxsize=1)
def _values() -> tuple[int, NDArray[np.uint8]]:
    """Return the value 0 to 255 of each logit from the returned one on; below it is 0, above the last one 255."""
    starts = [_whole(_log_odds(v, 256 - v)) for v in range(1, 256)]
    first = starts[0] - 1
    table = np.searchsorted(starts, np.arange(first, starts[-1] + 1), side="right")
    return first, table.astype(np.uint8)


def _log_odds(in_favour: int, against: int) -> Decimal:
    with localcontext(_CONTEXT):
        return (Decimal(in_favour) / Decimal(against)).ln()


def _whole(logit: Decimal) -> int:
    with localcontext(_CONTEXT):
        return round(logit * _UNIT)
