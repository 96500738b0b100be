"""Training planes for superresolution, or slabs of several of them, each a pure function of the seed and its number.

Arrays are (z, y, x): the planes are those of (z, x), and y are neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError
from ...volumes.resampling import ALIKE
from ..config import ImageAugmentation
from ..sampling import Numbered, shares
from ..stacks import Stack
from .degradation import Degradation

Slab = NDArray[np.float32]
Window = tuple[int, int, int]


class Turned:
    """Planes in which sections are wide and fine: the xy planes of stacks, y (or x, where pixels are square) as z.

    `window` is how many thick sections, neighbouring planes, and pixels across there are.  A neighbour is the next
    section of the stack as it is.
    """

    def __init__(
        self, stacks: Sequence[Stack], degradations: Sequence[Degradation], window: Window, *, permute: bool
    ) -> None:
        self._stacks, self._degradations, self._window = stacks, degradations, window
        self._shares = shares([stack.weight for stack in stacks])
        self._turns = []
        for stack, degradation in zip(stacks, degradations, strict=True):
            sides = (degradation.rows(window[0]), window[2])
            fits = [
                all(n >= s for n, s in zip(shape, sides, strict=True))
                for shape in (stack.shape[1:], stack.shape[:0:-1])
            ]
            if not fits[0]:
                raise DataError(
                    f"{stack.name}: sections of {stack.shape[1]} x {stack.shape[2]} pixels (y, x) are too small for a "
                    f"window of {window[::2]}, which needs {sides[0]} x {sides[1]}; use more of it, or a smaller window"
                )
            self._turns.append(permute and fits[1] and square(stack))

    def draw(self, random: Generator) -> tuple[Slab, Slab]:
        """Return thick sections (z, y, x), and the thin ones that they stand for (factor * (z - 1) + 1, y, x)."""
        number = int(random.choice(len(self._stacks), p=self._shares))
        stack, degradation = self._stacks[number], self._degradations[number]
        sections, planes, across = self._window
        turned = self._turns[number] and random.random() < 0.5
        slab = stack.image.transpose(2, 0, 1) if turned else stack.image.transpose(1, 0, 2)
        part = stack.normalization.apply(_cut(slab, (degradation.rows(sections), planes, across), random))
        return degradation.to_thick(part, sections), degradation.to_thin(part, sections)


class Across:
    """Planes across the sections of stacks as they are, (z, x) and, where pixels are square, (z, y)."""

    def __init__(self, stacks: Sequence[Stack], window: Window, *, permute: bool) -> None:
        self._stacks, self._window = stacks, window
        self._shares = shares([stack.weight for stack in stacks])
        self._turns = [permute and square(stack) and stack.shape[1] >= window[2] for stack in stacks]
        for stack in stacks:
            depth, _, width = stack.shape
            if depth < window[0] or width < window[2]:
                raise DataError(
                    f"{stack.name}: {depth} sections of {width} pixels across are too few for a window of "
                    f"{window[::2]}, "
                    "which a CycleGAN takes from them as they are; use more of it, a smaller window, "
                    "or method: self-supervised, which turns sections instead"
                )

    def draw(self, random: Generator) -> Slab:
        """Return thick sections as they are, (z, 1, x)."""
        number = int(random.choice(len(self._stacks), p=self._shares))
        stack = self._stacks[number]
        turned = self._turns[number] and random.random() < 0.5
        across = stack.image.transpose(0, 2, 1) if turned else stack.image
        return stack.normalization.apply(_cut(across, self._window, random))


class Pairs(Numbered):
    """For each number, thick sections (1, z, y, x) and the thin ones to make of them, of the same planes."""

    def __init__(self, turned: Turned, augmentation: ImageAugmentation, seed: int) -> None:
        self._turned, self._augmentation, self._seed = turned, augmentation, seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a pair."""
        random = default_rng([self._seed, self.first + index])
        settings = self._augmentation
        thick, thin = self._turned.draw(random)
        if settings.permutations:
            thick, thin = _flipped(random, thick, thin)
        gain = np.float32(np.exp(settings.contrast * np.clip(random.standard_normal(), -2, 2)))
        bright = np.float32(settings.contrast * np.clip(random.standard_normal(), -2, 2))
        thick, thin = thick * gain + bright, thin * gain + bright
        if settings.noise:
            amount = np.float32(random.uniform(0, settings.noise))
            thick = thick + amount * random.standard_normal(thick.shape, np.float32)
        return _tensor(thick), _tensor(thin)


class Unpaired(Numbered):
    """For each number, thick sections (1, z, 1, x) as they are, and thin ones of another plane."""

    def __init__(self, across: Across, turned: Turned, *, permute: bool, seed: int) -> None:
        self._across, self._turned, self._permute, self._seed = across, turned, permute, seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return two planes that have nothing to do with each other."""
        random = default_rng([self._seed, self.first + index])
        thick = self._across.draw(random)
        _, thin = self._turned.draw(random)
        if self._permute:
            (thick,), (thin,) = _flipped(random, thick), _flipped(random, thin)
        return _tensor(thick), _tensor(thin)


def square(stack: Stack) -> bool:
    """Whether pixels are, so that y and x can change places."""
    return abs(stack.voxel_size[1] / stack.voxel_size[2] - 1) <= ALIKE


def _cut(slab: NDArray[np.uint8], sides: Window, random: Generator) -> NDArray[np.uint8]:
    starts = [int(random.integers(n - s + 1)) for n, s in zip(slab.shape, sides, strict=True)]
    return slab[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))]


def _flipped(random: Generator, *slabs: Slab) -> tuple[Slab, ...]:
    axes = tuple(axis for axis in range(3) if random.random() < 0.5)
    return tuple(np.flip(slab, axes) for slab in slabs)


def _tensor(slab: Slab) -> Tensor:
    return torch.from_numpy(slab.copy())[None]
