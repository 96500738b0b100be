"""Semantics: a trained network's probabilities, a volume a label.

The network sees windows of one global grid, in voxels of the size it was trained with; an image of another
voxel size is resampled on the way in and the probabilities on the way out.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from math import prod, sqrt
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ..blocks import Blocks, Box, Vector, WindowGrid
from ..errors import ConfigurationError
from ..evaluation.curves import quantized
from ..networks import Card, Normalization, load_bundle
from ..networks.bundle import BEST, Bundle, find, read_card
from ..networks.permutations import permutations
from ..networks.predictor import BATCHES, Backend, Numerics, Precision, fastest, open_predictor, software
from ..networks.proposal import fits
from ..volumes import Volume, VolumeSpec
from ..volumes.resampling import Resampling
from ..volumes.store import placed
from ..volumes.volume import nanometres
from .base import (
    SINGLE,
    Block,
    Data,
    Extent,
    Source,
    Stage,
    Step,
    TableOutput,
    Target,
    TiledStage,
    VolumeOutput,
    pyramid_steps,
    same_grid,
)
from .inference import Inference, Inside, Read, Writer, recomputation

_WASTE = 1.25
"""Blocks are made so large that at most this many windows are computed for each there is, where memory allows."""
_DEEP = (1, 2, 4, 8, 16)
"""Layers of cells that a block may have; they come one after the other, so memory does not limit them."""
_BARE = 2**30
"""Bytes of a worker's own memory that a network on a GPU takes."""
_DECISIVE = {"architecture", "channels", "labels", "output", "voxel_size", "normalization"}
"""What a card says that decides the output, beside the weights."""
Overlap = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class Settled(BaseModel):
    """What was found when a run was planned: weights, backend, window, software.  It decides the bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    card: str = Field(description="digest of what the card says that decides the output")
    numerics: Numerics
    stride: Vector
    halo: Vector
    software: dict[str, str]
    peak: int = Field(0, description="bytes a worker held while windows were tried")


class Semantics(TiledStage):
    """Trained network on the image; an output a label, 0 to 255 for the probability that a voxel has it."""

    kind: ClassVar[str] = "semantics"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("image", "mask")
    found: ClassVar[tuple[str, ...]] = ("settled",)
    unkeyed: ClassVar[tuple[str, ...]] = ("block", "memory", "model")

    image: str = Field("image", description="the image volume")
    mask: str | None = Field(None, description="a volume that is 0 where nothing is to be predicted")
    model: str = Field(description="a model's name, its bundle's folder, or 'best of FILE' from evaluate --models")
    labels: tuple[str, ...] | None = Field(None, description="which of the model's labels to write [default: all]")
    permutations: int = Field(1, ge=1, le=16, description="flips and turns that are averaged; 8 cost 8 times as much")
    overlap: Overlap | None = Field(None, description="voxels (z, y, x) in which windows are blended")
    window: Extent | None = Field(None, description="voxels (z, y, x) the network sees [default: what is fastest here]")
    network_batch: PositiveInt | None = Field(None, description="windows the network sees at once")
    backend: Backend | None = Field(None, description="openvino, torch or cuda [default: the fastest that is here]")
    dtype: Precision | None = Field(None, description="float32 or bfloat16 [default: bfloat16 where it is fast]")
    threads: PositiveInt = Field(1, description="processor threads a worker")
    memory: PositiveFloat = Field(3.0, description="GiB that a worker may take (on a GPU: of its memory)")
    settled: Settled | None = Field(None, description="what planning found")

    @cached_property
    def bundle(self) -> Bundle:
        """The model."""
        return load_bundle(self.model)

    @cached_property
    def card(self) -> Card:
        """What the model is."""
        return read_card(find(self.model))

    def placed(self, folder: Path) -> Self:
        """Return the stage with its model, where that is a path and no name, as it is from anywhere."""
        prefix = BEST if self.model.startswith(BEST) else ""
        path = self.model.removeprefix(prefix)
        if not path or not (folder / path).exists():
            return self
        return self.model_copy(update={"model": prefix + placed(path, folder)})

    def settle(self, sources: Mapping[str, Source], before: Stage | None) -> Self:
        """Return the stage with window, batch, backend and dtype fixed: as before where nothing changed, else tried."""
        self._check(sources)
        found = before.settled if isinstance(before, Semantics) and self._same(before) else None
        if found is None or not self._fits(found) or found.software != software(found.numerics.backend):
            found = _settled(self, sources["image"].spec)
        return self.model_copy(update={"settled": found})

    def _same(self, before: "Semantics") -> bool:
        return self == before.model_copy(update={"settled": self.settled, "memory": self.memory, "block": self.block})

    def _fits(self, settled: Settled) -> bool:
        return (settled.sha256, settled.card) == (self.bundle.card.sha256, _digest(self.card))

    def check_worker(self) -> None:
        """Check that this process computes what was planned."""
        assert self.settled is not None
        if not self._fits(self.settled):
            raise ConfigurationError(f"{self.bundle.folder}: the model changed since the run was planned; run again")
        here = software(self.settled.numerics.backend)
        if here != self.settled.software:
            raise ConfigurationError(
                f"planned with {self.settled.software}, but this worker has {here}; "
                "use the same software and processor family, or run again from here to plan anew"
            )

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
        assert self.settled is not None
        spec = replace(image, dtype="uint8", kind="image", channels=None)
        names = self.labels or self.card.labels
        outputs = [self.output(name, spec, pyramid=True) for name in names]
        steps = []
        if self.card.normalization == "volume":
            statistics = TableOutput("statistics", SINGLE)
            steps.append(Step("statistics", SINGLE, (Target(statistics),), _measure))
        pass_ = _Pass(self, image, outputs)
        block = self._block(outputs[0], image)
        steps.append(Step("semantics", outputs[0].grid(), tuple(Target(o) for o in outputs), pass_.compute, block))
        return [*steps, *pyramid_steps(*outputs)]

    def _check(self, sources: Mapping[str, Source]) -> None:
        image = sources["image"].spec
        if image.dtype != "uint8" or image.kind != "image" or image.channels is not None:
            raise ConfigurationError("image: must be an 8-bit image of one channel; import it with --to-8bit auto")
        if "mask" in sources:
            same_grid("image", image, "mask", sources["mask"].spec)
        card = self.card
        if card.channels != 1:
            raise ConfigurationError(
                f"model: {self.model} wants {card.channels} image channels; use one that wants one"
            )
        if unknown := [name for name in self.labels or () if name not in card.labels]:
            raise ConfigurationError(f"labels: {self.model} has no {unknown[0]}; it has {', '.join(card.labels)}")
        if not fits(card.voxel_size, image.voxel_size):
            raise ConfigurationError(
                f"model: {self.model} is for voxels of {nanometres(card.voxel_size)}, the image has "
                f"{nanometres(image.voxel_size)}: too far apart to resample; use or train another model"
            )
        # windows that are not asked for are square
        choices = permutations(card.voxel_size, self.window or (1, 1, 1))
        if self.permutations > len(choices):
            raise ConfigurationError(
                f"permutations: {self.permutations}, but voxels and windows allow {len(choices)}; "
                "square windows allow 16 where pixels are square"
            )

    def resampling(self, image: VolumeSpec) -> Resampling:
        """Return how an image is seen in the model's voxels."""
        return Resampling.between(image.shape, image.voxel_size, self.card.voxel_size)

    def grid(self, image: VolumeSpec) -> WindowGrid:
        """Return the global grid of windows, in the model's voxels."""
        assert self.settled is not None
        shape = self.resampling(image).new_shape
        return WindowGrid(shape, self.settled.numerics.window, self.settled.stride, self.settled.halo)

    def inference(self, image: VolumeSpec, normalization: Normalization) -> Inference:
        """Return the network over an image, for the labels that are written."""
        assert self.settled is not None
        card, numerics = self.card, self.settled.numerics
        return Inference(
            open_predictor(self.model, self.settled.sha256, numerics),
            self.grid(image),
            normalization,
            permutations(card.voxel_size, numerics.window)[: self.permutations],
            tuple(card.labels.index(name) for name in self.labels or card.labels),
        )

    def _block(self, output: VolumeOutput, image: VolumeSpec) -> Vector:
        """Return the smallest block that computes few windows twice, or the best of those that memory allows."""
        assert self.settled is not None
        # where nothing was tried half is left to the network
        held = self.settled.peak or self.memory * 2**29
        spare = self.memory * 2**30 - (held if self.settled.numerics.backend != "cuda" else _BARE)
        column = self.column(output.cell[0], image, self.settled.numerics.window[0])
        counts = output.grid().counts
        widest = min(int(sqrt(max(spare, 0) / column / prod(output.cell[1:]))), max(counts[1:]))
        choices = product([d for d in _DEEP if d < 2 * counts[0]], range(1, max(1, widest) + 1))
        sizes = sorted(((deep, wide, wide) for deep, wide in choices), key=prod)
        blocks = [Blocks(output.grid(), size).box(0).shape for size in sizes]
        wastes = [self.recomputation(image, block) for block in blocks]
        return next((b for b, w in zip(blocks, wastes, strict=True) if w <= _WASTE), blocks[int(np.argmin(wastes))])

    def recomputation(self, image: VolumeSpec, block: Vector) -> float:
        """Return how many windows blocks of these voxels compute for each window there is."""
        back = self.resampling(image).inverse
        cuts = [
            [back.span(axis, start, min(start + side, length)) for start in range(0, length, side)]
            for axis, (length, side) in enumerate(zip(image.shape, block, strict=True))
        ]
        return recomputation(self.grid(image), cuts)

    def column(self, depth: int, image: VolumeSpec, window: int) -> float:
        """Return the bytes that a block holds for each voxel (y, x) of its face, `depth` the sections of a cell."""
        labels = len(self.labels or self.card.labels)
        resampling = self.resampling(image)
        # layers of cells being filled and written, and an encoded copy
        cells = 3 * labels * depth
        # the sum, the image of the windows at hand and of those ahead, each with a mask
        windows = (4 * labels + 4) * window
        if resampling.is_identity:
            return cells + windows
        _, y, x = resampling.scale
        # more probabilities, and floats on the way in and out
        return (
            cells + (windows + 8 * labels * (depth / resampling.scale[0] + window) + 16 * window) / (y * x) + 16 * depth
        )


