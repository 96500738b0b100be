"""Windowed inference, shared by every stage that has learned: a block's windows, streamed along z.

While one layer of windows is predicted, the next is read and finished sections are written.  What a voxel
becomes depends on the one global grid of windows alone, so no block, order or worker changes it.

On a card all that is between the bytes that are read and those that are written happens there: windows are cut,
normalized, permuted, predicted, weighed, added up and made bytes.  It is told to begin a layer before anybody waits
for what it makes of the one before, so that it does not wait for the processor.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Blend, Box, Vector, WindowGrid, quantized
from ..blocks.blending import Array
from ..networks import Normalization
from ..networks.normalization import ChannelNormalization
from ..networks.permutations import Permutation, permute, restore
from ..networks.predictor import Predictor, memory_told

Read = Callable[[Box], NDArray[np.uint8]]
"""Returns the grey values ([channel,] z, y, x) of a box inside the volume; 0 of the first channel is empty."""
Inside = Callable[[Box], NDArray[np.bool_]]
"""Returns where in a box inside the volume there is anything to predict."""


Parts = Iterator[tuple[Box, Array]]
"""What a network makes of a box, part by part along z: (part, (label, z, y, x)), float32, where it was computed."""
Finish = Callable[[Array], Array]
"""Turns what a network makes, float32, into what is stored, uint8: a NumPy array, or a tensor where it is."""
Layer = tuple[Box, NDArray[np.uint8]]
"""A part of a block and what is stored there, (label, z, y, x)."""


@dataclass(frozen=True)
class Inference:
    """A network over a volume of `grid.shape` voxels, of which each section becomes `factor` sections.

    Boxes are of what comes out; section `factor` * k of it lies at section k of the volume.
    """

    predictor: Predictor
    grid: WindowGrid
    normalization: Normalization | ChannelNormalization
    permutations: Sequence[Permutation]
    labels: tuple[int, ...]
    """Which of the network's channels are kept, in order."""
    factor: int = 1

    @cached_property
    def made(self) -> WindowGrid:
        """The grid of windows in the voxels that come out."""
        return self.grid.with_sections(self.factor)

    def layers(self, box: Box, read: Read, inside: Inside | None = None) -> Parts:
        """Yield the blended probabilities of a box, layer by layer along z: (part of the box, (label, z, y, x)).

        What is yielded is overwritten when the next layer is asked for; what a card was told to do with it before is
        done before.  A window of which everything is 0, or lies outside of what `inside` tells, is 0 without a
        prediction.

        Raises:
            NeuroKubeError: where memory does not suffice.
        """
        rows = self.made.along(0, box.start[0], box.stop[0])
        if not rows:
            return
        layers = [self._layer(row, box) for row in rows]
        numerics, largest = self.predictor.numerics, max(layers, key=lambda layer: layer.shape[0])
        with memory_told(numerics):
            blend = Blend(self.made, largest, len(self.labels), self._device(largest))
        blend.box = Box(layers[0].start, layers[0].start)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._source, rows[0], box, read, inside, blend.device)
            for row, layer, following in zip(rows, layers, [*layers[1:], None], strict=True):
                with memory_told(numerics):
                    source = ahead.result().on(blend.device)
                if following is not None:
                    ahead = reader.submit(self._source, row + 1, box, read, inside, blend.device)
                with memory_told(numerics):
                    blend.advance(layer)
                    self._predict(row, source, blend)
                # what the next layer of windows does not touch is final
                final = layer.stop[0] if following is None else following.start[0]
                part = Box(layer.start, (final, *layer.stop[1:]))
                yield part, blend.sum[:, : part.shape[0]]

    def predict(self, box: Box, read: Read) -> NDArray[np.uint8]:
        """Return the probabilities of a whole box as 0 to 255, (label, z, y, x)."""
        [(_, values)] = self.finished([box], read, None, quantized)
        return values

    def finished(self, layers: Sequence[Box], read: Read, inside: Inside | None, finish: Finish) -> Iterator[Layer]:
        """Yield layers, which follow one another along z, of parts of the same box, as they are to be stored."""
        parts = self.layers(Box(layers[0].start, layers[-1].stop), read, inside)
        following = iter(layers)
        z = start = layers[0].start[0]
        layer, values = layers[0], np.empty((len(self.labels), 0, *layers[0].shape[1:]), np.uint8)
        for section in self._sections(parts, finish):
            if z == start or z == layer.stop[0]:
                layer = next(following)
                values = np.empty((len(self.labels), *layer.shape), np.uint8)
            for label, own in enumerate(section):
                values[label, z - layer.start[0]] = own
            z += 1
            if z == layer.stop[0]:
                yield layer, values

    def _sections(self, parts: Parts, finish: Finish) -> Iterator[Sequence[NDArray[np.uint8]]]:
        """Yield section by section what is made of parts: of each label (y, x)."""
        coming: _Coming | None = None
        for _, found in parts:
            if isinstance(found, np.ndarray):
                # section by section, which stay in the processor's cache
                yield from ([finish(own) for own in found[:, k]] for k in range(found.shape[1]))
                continue
            # the card is at this part, or will be: what it made of the one before is taken meanwhile
            before = coming
            with memory_told(self.predictor.numerics):
                coming = _Coming([finish(own) for own in found])
            if before is not None:
                yield from before.sections()
        if coming is not None:
            yield from coming.sections()

    def _device(self, layer: Box) -> Any:
        """Return where windows of a layer are added up: the predictor's device, or None, host memory.

        That is also where a card is too small for a layer: where what a layer holds there is more than half of what
        is free, since the network needs some too.  It is slower, and makes the same bits.
        """
        device = self.predictor.device
        if device is None or device.type != "cuda":
            return device
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        channels = len(self.normalization.channels) if isinstance(self.normalization, ChannelNormalization) else 1
        return device if held_on_card(len(self.labels), self.factor, channels) * layer.size < free / 2 else None

    def _layer(self, row: int, box: Box) -> Box:
        """Return the part of the box that the windows of a row along z contribute to; the rows before end in it."""
        start, stop = self.made.span(0, row)
        return Box((max(start, box.start[0]), *box.start[1:]), (min(stop, box.stop[0]), *box.stop[1:]))

    def _source(self, row: int, box: Box, read: Read, inside: Inside | None, device: Any) -> "_Slab":
        """Read what the windows of a row see; for a device into memory that it copies from while others go on."""
        volume = Box.of(self.grid.shape)
        starts, window = self.grid.starts, self.grid.window
        columns = [self.grid.along(axis, box.start[axis], box.stop[axis]) for axis in (1, 2)]
        low = (starts[0][row], *(starts[axis][c[0]] for axis, c in enumerate(columns, 1)))
        high = (starts[0][row], *(starts[axis][c[-1]] for axis, c in enumerate(columns, 1)))
        wanted = Box((low[0], low[1], low[2]), _sum(high, window))
        there = wanted.clip(volume)
        image = read(there)
        present = None if inside is None else inside(there)
        pad = [(0, b - a) for a, b in zip(there.stop, wanted.stop, strict=True)]
        if any(after for _, after in pad):
            # a volume smaller than a window goes on as in a mirror
            lead = [(0, 0)] * (image.ndim - 3)
            image = np.pad(image, [*lead, *pad], mode="reflect" if min(there.shape) > 1 else "symmetric")
            present = None if present is None else np.pad(present, pad)
        if device is not None:
            import torch

            held = torch.empty(image.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
            held.numpy()[...] = image
            return _Slab(wanted, held.numpy(), present, held)
        return _Slab(wanted, image, present, image)

    def _predict(self, row: int, source: "_Slab", blend: Blend) -> None:
        """Predict the windows of a row and add them in the order of their numbers."""
        layer = blend.box
        waiting: list[tuple[int, Array]] = []
        ny, nx = len(self.grid.starts[1]), len(self.grid.starts[2])
        for y in self.grid.along(1, layer.start[1], layer.stop[1]):
            for x in self.grid.along(2, layer.start[2], layer.stop[2]):
                index = (row * ny + y) * nx + x
                image = source.window(self.grid.box(index))
                if image is not None:
                    waiting.append((index, image))
                if len(waiting) == self.predictor.numerics.batch:
                    self._batch(waiting, blend)
                    waiting = []
        if waiting:
            self._batch(waiting, blend)

    def _batch(self, windows: Sequence[tuple[int, Array]], blend: Blend) -> None:
        images = self._normalized([image for _, image in windows], blend.device)
        mean: Array = None
        for permutation in self.permutations:
            found = restore(self.predictor(permute(images, permutation)), permutation, self.factor)
            mean = found if mean is None else mean + found
        if len(self.permutations) > 1:
            mean = _divided(mean, len(self.permutations))
        for (index, _), values in zip(windows, mean, strict=True):
            kept = self.labels == tuple(range(len(values)))
            blend.add(index, values if kept else _stacked([values[label] for label in self.labels]))

    def _normalized(self, images: Sequence[Array], device: Any) -> Array:
        """Return windows as the network sees them, (n, [channel,] z, y, x), float32."""
        if device is None:
            return np.stack([self.normalization.apply(image) for image in images])
        return self.normalization.on(device, _stacked(images))


def _stacked(arrays: Sequence[Array]) -> Array:
    if isinstance(arrays[0], np.ndarray):
        return np.stack(arrays)
    import torch

    return torch.stack(list(arrays))


def _divided(values: Array, by: int) -> Array:
    if isinstance(values, np.ndarray):
        return values / np.float32(by)
    # by a tensor: by a plain number a card multiplies by its inverse, which is rounded
    return values / values.new_full((), by)


def host(values: Array) -> NDArray[Any]:
    """Return an array in host memory; what a device is still to compute is waited for."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def held_on_card(labels: int, factor: int, channels: int = 1) -> int:
    """Return the bytes a card holds for each voxel of a layer of windows."""
    # the sums, what is finished of them twice, and on the way there floats of a label; two slabs of the image
    return (6 * labels + 4) * factor + 2 * channels


@dataclass(frozen=True)
class _Slab:
    box: Box
    image: NDArray[np.uint8]
    inside: NDArray[np.bool_] | None
    cut: Array
    """The image again, where windows are cut from it."""

    def on(self, device: Any) -> "_Slab":
        """Return the slab with the image on a device, or on its way there."""
        return self if device is None else replace(self, cut=self.cut.to(device, non_blocking=True))

    def window(self, box: Box) -> Array | None:
        """Return the grey values of a window; None where it is empty or nothing in it is wanted."""
        here = box.relative_to(self.box.start).slices
        if self.inside is not None and not self.inside[here].any():
            return None
        image = (self.image if self.image.ndim == 3 else self.image[0])[here]
        # a few voxels tell soon that there is something
        return self.cut[(..., *here)] if image[::8, ::8, ::8].any() or image.any() else None


class _Coming:
    """Finished labels (z, y, x) on their way from a device."""

    def __init__(self, labels: Sequence[Array]) -> None:
        import torch

        card = labels[0].device.type == "cuda"
        self._there = torch.empty((len(labels), *labels[0].shape), dtype=torch.uint8, pin_memory=card)
        for own, label in zip(self._there, labels, strict=True):
            own.copy_(label, non_blocking=True)
        self._arrived = torch.cuda.Event() if card else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def arrived(self) -> NDArray[np.uint8]:
        """Return all, (label, z, y, x), as soon as it is here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._there.numpy()

    def sections(self) -> Iterator[Sequence[NDArray[np.uint8]]]:
        """Yield section by section what has arrived: of each label (y, x)."""
        found = self.arrived()
        yield from (list(found[:, k]) for k in range(found.shape[1]))


class Writer:
    """Writes one thing at a time beside the work, and holds at most one more."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def write(self, write: Callable[[], None]) -> None:
        """Write as soon as what came before is written; raises what went wrong with that."""
        self.wait()
        self._last = self._pool.submit(write)

    def wait(self) -> None:
        """Return when all is written."""
        if self._last is not None:
            self._last.result()
            self._last = None


def layers_of(box: Box, depth: int) -> list[Box]:
    """Cut a box into layers of at most `depth` sections, from its first section on."""
    (start, *low), (stop, *high) = box.start, box.stop
    return [Box((z, low[0], low[1]), (min(z + depth, stop), high[0], high[1])) for z in range(start, stop, depth)]


def recomputation(grid: WindowGrid, cuts: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Return how many windows blocks compute for each there is; `cuts` are their spans along z, y and x."""
    return prod(
        sum(len(grid.along(axis, *span)) for span in spans) / len(grid.starts[axis]) for axis, spans in enumerate(cuts)
    )


def _sum(a: Sequence[int], b: Vector) -> Vector:
    z, y, x = (p + q for p, q in zip(a, b, strict=True))
    return z, y, x
