"""Windowed inference, shared by every stage that has learned: a block's windows, streamed along z.

While one layer of windows is predicted, the next is read and finished sections are written.  What a voxel
becomes depends on the one global grid of windows alone, so no block, order or worker changes it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..blocks import Blend, Box, Vector, WindowGrid, quantized
from ..networks import Normalization
from ..networks.permutations import Permutation, permute, restore
from ..networks.predictor import Predictor

Read = Callable[[Box], NDArray[np.uint8]]
"""Returns the grey values of a box inside the volume; 0 is empty."""
Inside = Callable[[Box], NDArray[np.bool_]]
"""Returns where in a box inside the volume there is anything to predict."""


Parts = Iterator[tuple[Box, NDArray[np.float32]]]
"""What a network makes of a box, part by part along z: (part, (label, z, y, x))."""
Finish = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Turns what a network makes into what is stored."""
Layer = tuple[Box, NDArray[np.uint8]]
"""A part of a block and what is stored there, (label, z, y, x)."""


@dataclass(frozen=True)
class Inference:
    """A network over a volume of `grid.shape` voxels, of which each section becomes `factor` sections.

    Boxes are of what comes out; section `factor` * k of it lies at section k of the volume.
    """

    predictor: Predictor
    grid: WindowGrid
    normalization: Normalization
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

        What is yielded is overwritten when the next layer is asked for.  A window of which everything is 0, or lies
        outside of what `inside` tells, is 0 without a prediction.
        """
        rows = self.made.along(0, box.start[0], box.stop[0])
        if not rows:
            return
        layers = [self._layer(row, box) for row in rows]
        blend = Blend(self.made, max(layers, key=lambda layer: layer.shape[0]), len(self.labels))
        blend.box = Box(layers[0].start, layers[0].start)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._source, rows[0], box, read, inside)
            for row, layer, following in zip(rows, layers, [*layers[1:], None], strict=True):
                source = ahead.result()
                if following is not None:
                    ahead = reader.submit(self._source, row + 1, box, read, inside)
                _advance(blend, layer)
                self._predict(row, source, blend)
                # what the next layer of windows does not touch is final
                final = layer.stop[0] if following is None else following.start[0]
                part = Box(layer.start, (final, *layer.stop[1:]))
                yield part, blend.sum[:, : part.shape[0]]

    def predict(self, box: Box, read: Read) -> NDArray[np.uint8]:
        """Return the probabilities of a whole box as 0 to 255, (label, z, y, x)."""
        parts = [quantized(values) for _, values in self.layers(box, read)]
        return np.concatenate(parts, 1)

    def _layer(self, row: int, box: Box) -> Box:
        """Return the part of the box that the windows of a row along z contribute to; the rows before end in it."""
        start, stop = self.made.span(0, row)
        return Box((max(start, box.start[0]), *box.start[1:]), (min(stop, box.stop[0]), *box.stop[1:]))

    def _source(self, row: int, box: Box, read: Read, inside: Inside | None) -> "_Slab":
        """Read what the windows of a row see."""
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
            image = np.pad(image, pad, mode="reflect" if min(there.shape) > 1 else "symmetric")
            present = None if present is None else np.pad(present, pad)
        return _Slab(wanted, image, present)

    def _predict(self, row: int, source: "_Slab", blend: Blend) -> None:
        """Predict the windows of a row and add them in the order of their numbers."""
        layer = blend.box
        waiting: list[tuple[int, NDArray[np.uint8]]] = []
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

    def _batch(self, windows: Sequence[tuple[int, NDArray[np.uint8]]], blend: Blend) -> None:
        images = np.stack([self.normalization.apply(image) for _, image in windows])
        mean: NDArray[np.float32] | None = None
        for permutation in self.permutations:
            found = self.predictor(np.ascontiguousarray(permute(images, permutation)))
            found = restore(found, permutation, self.factor)
            found = found if self.labels == tuple(range(found.shape[1])) else found[:, list(self.labels)]
            if mean is None:
                mean = found if len(self.permutations) == 1 else found.copy()
            else:
                mean += found
        assert mean is not None
        if len(self.permutations) > 1:
            mean /= np.float32(len(self.permutations))
        for (index, _), values in zip(windows, mean, strict=True):
            blend.add(index, values)


def _advance(blend: Blend, layer: Box) -> None:
    """Move a blend along z, with what the rows of windows before left of the layer's first sections."""
    moved = layer.start[0] - blend.box.start[0]
    kept = blend.box.stop[0] - layer.start[0]
    blend.sum[:, :kept] = blend.sum[:, moved : moved + kept]
    blend.sum[:, kept:] = 0
    blend.box = layer


@dataclass(frozen=True)
class _Slab:
    box: Box
    image: NDArray[np.uint8]
    inside: NDArray[np.bool_] | None

    def window(self, box: Box) -> NDArray[np.uint8] | None:
        """Return the grey values of a window; None where it is empty or nothing in it is wanted."""
        here = box.relative_to(self.box.start).slices
        if self.inside is not None and not self.inside[here].any():
            return None
        image = self.image[here]
        return image if image.any() else None


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


def finished(parts: Parts, layers: Sequence[Box], labels: int, finish: Finish) -> Iterator[Layer]:
    """Yield layers, which follow one another along z, of parts of the same box, as they are to be stored."""
    following = iter(layers)
    z = start = layers[0].start[0]
    layer, values = layers[0], np.empty((labels, 0, *layers[0].shape[1:]), np.uint8)
    for _, found in parts:
        # section by section, which stay in the processor's cache
        for section in range(found.shape[1]):
            if z == start or z == layer.stop[0]:
                layer = next(following)
                values = np.empty((labels, *layer.shape), np.uint8)
            for label, own in enumerate(found[:, section]):
                values[label, z - layer.start[0]] = finish(own)
            z += 1
            if z == layer.stop[0]:
                yield layer, values


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
