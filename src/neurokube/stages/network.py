"""What stages have in common that apply a trained network: its model, its windows, and what planning finds out.

The network sees windows of one global grid, so that its output does not depend on blocks.  Window, backend and
dtype decide the last bit and cannot be known in advance: they are tried when a run is planned, and kept.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from math import prod, sqrt
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ..blocks import Blocks, Vector, WindowGrid
from ..errors import ConfigurationError
from ..networks import Card, Normalization, load_bundle
from ..networks.bundle import BEST, Bundle, find, read_card
from ..networks.normalization import ChannelNormalization
from ..networks.permutations import Permutation, permutations
from ..networks.predictor import BATCHES, Backend, Numerics, Precision, fastest, open_predictor, software
from ..networks.proposal import fits
from ..volumes import VolumeSpec
from ..volumes.store import placed
from ..volumes.volume import nanometres
from ..words import counted
from .base import (
    SINGLE,
    Block,
    Data,
    Effort,
    Extent,
    Source,
    Stage,
    Step,
    TableOutput,
    Target,
    TiledStage,
    VolumeOutput,
    same_grid,
)
from .inference import Inference, held_on_card, recomputation

_WASTE = 1.25
"""Blocks are made so large that at most this many windows are computed for each there is, where memory allows."""
_WASTE_ON_A_CARD = 1.1
"""The same on a GPU, of which there are fewer than of cores, and which is soon done with a large block."""
_DEEP = (1, 2, 4, 8, 16)
"""Layers of cells that a block may have; they come one after the other, so memory does not limit them."""
_ROWS = 4
"""Rows of windows along z that a block has on a GPU, where there are as many: it waits before the first is read and
after the last is computed."""
_BARE = 2**30
"""Bytes of a worker's own memory that a network on a GPU takes."""
_DECISIVE = {"architecture", "channels", "labels", "output", "voxel_size", "normalization", "target"}
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


class Windows(NamedTuple):
    """Windows that a network can see a volume in, voxels (z, y, x)."""

    stride: Vector
    halo: Vector
    window: Vector


