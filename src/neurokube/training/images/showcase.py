"""What is shown and measured of a generator at each interval, and what its card says."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...blocks import Vector
from ...errors import DataError
from ...networks import Normalization
from ...networks.generator import Generator
from ..learner import halo_of, mean_normalization
from ..pictures import save_row
from ..stacks import Stack, told_of
from .degradation import Degradation

Predict = Callable[[Tensor], Tensor]
"""Normalized images (n, 1, z, y, x) to what the network to keep makes of them, on the processor."""
_SECTIONS, _BESIDE, _SIDE = 32, 16, 512


class Showcase(ABC):
    """The data that a generator is judged by."""

    def __init__(self) -> None:
        self.figures: dict[str, float | None] = {}
        """What was measured last."""

    def measure(self, predict: Predict) -> float | None:
        """Return how good the network is, the larger the better; None where nothing tells."""
        return None

    @abstractmethod
    def picture(self, path: Path, predict: Predict) -> None:
        """Write what the network makes of an image, beside what it was given, as a PNG."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Return the fields of the card that follow from the data."""

    @abstractmethod
    def data(self) -> list[dict[str, Any]]:
        """Return what was learned from, as plain values."""


class HeldOut(Showcase):
    """Planes whose sections were taken out: the signal-to-noise ratio (dB) at which a network restores them.

    PSNR is over the sections between, in grey values from 0 to 255, beside that of linear interpolation; of at most
    32 sections a volume, spread over it, and 512 pixels in their middle.  Where the network sees neighbours of a plane
    it is of 16 in the middle, one beside the other.
    """

    def __init__(
        self,
        learned: Sequence[tuple[str, Sequence[Stack]]],
        held_out: Sequence[Stack],
        degradations: Sequence[Degradation],
        window: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self._learned, self._window = learned, window
        self._judged = bool(held_out)
        beside = window[1] > 1
        shown = held_out or learned[0][1][:1]
        self._planes = [
            plane
            for stack, degradation in zip(shown, degradations, strict=True)
            for plane in _planes(stack, degradation, _SECTIONS if held_out else 1, beside=beside)
        ]
        linear = self._ratio([plane.linear for plane in self._planes]) if held_out else None
        self.figures = {"psnr": None, "psnr_linear": linear}

    def measure(self, predict: Predict) -> float | None:
        """Return the PSNR in dB; None where nothing was held out."""
        if self._judged:
            psnr = self._ratio([plane.restored(predict) for plane in self._planes])
            self.figures = {**self.figures, "psnr": psnr}
        return self.figures["psnr"]

    def picture(self, path: Path, predict: Predict) -> None:
        """Write the thick sections, linear interpolation, what the network makes of them, and what there was."""
        plane = self._planes[len(self._planes) // 2]
        thick = np.repeat(plane.thick, plane.factor, 0)[: len(plane.thin)]
        shown = [plane.grey(values) for values in (thick, plane.linear, plane.restored(predict), plane.thin)]
        save_row(path, [grey[:, grey.shape[1] // 2] for grey in shown])

    def card(self) -> dict[str, Any]:
        """Return window and scores; windows are as high as wide, since y and x may change places."""
        z, _, x = self._window
        return {"window": (z, x, x), "scores": {"validation": self.figures} if self._judged else {}}

    def data(self) -> list[dict[str, Any]]:
        """Return the volumes that were learned from."""
        return [row for role, stacks in self._learned for row in told_of(stacks, role)]

    def _ratio(self, found: Sequence[NDArray[np.float32]]) -> float:
        wrong, count = 0.0, 0
        for plane, made in zip(self._planes, found, strict=True):
            between = np.arange(len(made)) % plane.factor != 0
            difference = plane.grey(made)[between].astype(np.float64) - plane.grey(plane.thin)[between]
            wrong, count = wrong + float((difference**2).sum()), count + difference.size
        # an error of nothing has no ratio; that of rounding is the least that can be told
        return round(10 * log10(255**2 / max(wrong / count, 1 / 12)), 3)


class _Plane:
    """Thick sections (z, y, x) of planes beside each other and the thin ones that they stand for, normalized."""

    def __init__(self, pixels: NDArray[np.uint8], degradation: Degradation, normalization: Normalization) -> None:
        grey, sections = normalization.apply(pixels), degradation.most(len(pixels))
        rows = grey[: degradation.rows(sections)]
        self.thick, self.thin = degradation.to_thick(rows, sections), degradation.to_thin(rows, sections)
        self.factor, self._normalization = degradation.factor, normalization

    @property
    def linear(self) -> NDArray[np.float32]:
        at = np.arange(len(self.thin))
        below, part = at // self.factor, (at % self.factor / self.factor).astype(np.float32)[:, None, None]
        above = np.minimum(below + 1, len(self.thick) - 1)
        return self.thick[below] * (1 - part) + self.thick[above] * part

    def restored(self, predict: Predict) -> NDArray[np.float32]:
        made = predict(torch.from_numpy(self.thick)[None, None])
        return made[0, 0, : len(self.thin)].numpy()

    def grey(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        return _grey(values, self._normalization)


def _planes(stack: Stack, degradation: Degradation, most: int, *, beside: bool) -> list[_Plane]:
    depth, height, width = stack.shape
    y, x = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    if degradation.most(min(height, _SIDE)) < 2:
        raise DataError(
            f"{stack.name}: sections of {height} pixels in y are too small to take sections out of, which needs "
            f"{degradation.rows(2)}; use more of it"
        )
    part = stack.image[:, y : y + _SIDE, x : x + _SIDE].transpose(1, 0, 2)
    if beside:
        first = max(0, (depth - _BESIDE) // 2)
        return [_Plane(part[:, first : first + _BESIDE], degradation, stack.normalization)]
    chosen = np.unique(np.linspace(0, depth - 1, min(depth, most)).round().astype(int)) if most > 1 else [depth // 2]
    return [_Plane(part[:, z : z + 1], degradation, stack.normalization) for z in chosen]


class Translated(Showcase):
    """What one volume looks like, what is made of it, and what it should look like: nothing tells how right it is."""

    def __init__(
        self, volumes: Sequence[Stack], targets: Sequence[Stack], window: Vector, more: Sequence[dict[str, Any]]
    ) -> None:
        super().__init__()
        self._volumes, self._targets, self._window, self._more = volumes, targets, window, more
        self.target = mean_normalization([stack.normalization for stack in targets])

    def picture(self, path: Path, predict: Predict) -> None:
        """Write the middle of the first volume, what is made of it, and the middle of the first target."""
        volume, target = self._volumes[0], self._targets[0]
        pixels, wanted = _middle(volume), _middle(target)
        image = torch.from_numpy(volume.normalization.apply(pixels))[None, None, None]
        made = predict(image)[0, 0, 0].numpy()
        save_row(path, [pixels, _grey(made, self.target), wanted])

    def card(self) -> dict[str, Any]:
        """Return window, and the grey values to put images into."""
        return {"window": self._window, "target": self.target}

    def data(self) -> list[dict[str, Any]]:
        """Return the volumes that were learned from, and the model that watched."""
        return [*told_of(self._volumes, "volume"), *told_of(self._targets, "target"), *self._more]


def generator_card(network: Generator, normal: Sequence[Normalization], more: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a generator's card; `more` holds at least its window."""
    z, y, x = network.config.receptive_field
    # y and x may change places
    wide = max(y, x)
    return {
        "architecture": {"kind": "generator", **network.config.model_dump()},
        "labels": ("image",),
        "output": "image",
        "trained_normalization": mean_normalization(normal),
        "halo": halo_of((z, wide, wide), more["window"]),
        **more,
    }


def _middle(stack: Stack) -> NDArray[np.uint8]:
    _, height, width = stack.shape
    y, x = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    return stack.image[len(stack.image) // 2, y : y + _SIDE, x : x + _SIDE]


def _grey(values: NDArray[np.float32], normalization: Normalization) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(values * normalization.deviation + normalization.mean), 0, 255), np.uint8)
