"""Semantics: a trained network's probabilities, a volume a label.

The network sees windows of one global grid, in voxels of the size it was trained with; an image of another
voxel size is resampled on the way in and the probabilities on the way out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Box, Vector, quantized
from ..errors import ConfigurationError
from ..volumes import Volume, VolumeSpec
from ..volumes.resampling import Resampling
from ..volumes.volume import nanometres
from .base import Block, Data, Source, Step, Target, VolumeOutput, pyramid_steps, same_grid
from .fusion import ChannelName
from .inference import Inference, Inside, Layer, Parts, Read, Writer, host, layers_of
from .network import NetworkStage, Windows


class Semantics(NetworkStage):
    """Trained network on the image; an output a label, 0 to 255 for the probability that a voxel has it."""

    kind: ClassVar[str] = "semantics"
    version: ClassVar[int] = 1
    # what they read is in the key, by their roles
    unkeyed: ClassVar[tuple[str, ...]] = (*NetworkStage.unkeyed, "channels")

    model: str = Field(description="a model's name, its bundle's folder, or 'best of FILE' from evaluate --models")
    permutations: int = Field(1, ge=1, le=16, description="flips and turns that are averaged; 8 cost 8 times as much")
    labels: tuple[str, ...] | None = Field(None, description="which of the model's labels to write [default: all]")
    channels: dict[ChannelName, str] = Field(
        {}, description="what the model sees beside the image, by its names for it; on the image's voxels"
    )

    @property
    def _channels(self) -> tuple[int, ...]:
        return tuple(self.card.labels.index(name) for name in self.labels or self.card.labels)

    def references(self) -> dict[str, str]:
        """Return what the stage reads, a role for each further image channel: `channels.NAME`."""
        return super().references() | {f"channels.{name}": reference for name, reference in self.channels.items()}

    @property
    def images(self) -> tuple[str, ...]:
        """The roles of what the network sees, the image first."""
        return ("image", *(f"channels.{name}" for name in self.card.further))

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say where image and model differ."""
        spec, found = sources["image"].spec, []
        resampling = self.resampling(spec)
        if not resampling.is_identity:
            found.append(
                f"the model was trained on voxels of {nanometres(self.card.voxel_size)}, the image has "
                f"{nanometres(spec.voxel_size)}: it is resampled on the way in, and probabilities on the way out"
            )
        return found

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan the image's statistics, one pass of the network, and the pyramids."""
        image = sources["image"].spec
        spec = self.made(image)
        outputs = [self.output(name, spec, pyramid=True) for name in self.labels or self.card.labels]
        pass_ = _Pass(self, image, outputs)
        block = self._block(outputs[0], image)
        targets = tuple(Target(o) for o in outputs)
        step = Step(
            "semantics", outputs[0].grid(), targets, pass_.compute, block, effort=self._effort(image), unit="windows"
        )
        return [*self._statistics(), step, *pyramid_steps(*outputs)]

    _too_far: ClassVar[str] = "too far apart to resample"

    def _check_channels(self, sources: Mapping[str, Source]) -> None:
        wanted, given = self.card.further, self.channels
        if missing := [name for name in wanted if name not in given]:
            raise ConfigurationError(
                f"channels: {self.model} sees {missing[0]} beside the image; say what that is, as "
                f"channels: {{{missing[0]}: STAGE}}, or use a model of the image alone"
            )
        if odd := [name for name in given if name not in wanted]:
            raise ConfigurationError(
                f"channels: {self.model} sees {', '.join(wanted) or 'nothing'} beside the image, and no {odd[0]}; "
                "leave it out, or use a model that learned with it"
            )
        for name in given:
            spec = sources[f"channels.{name}"].spec
            if not spec.is_grey:
                raise ConfigurationError(
                    f"channels.{name}: holds {spec.dtype} {spec.kind}; it must be an 8-bit image of one channel, as a "
                    "resampling stage makes it"
                )
            same_grid("image", sources["image"].spec, f"channels.{name}", spec)

    def _check_model(self, image: VolumeSpec) -> None:
        card = self.card
        if card.output == "image":
            stage = "superresolution" if card.factor > 1 else "translation"
            raise ConfigurationError(
                f"model: {self.model} makes images, no probabilities; use it in a stage of kind {stage}"
            )
        if unknown := [name for name in self.labels or () if name not in card.labels]:
            raise ConfigurationError(f"labels: {self.model} has no {unknown[0]}; it has {', '.join(card.labels)}")

    def resampling(self, image: VolumeSpec) -> Resampling:
        """Return how an image is seen in the model's voxels."""
        return Resampling.between(image.shape, image.voxel_size, self.card.voxel_size)

    def made(self, image: VolumeSpec) -> VolumeSpec:
        """Return what a label's probabilities are: the voxels of the image."""
        return replace(image, dtype="uint8", kind="image", channels=None)

    def seen(self, image: VolumeSpec) -> Vector:
        """Return the image's shape in the model's voxels."""
        return self.resampling(image).new_shape

    def _voxel_size(self, image: VolumeSpec) -> tuple[float, float, float]:
        return self.card.voxel_size

    def _span(self, image: VolumeSpec, axis: int, start: int, stop: int) -> tuple[int, int]:
        return self.resampling(image).inverse.span(axis, start, stop)

    def column(self, depth: int, image: VolumeSpec, window: int) -> float:
        """Return the bytes that a block holds for each voxel (y, x) of its face, `depth` the sections of a cell."""
        labels = len(self.labels or self.card.labels)
        resampling = self.resampling(image)
        # layers of cells being filled and written, and an encoded copy
        cells = 3 * labels * depth
        # the sum, the image of the windows at hand and of those ahead, each with a mask
        windows = (4 * labels + 2 + 2 * self.card.channels) * window
        if resampling.is_identity:
            return cells + windows
        z, y, x = resampling.scale
        # more probabilities, and floats on the way in and out
        floats = 8 * labels * (depth / z + window) + 16 * self.card.channels * window
        return cells + (windows + floats) / (y * x) + 16 * depth

    def _windows(self, image: VolumeSpec) -> Iterator[Windows]:
        card, shape = self.card, self.seen(image)
        coarse = VolumeSpec((1, 1, 1), "uint8", card.voxel_size).is_coarse
        overlap = self.overlap or ((0, 16, 16) if coarse else (8, 8, 8))
        if self.window is not None:
            if any(w % m for w, m in zip(self.window, card.multiple, strict=True)):
                raise ConfigurationError(f"window: {self.window} must be multiples of {card.multiple}")
            yield _fitted(self.window, overlap, card.halo)
            return
        seen = set()
        for deep, wide in _STRIDES[coarse]:
            window = tuple(
                _up(min(s + o + 2 * h, max(n, h + 1)), m)
                for s, o, h, m, n in zip((deep, wide, wide), overlap, card.halo, card.multiple, shape, strict=True)
            )
            square = max(window[1:])
            fitted = _fitted((window[0], square, square), overlap, card.halo)
            if fitted not in seen:
                seen.add(fitted)
                yield fitted


