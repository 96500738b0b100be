"""Training windows: which, and what is done to them; each a pure function of the seed and its number."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..blocks import Box, Vector
from ..errors import DataError
from .augmentation import deform, expose, margin, permute_window
from .config import Augmentation
from .truth import Annotated

_PLACES = 100_000
Item = tuple[Tensor, Tensor, Tensor]
"""Image (channel, z, y, x), truth and what of it is known, both (labels, z, y, x); all float32."""


class Numbered(Dataset[tuple[Tensor, ...]]):
    """Training windows number `first` to `first + count`.

    Window n is the same whoever asks for it and whenever, so a training that goes on after a kill sees what
    an undisturbed one sees.
    """

    first, count = 0, 0

    def __len__(self) -> int:
        return self.count


class Ahead(Dataset[tuple[Tensor, ...]]):
    """Windows that threads prepare before they are asked for, which is in ascending order, `step` numbers apart.

    A card that learns waits for windows otherwise, and the processor for the card.
    """

    def __init__(self, windows: Numbered, step: int, threads: int) -> None:
        self._windows, self._step, self._most = windows, step, 2 * threads
        self._coming: dict[int, Future[tuple[Tensor, ...]]] = {}
        # each with a core of its own
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return a window."""
        for number in range(index, min(index + self._step * self._most, len(self)), self._step):
            if number not in self._coming:
                self._coming[number] = self._pool.submit(self._windows.__getitem__, number)
        return self._coming.pop(index).result()


class Windows(Numbered):
    """Windows of annotated volumes.

    A share `balance` of them is placed on a voxel of a label, all labels in turn alike, the others on any
    annotated voxel.
    """

    def __init__(
        self,
        volumes: Sequence[Annotated],
        labels: int,
        window: Vector,
        *,
        seed: int,
        balance: float,
        augmentation: Augmentation | None,
    ) -> None:
        self.volumes = volumes
        self.labels = labels
        self.window = window
        self._seed = seed
        self._balance = balance
        self._augmentation = augmentation
        for volume in volumes:
            check_size(volume.name, volume.shape, window)
        self._shares = shares([volume.weight for volume in volumes])
        self._places = [_places(volume, labels, seed) for volume in volumes]

    def __getitem__(self, index: int) -> Item:
        """Return a window."""
        random = default_rng([self._seed, self.first + index])
        number = int(random.choice(len(self.volumes), p=self._shares))
        volume = self.volumes[number]
        start = self._start(volume.shape, self._places[number], random)
        image, positive, known = self._cut(volume, Box.of(self.window).shift(start), random)
        bits = np.arange(self.labels, dtype=np.uint32)[:, None, None, None]
        planes = ((((b[None] >> bits) & 1).astype(np.float32)) for b in (positive & known, known))
        truth, mask = (torch.from_numpy(p) for p in planes)
        return torch.from_numpy(np.ascontiguousarray(image)), truth, mask

    def _start(self, shape: Vector, places: "list[NDArray[np.int64]]", random: Generator) -> Vector:
        *rare, anywhere = places
        usable = [p for p in rare if len(p)]
        chosen = usable[random.integers(len(usable))] if usable and random.random() < self._balance else anywhere
        voxel = np.unravel_index(int(chosen[random.integers(len(chosen))]), shape)
        z, y, x = (
            int(np.clip(v - random.integers(w), 0, n - w)) for v, w, n in zip(voxel, self.window, shape, strict=True)
        )
        return z, y, x

    def _cut(
        self, volume: Annotated, box: Box, random: Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.uint32]]:
        settings = self._augmentation
        if settings is None:
            return volume.seen(box), volume.positive[box.slices], volume.known[box.slices]
        source = box.grow(margin(settings, volume.voxel_size, self.window))
        inside = source.clip(Box.of(volume.shape))
        pad = [(a - b, d - c) for a, b, c, d in zip(inside.start, source.start, inside.stop, source.stop, strict=True)]
        image = volume.seen(inside, pad)
        planes = [np.pad(plane[inside.slices], pad) for plane in (volume.positive, volume.known)]
        image, planes = deform(settings, volume.voxel_size, self.window, image, planes, random)
        if settings.permutations:
            image, planes = permute_window(volume.voxel_size, self.window, image, planes, random)
        # each channel has faults of its own
        exposed = np.stack([expose(settings, np.ascontiguousarray(channel), random) for channel in image])
        return exposed, planes[0], planes[1]


def check_size(name: str, shape: Vector, window: Vector) -> None:
    """Refuse a volume that is smaller than a window.

    Raises:
        DataError: where it is.
    """
    if any(n < w for n, w in zip(shape, window, strict=True)):
        raise DataError(
            f"{name}: {shape} voxels (z, y, x) are too few for a window of {window}; "
            "use more of it, or a smaller window"
        )


def shares(weights: Sequence[float]) -> NDArray[np.float64]:
    """Return how often windows come from each of several volumes."""
    return np.asarray(np.array(weights) / np.sum(weights), np.float64)


def _places(volume: Annotated, labels: int, seed: int) -> list[NDArray[np.int64]]:
    """Return voxels, as flat indices, of each label and, last, of all that is annotated: a sample of each."""
    random = default_rng([seed, 2**31])
    flat = volume.positive.reshape(-1)
    known = volume.known.reshape(-1)

    def sample(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        found = np.flatnonzero(mask)
        return found if len(found) <= _PLACES else np.sort(random.choice(found, _PLACES, replace=False))

    rare = [sample((flat >> np.uint32(k)) & 1 == 1) for k in range(labels)]
    return [*rare, sample(known != 0)]
