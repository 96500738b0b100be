"""Translation: an image made to look like the volume that a model was trained on.

A network that was trained on one volume knows grey values, contrast and noise of that volume.  Instead of training
it anew, a generator brings what it sees into that look, after Zhu et al., "Unpaired image-to-image translation
using cycle-consistent adversarial networks" (ICCV 2017), section by section or plane by plane.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from ..errors import ConfigurationError
from .base import Source
from .images import ImageStage


class Translation(ImageStage):
    """Image with the look of the model's target volume, on the same voxels; 0, which is empty, stays so."""

    kind: ClassVar[str] = "translation"
    version: ClassVar[int] = 1

    model: str = Field(description="name of a model that makes images, or its bundle's folder")

    def _refuse_factor(self, factor: int) -> None:
        raise ConfigurationError(
            f"model: {self.model} makes {factor} sections of one; use it in a stage of kind superresolution"
        )

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say which grey values come out, and where image and model differ."""
        target, found = self.card.target, super().remarks(sources)
        if target is None:
            return found
        return [f"grey values are given a mean of {target.mean:g} and a deviation of {target.deviation:g}", *found]