def _digest(card: Card) -> str:
    return hashlib.sha256(card.model_dump_json(include=_DECISIVE).encode()).hexdigest()[:16]


def _settled(stage: Semantics, image: VolumeSpec) -> Settled:
    from ..networks.probe import Candidate, choose

    bundle, card = stage.bundle, stage.card
    backend, dtype = fastest(bundle)
    backend = stage.backend or backend
    dtype = stage.dtype or ("float32" if backend != "cuda" and stage.backend else dtype)
    batch = stage.network_batch or BATCHES[backend]
    shape = stage.resampling(image).new_shape
    found = []
    for stride, halo, window in _windows(stage, card, shape):
        numerics = Numerics(backend=backend, dtype=dtype, window=window, batch=batch, threads=stage.threads)
        found.append((Candidate(numerics, stride), stride, halo))
    candidates = [candidate for candidate, *_ in found]
    peak = 0.0
    chosen = candidates[0]
    if len(candidates) > 1:
        cell = stage.output("", image).cell
        smallest = stage.column(cell[0], image, max(c.numerics.window[0] for c in candidates)) * prod(cell[1:])
        chosen, peak = choose(stage.model, card.sha256, candidates, stage.memory * 2**30 - smallest)
    _, stride, halo = found[candidates.index(chosen)]
    return Settled(
        sha256=card.sha256,
        card=_digest(card),
        numerics=chosen.numerics,
        stride=stride,
        halo=halo,
        software=software(backend),
        peak=int(peak),
    )