class NetworkStage(TiledStage):
    """A stage that applies a trained network to an image.

    A subclass says which models it takes (`_check_model`) and which windows it may use (`_windows`), what memory a
    block holds (`column`), and how the voxels that it writes (`made`) lie beside those that the network sees (`seen`).
    """

    roles: ClassVar[tuple[str, ...]] = ("image", "mask")
    found: ClassVar[tuple[str, ...]] = ("settled",)
    unkeyed: ClassVar[tuple[str, ...]] = (*Stage.unkeyed, "memory", "model")

    image: str = Field("image", description="the image volume")
    mask: str | None = Field(None, description="a volume that is 0 where nothing is to be predicted")
    model: str | None = Field(None, description="a model's name, its bundle's folder, or 'best of FILE'")
    permutations: int | None = Field(1, ge=1, le=16, description="flips and turns that are averaged")
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
        return load_bundle(self._model)

    @cached_property
    def card(self) -> Card:
        """What the model is."""
        return read_card(find(self._model))

    @property
    def _model(self) -> str:
        assert self.model is not None
        return self.model

    @property
    def _channels(self) -> tuple[int, ...]:
        """Which of the network's channels are written, in order."""
        return tuple(range(len(self.card.labels)))

    def placed(self, folder: Path) -> Self:
        """Return the stage with its model, where that is a path and no name, as it is from anywhere."""
        model = self.model or ""
        prefix = BEST if model.startswith(BEST) else ""
        path = model.removeprefix(prefix)
        if not path or not (folder / path).exists():
            return self
        return self.model_copy(update={"model": prefix + placed(path, folder)})

    # what planning finds

    @property
    def probes(self) -> bool:
        """Whether settling tries out the machine: windows, batch, dtype and backend."""
        return True

    def kept(self, sources: Mapping[str, Source], before: Stage | None) -> Self | None:
        """Return the stage with window, batch, backend and dtype as before where nothing changed, else None."""
        self._check(sources)
        found = before.settled if isinstance(before, NetworkStage) and self._same(before) else None
        return self.model_copy(update={"settled": found}) if found is not None and self._fits(found) else None

    def settle(self, sources: Mapping[str, Source], before: Stage | None) -> Self:
        """Return the stage with window, batch, backend and dtype fixed: as before where nothing changed, else tried."""
        kept = self.kept(sources, before)
        if kept is not None and kept.settled is not None and _runs_here(kept.settled):
            return kept
        return self.model_copy(update={"settled": self._tried(sources["image"].spec)})

    def _same(self, before: "NetworkStage") -> bool:
        told = {name: getattr(self, name) for name in ("settled", "memory", *Stage.unkeyed)}
        return self == before.model_copy(update=told)

    def _fits(self, settled: Settled) -> bool:
        return (settled.sha256, settled.card) == (self.bundle.card.sha256, _digest(self.card))

    def _tried(self, image: VolumeSpec) -> Settled:
        from ..networks.probe import Candidate, choose

        bundle, card = self.bundle, self.card
        backend, dtype = fastest(bundle)
        backend = self.backend or backend
        dtype = self.dtype or ("float32" if backend != "cuda" and self.backend else dtype)
        batch = self.network_batch or BATCHES[backend]
        found = []
        for windows in self._windows(image):
            numerics = Numerics(backend=backend, dtype=dtype, window=windows.window, batch=batch, threads=self.threads)
            found.append((Candidate(numerics, windows.stride), windows))
        candidates = [candidate for candidate, _ in found]
        peak = 0.0
        chosen = candidates[0]
        if len(candidates) > 1:
            cell = self.output("", self.made(image)).cell
            deepest = max(c.numerics.window[0] for c in candidates)
            column = self._card_column(image, deepest) if backend == "cuda" else self.column(cell[0], image, deepest)
            spare = self.memory * 2**30 - column * prod(cell[1:])
            chosen, peak = choose(self._model, card.sha256, candidates, spare)
        stride, halo, _ = found[candidates.index(chosen)][1]
        return Settled(
            sha256=card.sha256,
            card=_digest(card),
            numerics=chosen.numerics,
            stride=stride,
            halo=halo,
            software=software(backend),
            peak=int(peak),
        )

    def chosen(self) -> str:
        """Say which windows and numbers were found to suit this machine: on another, or a busy one, others are."""
        if self.settled is None:
            return ""
        n = self.settled.numerics
        return (
            f"windows of {' x '.join(map(str, n.window))}, {n.batch} at a time, {n.dtype} by {n.backend}, "
            f"{counted(n.threads, 'thread')} a worker"
        )

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

    # which models and images go together

    def _check(self, sources: Mapping[str, Source]) -> None:
        image, card = check_image(sources), self.card
        self._check_channels(sources)
        self._check_model(image)
        if not fits(card.voxel_size, image.voxel_size):
            raise ConfigurationError(
                f"model: {self.model} is for voxels of {nanometres(card.voxel_size)}, the image has "
                f"{nanometres(image.voxel_size)}: {self._too_far}; use or train another model"
            )
        # windows that are not asked for are square
        choices = permutations(self._voxel_size(image), self.window or (1, 1, 1))
        if self.permutations is not None and self.permutations > len(choices):
            raise ConfigurationError(
                f"permutations: {self.permutations}, but voxels and windows allow {len(choices)}; "
                "square windows allow 16 where pixels are square"
            )

    _too_far: ClassVar[str] = "too far apart"

    def _check_channels(self, sources: Mapping[str, Source]) -> None:
        """Check that the model sees what the stage reads."""
        if self.card.channels != 1:
            raise ConfigurationError(
                f"model: {self.model} wants {self.card.channels} image channels; use one that wants one"
            )

    @abstractmethod
    def _check_model(self, image: VolumeSpec) -> None:
        """Check that the model is of the kind that the stage takes."""

    # geometry

    @abstractmethod
    def made(self, image: VolumeSpec) -> VolumeSpec:
        """Return what is made of an image."""

    def seen(self, image: VolumeSpec) -> Vector:
        """Return the shape that the network sees an image in."""
        return image.shape

    def _voxel_size(self, image: VolumeSpec) -> tuple[float, float, float]:
        """Return the voxel size that the network sees an image in."""
        return image.voxel_size

    def _span(self, image: VolumeSpec, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Return what the network makes for voxels that are written, from start to stop along an axis."""
        return start, stop

    @abstractmethod
    def _windows(self, image: VolumeSpec) -> Iterator[Windows]:
        """Yield the windows to choose from for an image, in ascending order."""

    @abstractmethod
    def column(self, depth: int, image: VolumeSpec, window: int) -> float:
        """Return the bytes that a block holds for each voxel (y, x) of its face, `depth` the sections of a cell."""

    def _card_column(self, image: VolumeSpec, window: int) -> float:
        """Return the bytes that a block holds on a GPU for each voxel (y, x) of its face."""
        across = prod(self.seen(image)[1:]) / prod(image.shape[1:])
        return held_on_card(len(self._channels), self.card.factor, self.card.channels) * window * across

    def turns(self, image: VolumeSpec, window: Vector) -> Sequence[Permutation]:
        """Return the permutations of a window that are averaged."""
        return permutations(self._voxel_size(image), window)[: self.permutations]

    def grid(self, image: VolumeSpec) -> WindowGrid:
        """Return the global grid of windows, in the voxels that the network sees."""
        assert self.settled is not None
        return WindowGrid(self.seen(image), self.settled.numerics.window, self.settled.stride, self.settled.halo)

    def inference(self, image: VolumeSpec, normalization: Normalization | ChannelNormalization) -> Inference:
        """Return the network over an image, for the channels that are written."""
        assert self.settled is not None
        numerics = self.settled.numerics
        return Inference(
            open_predictor(self._model, self.settled.sha256, numerics),
            self.grid(image),
            normalization,
            self.turns(image, numerics.window),
            self._channels,
            self.card.factor,
        )

    def _block(self, output: VolumeOutput, image: VolumeSpec) -> Vector:
        """Return the smallest block that computes few windows twice, or the best of those that memory allows."""
        assert self.settled is not None
        numerics, memory = self.settled.numerics, self.memory * 2**30
        column = self.column(output.cell[0], image, numerics.window[0])
        # where nothing was tried half is left to the network
        spare = memory - (self.settled.peak or memory / 2)
        face, least, waste = spare / column, 1, _WASTE
        counts = output.grid().counts
        if numerics.backend == "cuda":
            face = min((memory - _BARE) / column, spare / self._card_column(image, numerics.window[0]))
            rows = -(-_ROWS * self.settled.stride[0] * self.card.factor // output.cell[0])
            least, waste = min(rows, counts[0], _DEEP[-1]), _WASTE_ON_A_CARD
        widest = min(int(sqrt(max(face, 0) / prod(output.cell[1:]))), max(counts[1:]))
        choices = product([d for d in _DEEP if least <= d < 2 * counts[0]], range(1, max(1, widest) + 1))
        sizes = sorted(((deep, wide, wide) for deep, wide in choices), key=prod)
        blocks = [Blocks(output.grid(), size).box(0).shape for size in sizes]
        wastes = [self.recomputation(image, block) for block in blocks]
        return next((b for b, w in zip(blocks, wastes, strict=True) if w <= waste), blocks[int(np.argmin(wastes))])

    def recomputation(self, image: VolumeSpec, block: Vector) -> float:
        """Return how many windows blocks of these voxels compute for each window there is."""
        cuts = [
            [self._span(image, axis, start, min(start + side, length)) for start in range(0, length, side)]
            for axis, (length, side) in enumerate(zip(self.made(image).shape, block, strict=True))
        ]
        return recomputation(self.grid(image).with_sections(self.card.factor), cuts)

    def _effort(self, image: VolumeSpec) -> Effort:
        """Return the effort of a block: the windows that it computes."""
        made = self.grid(image).with_sections(self.card.factor)
        return lambda axis, start, stop: len(made.along(axis, *self._span(image, axis, start, stop)))

    # grey values

    def _statistics(self) -> list[Step]:
        """Return the step that measures the image, where the model does not fix what its grey values are."""
        if self.card.normalization != "volume":
            return []
        return [Step("statistics", SINGLE, (Target(TableOutput("statistics", SINGLE)),), self._measure)]

    @property
    def images(self) -> tuple[str, ...]:
        """The roles of what the network sees, the image first."""
        return ("image",)

    def _measure(self, block: Block, data: Data) -> None:
        first, *others = (data.volume(role) for role in self.images)
        found = [Normalization.of(first), *(Normalization.of_further(volume) for volume in others)]
        data.put("statistics", 0, np.array([v for each in found for v in (each.mean, each.deviation)]))

    def normalization(self, data: Data) -> Normalization | ChannelNormalization:
        """Return how grey values are normalized, those of the image or of each of several channels."""
        if isinstance(self.card.normalization, Normalization):
            return self.card.normalization
        table = data.table("statistics", 0).reshape(-1, 2).tolist()
        found = tuple(Normalization(mean=mean, deviation=deviation) for mean, deviation in table)
        return found[0] if len(found) == 1 else ChannelNormalization(found)


def check_image(sources: Mapping[str, Source]) -> VolumeSpec:
    """Return what the image is that a stage reads.

    Raises:
        ConfigurationError: where it is none of 8 bits, or the mask does not cover it.
    """
    image = sources["image"].spec
    if not image.is_grey:
        raise ConfigurationError("image: must be an 8-bit image of one channel; import it with --to-8bit auto")
    if "mask" in sources:
        same_grid("image", image, "mask", sources["mask"].spec)
    return image


def _digest(card: Card) -> str:
    # what a card of today can say and does not is left out, so that runs planned before it could go on
    absent = {"target"} if card.target is None else set()
    return hashlib.sha256(card.model_dump_json(include=_DECISIVE - absent).encode()).hexdigest()[:16]


def _runs_here(settled: Settled) -> bool:
    """Whether this machine computes what was settled on another, or before."""
    try:
        return software(settled.numerics.backend) == settled.software
    except ConfigurationError:
        return False