_STRIDES = {True: ((8, 64), (16, 128), (16, 256)), False: ((32, 32), (64, 64), (128, 128))}


def _fitted(window: Vector, overlap: Vector, halo: Vector) -> Windows:
    """Return stride, halo and window: of a small window half may be halo and overlap, no more."""
    margins = [min(h, w // 8) if w > 1 else 0 for h, w in zip(halo, window, strict=True)]
    shared = [min(o, w // 8) for o, w in zip(overlap, window, strict=True)]
    strides = []
    for w, h, o in zip(window, margins, shared, strict=True):
        stride = w - 2 * h - o
        # shards are multiples of powers of two
        even = next((p for p in (256, 128, 64, 32, 16, 8) if 0.75 * stride <= p <= stride), stride)
        strides.append(even)
    halos = [(w - s - o) // 2 for w, s, o in zip(window, strides, shared, strict=True)]
    z, y, x = strides
    a, b, c = halos
    return Windows((z, y, x), (a, b, c), window)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class Image(Protocol):
    """What a network sees: ([channel,] z, y, x)."""

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return the grey values of a box (z, y, x)."""


@dataclass(frozen=True)
class _Channels:
    """Volumes of one grid as the channels of an image."""

    volumes: Sequence[Volume]

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return the grey values (channel, z, y, x) of a box."""
        return np.stack([volume.read(box) for volume in self.volumes])


def seen_by(volumes: Sequence[Volume]) -> Image:
    """Return volumes of one grid as what a network sees; one alone has no axis of channels."""
    return volumes[0] if len(volumes) == 1 else _Channels(volumes)


class _Pass:
    """The pass of the network over the volume."""

    def __init__(self, stage: Semantics, image: VolumeSpec, outputs: list[VolumeOutput]) -> None:
        self._stage = stage
        self._image = image
        self._outputs = outputs

    def compute(self, block: Block, data: Data) -> None:
        """Predict a block."""
        inference = self._stage.inference(self._image, self._stage.normalization(data))
        to_model = self._stage.resampling(self._image)
        image = seen_by([data.volume(role) for role in self._stage.images])
        mask = data.volume("mask") if data.has("mask") else None
        layers = layers_of(block.box, self._outputs[0].cell[0])
        with Writer() as writer:
            for box, values in predicted(inference, to_model, layers, image, mask):
                writer.write(lambda box=box, values=values: self._store(box, values, mask, data))  # type: ignore[misc]
            writer.wait()

    def _store(self, box: Box, values: NDArray[np.uint8], mask: Volume | None, data: Data) -> None:
        outside = None if mask is None else mask.read(box) == 0
        for output, channel in zip(self._outputs, values, strict=True):
            if outside is not None:
                channel[outside] = 0
            data.write(output.name, box, channel)


def predicted(
    inference: Inference, to_model: Resampling, layers: Sequence[Box], image: Image, mask: Volume | None = None
) -> Iterator[Layer]:
    """Yield the probabilities of layers, which follow one another along z, as 0 to 255: (layer, (label, z, y, x)).

    Layers are in the image's voxels; the network sees these as `to_model` resamples them.
    """
    first, last = layers[0], layers[-1]
    box = Box(first.start, last.stop)
    read = _reader(image, to_model)
    inside = None if mask is None else _wanted(mask, to_model)
    if to_model.is_identity:
        yield from inference.finished(layers, read, inside, quantized)
    else:
        back = to_model.inverse
        whole = back.needed(box)
        yield from _resampled(inference.layers(whole, read, inside), layers, back, whole, len(inference.labels))


def _resampled(parts: Parts, layers: Sequence[Box], back: Resampling, whole: Box, labels: int) -> Iterator[Layer]:
    waiting = list(layers)
    held = np.empty((labels, 0, *whole.shape[1:]), np.float32)
    top = whole.start[0]
    for part, probabilities in parts:
        held = np.concatenate([held, host(probabilities)], 1)
        while waiting and (needed := back.needed(waiting[0])).stop[0] <= part.stop[0]:
            held, top = held[:, needed.start[0] - top :], needed.start[0]
            own = held[:, : needed.shape[0]]
            yield waiting[0], np.stack([quantized(back.linear(label, waiting[0])) for label in own])
            del waiting[0]


def _reader(image: Image, to_model: Resampling) -> Read:
    if to_model.is_identity:
        return image.read

    def read(box: Box) -> NDArray[np.uint8]:
        grey = to_model.linear(image.read(to_model.needed(box)).astype(np.float32), box)
        return np.asarray(np.rint(grey), np.uint8)

    return read


def _wanted(mask: Volume, to_model: Resampling) -> Inside:
    def inside(box: Box) -> NDArray[np.bool_]:
        wanted = (mask.read(to_model.needed(box)) != 0).astype(np.float32)
        # all from which a wanted voxel is made on the way back, be it ever so thin
        return to_model.linear(wanted, box) > 0

    return inside