_STRIDES = {True: ((8, 64), (16, 128), (16, 256)), False: ((32, 32), (64, 64), (128, 128))}


def _windows(stage: Semantics, card: Card, shape: Vector) -> Iterator[tuple[Vector, Vector, Vector]]:
    """Yield stride, halo and shape of the windows to choose from, in ascending order."""
    coarse = VolumeSpec((1, 1, 1), "uint8", card.voxel_size).is_coarse
    overlap = stage.overlap or ((0, 16, 16) if coarse else (8, 8, 8))
    if stage.window is not None:
        if any(w % m for w, m in zip(stage.window, card.multiple, strict=True)):
            raise ConfigurationError(f"window: {stage.window} must be multiples of {card.multiple}")
        yield _fitted(stage.window, overlap, card.halo)
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


def _fitted(window: Vector, overlap: Vector, halo: Vector) -> tuple[Vector, Vector, Vector]:
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
    return (z, y, x), (a, b, c), window


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _measure(block: Block, data: Data) -> None:
    found = Normalization.of(data.volume("image"))
    data.put("statistics", 0, np.array([found.mean, found.deviation]))


class _Pass:
    """The pass of the network over the volume."""

    def __init__(self, stage: Semantics, image: VolumeSpec, outputs: list[VolumeOutput]) -> None:
        self._stage = stage
        self._image = image
        self._outputs = outputs

    def compute(self, block: Block, data: Data) -> None:
        """Predict a block."""
        normalization = self._stage.card.normalization
        if not isinstance(normalization, Normalization):
            mean, deviation = data.table("statistics", 0)
            normalization = Normalization(mean=float(mean), deviation=float(deviation))
        inference = self._stage.inference(self._image, normalization)
        to_model = self._stage.resampling(self._image)
        mask = data.volume("mask") if data.has("mask") else None
        layers = layers_of(block.box, self._outputs[0].cell[0])
        with Writer() as writer:
            for box, values in predicted(inference, to_model, layers, data.volume("image"), mask):
                writer.write(lambda box=box, values=values: self._store(box, values, mask, data))  # type: ignore[misc]
            writer.wait()

    def _store(self, box: Box, values: NDArray[np.uint8], mask: Volume | None, data: Data) -> None:
        outside = None if mask is None else mask.read(box) == 0
        for output, channel in zip(self._outputs, values, strict=True):
            if outside is not None:
                channel[outside] = 0
            data.write(output.name, box, channel)


