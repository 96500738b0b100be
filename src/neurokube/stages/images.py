"""What stages have in common that make an image of an image, by a network or by interpolation.

    sections of the image       0       1       2
                                │       │       │
    sections that are made      0   1   2   3   4      factor 2: the old ones' places and what is between them

0 is empty: where the sections beside a new one are both empty it is empty too, and nothing else is.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Box, Vector
from ..errors import ConfigurationError
from ..networks import Normalization
from ..networks.bundle import GeneratorArchitecture
from ..networks.permutations import Permutation, permutations
from ..volumes import VolumeSpec
from ..volumes.resampling import ALIKE
from ..volumes.volume import nanometres
from .base import Block, Data, Source, Step, Target, VolumeOutput, pyramid_steps
from .inference import Writer, layers_of
from .network import NetworkStage, Windows

_STRIDES = ((16, 64), (32, 64), (32, 128), (64, 128), (64, 192))
"""New voxels (z; y and x) of the windows that are tried."""
_ORDER = (0, 1, 2)


class ImageStage(NetworkStage):
    """A stage whose network makes an image; of each section but the last `_factor` sections, of that one."""

    permutations: int | None = Field(
        None, ge=1, le=16, description="flips and turns that are averaged [default: 2, for both planes across, else 1]"
    )

    @property
    def _factor(self) -> int:
        return 1

    @property
    def _keeps(self) -> bool:
        """Whether what is known already is written as it is."""
        return False

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan the image's statistics, one pass of the network, and the pyramid."""
        image = sources["image"].spec
        output = self.output(self.kind, self.made(image), pyramid=True)
        pass_ = _Pass(self, image, output)
        step = Step(
            self.kind,
            output.grid(),
            (Target(output),),
            pass_.compute,
            self._block(output, image),
            effort=self._effort(image),
            unit="windows",
        )
        return [*self._statistics(), step, *pyramid_steps(output)]

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say where image and model differ."""
        image, card = sources["image"].spec, self.card
        assert self.settled is not None
        found = []
        if any(abs(a / b - 1) > ALIKE for a, b in zip(image.voxel_size, card.voxel_size, strict=True)):
            found.append(
                f"the model was trained on voxels of {nanometres(card.voxel_size)}, the image has "
                f"{nanometres(image.voxel_size)}: it is applied to them as they are"
            )
        if self._across and len(self.turns(image, self.settled.numerics.window)) == 1:
            found.append("the network sees the plane (z, x) only; 'permutations: 2' averages it with (z, y)")
        return found

    def _check_model(self, image: VolumeSpec) -> None:
        if self.card.output != "image":
            raise ConfigurationError(
                f"model: {self.model} makes no images but {', '.join(self.card.labels)}; use it in a stage of kind "
                "semantics"
            )
        if self.card.factor != self._factor:
            self._refuse_factor(self.card.factor)
        if image.shape[0] <= (reach := self._reach(image)[0]):
            raise ConfigurationError(
                f"image: has {image.shape[0]} sections, too thin for {self.model}, which looks {reach} to either "
                f"side; {self._instead}"
            )

    _instead: ClassVar[str] = "use a model that looks less far"

    @abstractmethod
    def _refuse_factor(self, factor: int) -> None:
        """Raise what to do about a model that makes `factor` sections of one."""

    def made(self, image: VolumeSpec) -> VolumeSpec:
        """Return what is made of an image: its first section stays the first, and the last the last."""
        z, y, x = image.shape
        depth, *pixel = image.voxel_size
        return replace(
            image,
            shape=(self._factor * (z - 1) + 1, y, x),
            voxel_size=(depth / self._factor, pixel[0], pixel[1]),
        )

    @property
    def _across(self) -> bool:
        """Whether the network sees one of the two planes across sections."""
        architecture = self.card.architecture
        return isinstance(architecture, GeneratorArchitecture) and architecture.plane == "zx"

    def turns(self, image: VolumeSpec, window: Vector) -> Sequence[Permutation]:
        """Return the permutations of a window that are averaged."""
        choices = permutations(image.voxel_size, window)
        usual = 2 if self._across and choices[1][0] != _ORDER else 1
        return choices[: self.permutations or usual]

    def _reach(self, image: VolumeSpec) -> Vector:
        """Return how many voxels on either side of one the network looks, whichever way windows are turned."""
        architecture = self.card.architecture
        z, y, x = self.card.halo
        if isinstance(architecture, GeneratorArchitecture):
            z, y, x = (max(a, b) for a, b in zip(self.card.halo, architecture.receptive_field, strict=True))
        turned = any(order != _ORDER for order, _ in self.turns(image, self.window or (1, 1, 1)))
        return (z, max(y, x), max(y, x)) if turned else (z, y, x)

    def _windows(self, image: VolumeSpec) -> Iterator[Windows]:
        multiple, reach, overlap = self.card.multiple, self._reach(image), self.overlap or (0, 0, 0)
        if self.window is not None:
            if any(w % m for w, m in zip(self.window, multiple, strict=True)):
                raise ConfigurationError(f"window: {self.window} must be multiples of {multiple}")
            yield _fitted(self.window, image.shape, overlap, reach)
            return
        seen = set()
        for deep, wide in _STRIDES:
            window = [
                -(-min(s + o + 2 * h, n) // m) * m
                for s, o, h, m, n in zip((deep, wide, wide), overlap, reach, multiple, image.shape, strict=True)
            ]
            square = max(window[1:])
            fitted = _fitted((window[0], square, square), image.shape, overlap, reach)
            if fitted not in seen:
                seen.add(fitted)
                yield fitted

    def column(self, depth: int, image: VolumeSpec, window: int) -> float:
        """Return the bytes that a block holds for each voxel (y, x) of its face, `depth` the sections of a cell."""
        # layers of cells being filled and written, an encoded copy; what they are made from, with its mask
        cells = 3 * depth + 4 * (depth / self._factor + 1)
        # the sum, the image of the windows at hand and of those ahead, each with a mask
        return cells + (4 * self._factor + 4) * window

    def completed(self, values: NDArray[np.uint8], box: Box, data: Data) -> NDArray[np.uint8]:
        """Return what was made of a box (z, y, x), empty where there is nothing, and as it was where that is kept."""
        factor = self._factor
        rows = range(box.start[0], box.stop[0])
        source = beside(box, factor)
        grey = data.volume("image").read(source)
        wanted = data.volume("mask").read(source) != 0 if data.has("mask") else None
        for made, row in zip(values, rows, strict=True):
            below, above = row // factor - source.start[0], -(-row // factor) - source.start[0]
            if self._keeps and below == above:
                made[:] = grey[below]
            else:
                np.maximum(made, 1, out=made)
                made[(grey[below] == 0) & (grey[above] == 0)] = 0
            if wanted is not None:
                made[~(wanted[below] | wanted[above])] = 0
        return values


def beside(box: Box, factor: int, more: int = 0) -> Box:
    """Return the sections of an image at or between which those of a box lie, and `more` on either side.

    The box lies in a volume of which each section but the last became `factor`; what is returned may reach beyond.
    """
    start, stop = box.start[0] // factor - more, -(-(box.stop[0] - 1) // factor) + 1 + more
    return Box((start, *box.start[1:]), (stop, *box.stop[1:]))


def _fitted(window: Vector, shape: Vector, overlap: Vector, reach: Vector) -> Windows:
    """Return stride, halo and window; along an axis that a window covers there is one, which needs no halo.

    Raises:
        ConfigurationError: where the halo leaves nothing of a window.
    """
    strides, halos = [], []
    for w, n, o, h in zip(window, shape, overlap, reach, strict=True):
        one = w >= n
        strides.append(w if one else w - 2 * h - o)
        halos.append(0 if one else h)
        if strides[-1] < max(1, 0 if one else o):
            raise ConfigurationError(
                f"window: {window} leaves too little between a halo of {reach} on either side, which the model needs, "
                f"and an overlap of {overlap}; set a larger window, or none"
            )
    return Windows((strides[0], strides[1], strides[2]), (halos[0], halos[1], halos[2]), window)


class _Pass:
    """The pass of the network over the volume."""

    def __init__(self, stage: ImageStage, image: VolumeSpec, output: VolumeOutput) -> None:
        self._stage = stage
        self._image = image
        self._output = output

    def compute(self, block: Block, data: Data) -> None:
        """Make the image of a block."""
        normalization = self._stage.normalization(data)
        assert isinstance(normalization, Normalization)
        inference = self._stage.inference(self._image, normalization)
        grey = (self._stage.card.target or normalization).grey
        layers = layers_of(block.box, self._output.cell[0])
        mask = data.volume("mask") if data.has("mask") else None

        def inside(box: Box) -> NDArray[np.bool_]:
            assert mask is not None
            return np.asarray(mask.read(box) != 0)

        found = inference.finished(layers, data.volume("image").read, None if mask is None else inside, grey)
        with Writer() as writer:
            for box, values in found:
                writer.write(lambda box=box, values=values: self._store(box, values[0], data))  # type: ignore[misc]
            writer.wait()

    def _store(self, box: Box, values: NDArray[np.uint8], data: Data) -> None:
        data.write(self._stage.kind, box, self._stage.completed(values, box, data))
