"""Superresolution: more sections, by a trained network or by interpolation.

A network learns what thick sections hide from the planes in which the image is fine (Weigert et al., "Isotropic
reconstruction of 3D fluorescence microscopy images using convolutional neural networks", MICCAI 2017).  Linear and
cubic interpolation, along z alone, stand beside it behind the same interface; cubic is the interpolating B-spline
of degree 3, which scipy and scikit-image call cubic (Unser, IEEE Signal Processing Magazine 16:22, 1999).
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..blocks import Box
from ..errors import ConfigurationError
from ..volumes.volume import nanometres
from .base import Data, Source, Stage, Step, Target, over_cells, pyramid_steps
from .images import ImageStage, beside
from .network import check_image

_ISOTROPIC = 1.5
"""Up to this ratio of section thickness to pixel there is nothing to make up for."""
_FADING = 24
"""Sections after which a cubic spline has forgotten all but 1e-13: its filter's pole is sqrt(3) - 2."""
_PIECE = 2**22
"""Values that a spline is fitted to at a time."""


class Superresolution(ImageStage):
    """More sections: `factor` for each, the old ones' places kept; 0, which is empty, stays so."""

    kind: ClassVar[str] = "superresolution"
    version: ClassVar[int] = 1

    factor: int = Field(ge=2, le=32, description="sections for each there is: 2 puts one between any two")
    method: Literal["network", "linear", "cubic"] = Field("network", description="network, linear or cubic")
    keep_sections: bool = Field(False, description="write the old sections byte for byte at their places")

    @model_validator(mode="after")
    def _has_model(self) -> Self:
        if self.method == "network" and self.model is None:
            raise ValueError("model: is missing; name one, or set method: cubic or linear, which need none")
        if self.method != "network" and self.model is not None:
            raise ValueError(f"model: {self.method} interpolation uses none; leave it out, or set method: network")
        return self

    @property
    def _factor(self) -> int:
        return self.factor

    @property
    def _keeps(self) -> bool:
        return self.keep_sections

    @property
    def probes(self) -> bool:
        """Whether settling tries out the machine: where a network is used."""
        return self.method == "network"

    def kept(self, sources: Mapping[str, Source], before: Stage | None) -> Self | None:
        """Return the stage as settled before; interpolation has nothing to settle."""
        return super().kept(sources, before) if self.method == "network" else self

    def settle(self, sources: Mapping[str, Source], before: Stage | None) -> Self:
        """Return the stage with all that is to be found out about its network, where there is one."""
        image = check_image(sources)
        if image.voxel_size[0] <= _ISOTROPIC * max(image.voxel_size[1:]):
            raise ConfigurationError(
                f"image: voxels of {nanometres(image.voxel_size)} are as fine along z as across, or nearly; "
                "leave superresolution out"
            )
        if image.shape[0] < 2:
            raise ConfigurationError("image: has one section, with nothing after it; leave superresolution out")
        return super().settle(sources, before) if self.method == "network" else self

    def check_worker(self) -> None:
        """Check that this process computes what was planned."""
        if self.method == "network":
            super().check_worker()

    _instead: ClassVar[str] = "use one that looks less far, or method: cubic"

    def _refuse_factor(self, factor: int) -> None:
        if factor == 1:
            raise ConfigurationError(
                f"model: {self.model} makes one section of one; use it in a stage of kind translation"
            )
        raise ConfigurationError(
            f"factor: {self.factor}, but {self.model} makes {factor} sections of one; "
            f"set factor: {factor}, or use another model"
        )

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say how many sections come out and where they lie, and where image and model differ."""
        image = sources["image"].spec
        made = self.made(image)
        old, new = image.voxel_size[0], made.voxel_size[0]
        minus = f"{self.factor} x {image.shape[0]} - {self.factor - 1}"
        found = [
            f"{image.shape[0]} sections of {old:g} nm become {minus} = {made.shape[0]} of {new:g} nm, as none is after "
            f"the last; the middle of the first stays where it is, so that the volume begins {(old - new) / 2:g} nm "
            "further in"
        ]
        if new < min(image.voxel_size[1:]) / _ISOTROPIC:
            found.append(f"sections of {new:g} nm are finer than pixels: a smaller factor makes voxels more cubic")
        return [*found, *super().remarks(sources)] if self.method == "network" else found

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan one pass, the image's statistics before it where a network wants them, and the pyramid."""
        if self.method == "network":
            return super().steps(sources)
        image = sources["image"].spec
        output = self.output(self.kind, self.made(image), pyramid=True)
        more, between = (0, linear) if self.method == "linear" else (_FADING, cubic)

        def compute(cell: int, box: Box, data: Data) -> None:
            source = beside(box, self.factor, more).clip(image.box)
            grey = data.volume("image").read(source)
            first = box.start[0] - self.factor * source.start[0]
            made = between(grey, self.factor, range(first, first + box.shape[0]))
            data.write(self.kind, box, self.completed(made, box, data))

        return [
            Step(self.kind, output.grid(), (Target(output),), over_cells(output.grid(), compute)),
            *pyramid_steps(output),
        ]


def linear(grey: NDArray[np.uint8], factor: int, rows: range) -> NDArray[np.uint8]:
    """Return new sections `rows` of grey values (z, y, x), of which section k is the new section factor * k.

    They are the exact weighted mean, in integers, rounded half up.
    """
    made = np.empty((len(rows), *grey.shape[1:]), np.uint8)
    for section, row in zip(made, rows, strict=True):
        k, part = divmod(row, factor)
        if part == 0:
            section[:] = grey[k]
        else:
            total = grey[k].astype(np.uint16) * (2 * (factor - part)) + grey[k + 1].astype(np.uint16) * (2 * part)
            section[:] = (total + factor) // (2 * factor)
    return made


def cubic(grey: NDArray[np.uint8], factor: int, rows: range) -> NDArray[np.uint8]:
    """Return new sections `rows` of grey values (z, y, x), of which section k is the new section factor * k.

    They lie on the cubic spline through the old ones, which is mirrored at the first and the last, and are cut at
    0 and 255.
    """
    from scipy.ndimage import spline_filter1d

    depth, _, width = grey.shape
    made = np.empty((len(rows), *grey.shape[1:]), np.uint8)
    high = max(1, _PIECE // (depth * width))
    for y in range(0, grey.shape[1], high):
        coefficients = spline_filter1d(grey[:, y : y + high], axis=0, output=np.float64, mode="mirror")
        for section, row in zip(made, rows, strict=True):
            k, part = divmod(row, factor)
            t = part / factor
            weights = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
            total = np.zeros(coefficients.shape[1:])
            for at, weight in zip(range(k - 1, k + 3), weights, strict=True):
                total += coefficients[_mirrored(at, depth)] * (weight / 6)
            section[y : y + high] = np.clip(np.rint(total), 0, 255)
    return made


def _mirrored(index: int, length: int) -> int:
    """Return what an index beyond the first or the last, of at least two, is in a mirror there."""
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)
