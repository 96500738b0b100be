"""Semantics: a trained network's probabilities, a volume a label.

The network sees windows of one global grid, in voxels of the size it was trained with; an image of another
voxel size is resampled on the way in and the probabilities on the way out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from math import prod, sqrt
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ..blocks import Box, Vector, WindowGrid
from ..errors import ConfigurationError
from ..evaluation.curves import quantized
from ..networks import Card, Normalization, load_bundle
from ..networks.bundle import Bundle, find, read_card
from ..networks.permutations import permutations
from ..networks.predictor import Backend, Numerics, Precision, fastest, open_predictor, software
from ..volumes import VolumeSpec
from ..volumes.resampling import Resampling
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
from .inference import Inference, Writer

_FARTHEST = 3.0
"""A model is not used on voxels that differ from its own by more than this factor."""
Overlap = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class Settled(BaseModel):
    """What was found when a run was planned: weights, backend, window, software.  It decides the bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
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
    files: ClassVar[tuple[str, ...]] = ("model",)
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

    def settle(self, sources: Mapping[str, Source], before: Stage | None) -> Self:
        """Return the stage with window, batch, backend and dtype fixed: as before where nothing changed, else tried."""
        sha256 = self.bundle.card.sha256
        if isinstance(before, Semantics) and before.settled and self._same(before) and before.settled.sha256 == sha256:
            backend = before.settled.numerics.backend
            if before.settled.software == software(backend):
                return self.model_copy(update={"settled": before.settled})
        self._check(sources)
        return self.model_copy(update={"settled": _settled(self, sources["image"].spec)})

    def _same(self, before: "Semantics") -> bool:
        return self == before.model_copy(update={"settled": self.settled, "memory": self.memory, "block": self.block})

    def check_worker(self) -> None:
        """Check that this process computes what was planned."""
        assert self.settled is not None
        here = software(self.settled.numerics.backend)
        if here != self.settled.software:
            raise ConfigurationError(
                f"planned with {self.settled.software}, but this worker has {here}; "
                "use the same software and processor family, or run again from here to plan anew"
            )

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say where image and model differ."""
        spec, found = sources["image"].spec, []
        resampling = self._resampling(spec)
        if not resampling.is_identity:
            found.append(
                f"the model was trained on voxels of {_nm(self.card.voxel_size)}, the image has "
                f"{_nm(spec.voxel_size)}: it is resampled on the way in, and probabilities on the way out"
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
        block = self._block(outputs[0], len(names))
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
        for ours, theirs in zip(image.voxel_size, card.voxel_size, strict=True):
            if max(ours / theirs, theirs / ours) > _FARTHEST:
                raise ConfigurationError(
                    f"model: {self.model} is for voxels of {_nm(card.voxel_size)}, the image has "
                    f"{_nm(image.voxel_size)}: too far apart to resample; use or train another model"
                )
        choices = permutations(card.voxel_size, self._window())
        if self.permutations > len(choices):
            raise ConfigurationError(
                f"permutations: {self.permutations}, but voxels and windows allow {len(choices)}; "
                "square windows allow 16 where pixels are square"
            )

    def _window(self) -> Vector:
        return self.settled.numerics.window if self.settled else self.window or self.card.window

    def _resampling(self, image: VolumeSpec) -> Resampling:
        return Resampling.between(image.shape, image.voxel_size, self.card.voxel_size)

    def grid(self, image: VolumeSpec) -> WindowGrid:
        """Return the global grid of windows, in the model's voxels."""
        assert self.settled is not None
        shape = self._resampling(image).new_shape
        return WindowGrid(shape, self.settled.numerics.window, self.settled.stride, self.settled.halo)

    def _block(self, output: VolumeOutput, labels: int) -> Vector:
        """Return the voxels of a block that the memory allows: wide, for few windows to be computed twice."""
        assert self.settled is not None
        depth = self.settled.numerics.window[0]
        on_host = self.settled.peak if self.settled.numerics.backend != "cuda" else 2**30
        spare = max(self.memory * 2**30 - on_host, 2**28)
        # floats of a layer of windows and of the one before, bytes of two layers of cells, the image ahead
        column = labels * (8 * depth + 3 * output.cell[0]) + 8 * depth
        cells = max(1, int(sqrt(spare / column / prod(output.cell[1:]))))
        return output.cell[0], cells * output.cell[1], cells * output.cell[2]


