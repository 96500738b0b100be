"""What a stage needs that may ask a forest which edges of the graph are boundaries."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..blocks import Grid
from ..errors import ConfigurationError, UsageError
from ..networks.bundle import BEST, ForestBundle, ForestCard
from ..networks.forest import Forest, load_forest, trees
from ..networks.proposal import far, fits
from ..volumes.store import placed
from ..volumes.volume import Nanometres, nanometres
from .base import Data, Source, Stage
from .features import feature_names, missing_channels, read_features

_DECISIVE = {"architecture", "channels", "filters"}
"""What a card says that decides the probabilities, beside the weights."""


class SettledForest(BaseModel):
    """What was found when a run was planned: the forest's weights, what it sees, and the size of its voxels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    card: str = Field(description="digest of what the card says that decides the probabilities")
    voxel_size: Nanometres


class ForestStage(Stage):
    """A stage to which a forest may tell the probability of a boundary of each edge."""

    found: ClassVar[tuple[str, ...]] = ("settled",)
    unkeyed: ClassVar[tuple[str, ...]] = (*Stage.unkeyed, "forest")

    forest: str | None = Field(
        None,
        description="a forest that tells boundaries, by name or its bundle's folder [default: the boundary map's mean]",
    )
    settled: SettledForest | None = Field(None, description="what planning found")

    @cached_property
    def bundle(self) -> ForestBundle:
        """The forest with its card."""
        assert self.forest is not None
        return load_forest(self.forest)

    @cached_property
    def trees(self) -> Forest:
        """The forest itself."""
        return trees(self.bundle)

    def placed(self, folder: Path) -> Self:
        """Return the stage with its forest, where that is a path and no name, as it is from anywhere."""
        if self.forest is None or not (folder / self.forest).exists():
            return self
        return self.model_copy(update={"forest": placed(self.forest, folder)})

    def settle(self, sources: Mapping[str, Source], before: Stage | None) -> Self:
        """Return the stage with the weights of its forest, which fits the graph.

        Raises:
            ConfigurationError: where it does not.
        """
        if self.forest is None:
            return self.model_copy(update={"settled": None})
        if self.forest.startswith(BEST):
            raise ConfigurationError("forest: 'best of' chooses among networks; name a forest")
        card, size = self._card, sources["fragments"].spec.voxel_size
        _check_channels(self.forest, card, sources["graph"])
        if not fits(card.voxel_size, size):
            raise ConfigurationError(
                f"forest: {self.forest} is for voxels of {nanometres(card.voxel_size)}, the fragments have "
                f"{nanometres(size)}: too far apart; train another on such volumes"
            )
        assert self.trees is not None  # damaged weights are found now and not by a worker
        found = SettledForest(sha256=card.sha256, card=_digest(card), voxel_size=size)
        return self.model_copy(update={"settled": found})

    @property
    def _card(self) -> ForestCard:
        try:
            return self.bundle.card
        except UsageError:
            raise ConfigurationError(
                f"forest: there is no model '{self.forest}', by this name or as a folder beside the workflow file; "
                "train it with 'neurokube train', or name another"
            ) from None

    def check_worker(self) -> None:
        """Check that the forest is the one that was planned with."""
        if self.settled is None:
            return
        card = self.bundle.card
        if (self.settled.sha256, self.settled.card) != (card.sha256, _digest(card)):
            raise ConfigurationError(f"{self.bundle.folder}: the forest changed since the run was planned; run again")

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say where the forest learned from other voxels."""
        if self.forest is None:
            return []
        own, size = self.bundle.card.voxel_size, sources["fragments"].spec.voxel_size
        if far(own, size) <= _ALIKE:
            return []
        return [
            f"the forest was trained on voxels of {nanometres(own)}, the fragments have {nanometres(size)}: "
            "statistics of edges are not resampled, so compare with a run without it"
        ]

    def boundaries(self, cell: int, data: Data, tiles: Grid) -> NDArray[np.float64] | None:
        """Return the probability of a boundary of each edge of a tile, (m,), where there is a forest."""
        if self.settled is None:
            return None
        card = self.bundle.card
        seen = read_features(cell, data, tiles, needed_channels(card), self.settled.voxel_size)
        return self.trees.probabilities(seen)


_ALIKE = 0.05
"""How different voxel sizes may be, as `proposal.far` counts it, without a remark."""


def needed_channels(card: ForestCard) -> tuple[str, ...]:
    """Return the channels and filters that a forest sees beside the boundary map, in the order of its features."""
    return (*card.channels, *(each.name for each in card.filters))


def _check_channels(model: str, card: ForestCard, graph: Source) -> None:
    if card.architecture.features != feature_names(needed_channels(card)):
        raise ConfigurationError(
            f"forest: {model} sees features that this version does not know; use version {card.neurokube}, or train it "
            "anew"
        )
    missing = missing_channels(needed_channels(card), graph.outputs)
    if not missing:
        return
    lacking = {
        "channels": [name for name in card.channels if name in missing],
        "filters": [f"{{filter: {f.filter}, width: {f.width:g}}}" for f in card.filters if f.name in missing],
    }
    remedies = [f"add {', '.join(names)} to its {field}" for field, names in lacking.items() if names]
    raise ConfigurationError(
        f"forest: {model} learned from {', '.join(missing)} too, on which the graph '{graph.name}' has not measured "
        f"edges; {', and '.join(remedies)}"
    )


def _digest(card: ForestCard) -> str:
    return hashlib.sha256(card.model_dump_json(include=_DECISIVE).encode()).hexdigest()[:16]