def predicted(
    inference: Inference, to_model: Resampling, layers: Sequence[Box], image: Volume, mask: Volume | None = None
) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """Yield the probabilities of layers, which follow one another along z, as 0 to 255: (layer, (label, z, y, x)).

    Layers are in the image's voxels; the network sees these as `to_model` resamples them.
    """
    first, last = layers[0], layers[-1]
    box = Box(first.start, last.stop)
    read = _reader(image, to_model)
    inside = None if mask is None else _wanted(mask, to_model)
    if to_model.is_identity:
        yield from _as_seen(inference.layers(box, read, inside), layers, len(inference.labels))
    else:
        back = to_model.inverse
        whole = back.needed(box)
        yield from _resampled(inference.layers(whole, read, inside), layers, back, whole, len(inference.labels))


def layers_of(box: Box, depth: int) -> list[Box]:
    """Cut a box into layers of at most `depth` sections, from its first section on."""
    (start, *low), (stop, *high) = box.start, box.stop
    return [Box((z, low[0], low[1]), (min(z + depth, stop), high[0], high[1])) for z in range(start, stop, depth)]


Parts = Iterator[tuple[Box, NDArray[np.float32]]]


def _as_seen(parts: Parts, layers: Sequence[Box], labels: int) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    following = iter(layers)
    z = start = layers[0].start[0]
    layer, values = layers[0], np.empty((labels, 0, *layers[0].shape[1:]), np.uint8)
    for _, probabilities in parts:
        # section by section, which stay in the processor's cache
        for section in range(probabilities.shape[1]):
            if z == start or z == layer.stop[0]:
                layer = next(following)
                values = np.empty((labels, *layer.shape), np.uint8)
            for label, own in enumerate(probabilities[:, section]):
                values[label, z - layer.start[0]] = quantized(own)
            z += 1
            if z == layer.stop[0]:
                yield layer, values


def _resampled(
    parts: Parts, layers: Sequence[Box], back: Resampling, whole: Box, labels: int
) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    waiting = list(layers)
    held = np.empty((labels, 0, *whole.shape[1:]), np.float32)
    top = whole.start[0]
    for part, probabilities in parts:
        held = np.concatenate([held, probabilities], 1)
        while waiting and (needed := back.needed(waiting[0])).stop[0] <= part.stop[0]:
            held, top = held[:, needed.start[0] - top :], needed.start[0]
            own = held[:, : needed.shape[0]]
            yield waiting[0], np.stack([quantized(back.linear(label, waiting[0])) for label in own])
            del waiting[0]


def _reader(image: Volume, to_model: Resampling) -> Read:
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