def _settled(stage: Semantics, image: VolumeSpec) -> Settled:
    from ..networks.probe import Candidate, choose

    bundle, card = stage.bundle, stage.card
    backend, dtype = fastest(bundle)
    backend = stage.backend or backend
    dtype = stage.dtype or ("float32" if backend != "cuda" and stage.backend else dtype)
    batch = stage.network_batch or {"openvino": 1, "torch": 2, "cuda": 4}[backend]
    shape = Resampling.between(image.shape, image.voxel_size, card.voxel_size).new_shape
    found = []
    for stride, halo, window in _windows(stage, card, shape):
        numerics = Numerics(backend=backend, dtype=dtype, window=window, batch=batch, threads=stage.threads)
        found.append((Candidate(numerics, stride), stride, halo))
    candidates = [candidate for candidate, *_ in found]
    peak = 0.0
    chosen = candidates[0]
    if len(candidates) > 1:
        chosen, peak = choose(stage.model, card.sha256, candidates, stage.memory * 2**30)
    _, stride, halo = found[candidates.index(chosen)]
    return Settled(
        sha256=card.sha256,
        numerics=chosen.numerics,
        stride=stride,
        halo=halo,
        software=software(backend),
        peak=int(peak),
    )


_STRIDES = {True: ((8, 64), (8, 128), (16, 128), (16, 256)), False: ((32, 32), (64, 64), (128, 128))}


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
        self._outputs = outputs
        self._to_model = stage._resampling(image)
        self._box = Box.of(image.shape)

    def compute(self, block: Block, data: Data) -> None:
        """Predict a block."""
        stage = self._stage
        assert stage.settled is not None
        card = stage.card
        normalization = card.normalization
        if not isinstance(normalization, Normalization):
            mean, deviation = data.table("statistics", 0)
            normalization = Normalization(mean=float(mean), deviation=float(deviation))
        names = [output.name for output in self._outputs]
        inference = Inference(
            open_predictor(stage.model, stage.settled.sha256, stage.settled.numerics),
            stage.grid(replace(data.volume("image").spec, shape=self._box.shape)),
            normalization,
            permutations(card.voxel_size, stage.settled.numerics.window)[: stage.permutations],
            tuple(card.labels.index(name) for name in names),
        )
        with Writer() as writer:
            layers = self._layers if self._to_model.is_identity else self._resampled
            for box, values in layers(inference, block.box, data):
                writer.write(lambda box=box, values=values: self._store(box, values, data))  # type: ignore[misc]
            writer.wait()

    def _store(self, box: Box, values: NDArray[np.uint8], data: Data) -> None:
        if data.has("mask"):
            values = values * (data.volume("mask").read(box) != 0)
        for output, channel in zip(self._outputs, values, strict=True):
            data.write(output.name, box, channel)

    def _layers(self, inference: Inference, box: Box, data: Data) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
        """Yield finished layers of cells of a block."""
        depth = self._outputs[0].cell[0]
        z = box.start[0]
        layer = np.empty((0, 0, 0, 0), np.uint8)
        for part, probabilities in inference.layers(box, self._read(data), self._inside(data)):
            values = quantized(probabilities)
            for k in range(part.shape[0]):
                if (part.start[0] + k - z) % depth == 0:
                    rows = min(depth, box.stop[0] - part.start[0] - k)
                    layer = np.empty((len(values), rows, *box.shape[1:]), np.uint8)
                row = (part.start[0] + k - z) % depth
                layer[:, row] = values[:, k]
                if row == layer.shape[1] - 1:
                    top = part.start[0] + k + 1
                    yield Box((top - layer.shape[1], *box.start[1:]), (top, *box.stop[1:])), layer

    def _resampled(self, inference: Inference, box: Box, data: Data) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
        """Yield finished layers of cells, predicted in the model's voxels."""
        back = self._to_model.inverse
        depth = self._outputs[0].cell[0]
        for z in range(box.start[0], box.stop[0], depth):
            layer = Box((z, *box.start[1:]), (min(z + depth, box.stop[0]), *box.stop[1:]))
            needed = back.needed(layer)
            parts = [values for _, values in inference.layers(needed, self._read(data), self._inside(data))]
            yield layer, quantized(back.linear(np.concatenate(parts, 1), layer))

    def _read(self, data: Data) -> Any:
        volume, to_model = data.volume("image"), self._to_model
        if to_model.is_identity:
            return volume.read

        def read(box: Box) -> NDArray[np.uint8]:
            grey = to_model.linear(volume.read(to_model.needed(box)).astype(np.float32), box)
            return np.asarray(np.rint(grey), np.uint8)

        return read

    def _inside(self, data: Data) -> Any:
        if not data.has("mask"):
            return None
        volume, to_model = data.volume("mask"), self._to_model

        def inside(box: Box) -> NDArray[np.bool_]:
            return np.asarray(to_model.nearest(volume.read(to_model.needed(box)), box) != 0)

        return inside


def _nm(size: tuple[float, float, float]) -> str:
    return " x ".join(f"{v:g}" for v in size) + " nm"
