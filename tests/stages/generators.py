"""Generators of random weights, and the folders in which they make images."""

from pathlib import Path
from typing import Any, ClassVar

import benches
import numpy as np
import torch
from benches import Settings
from numpy.typing import NDArray

from neurokube.networks import Bundle, Normalization, write_bundle
from neurokube.networks.generator import Generator, GeneratorConfig

SHAPE = (13, 41, 44)
REACH = 4
VOXEL_SIZE = {"superresolution": (40.0, 10.0, 10.0), "translation": (10.0, 10.0, 10.0)}


def write_generator(
    folder: Path, seed: int | None = 0, factor: int = 1, plane: str = "zx", aside: int = 0, **fields: Any
) -> Bundle:
    """Write a generator that looks 4 voxels far; its weights are random, or as before training where seed is None."""
    config = GeneratorConfig(features=4, blocks=1, factor=factor, plane=plane, aside=aside)
    network = Generator(config)
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-0.3, 0.3)
    card = {
        "name": "tiny",
        "architecture": {"kind": "generator", **config.model_dump()},
        "labels": ["image"],
        "output": "image",
        "voxel_size": VOXEL_SIZE["superresolution" if factor > 1 else "translation"],
        "window": (12, 24, 24),
        "halo": config.receptive_field,
    }
    return write_bundle(folder, {**card, **fields}, network.state_dict())


class Bench(benches.Bench):
    """A folder in which runs of one of the stages are made that make images."""

    usual: ClassVar[Settings] = {"tile": [8, 24, 24], "window": [11, 24, 24]}
    factor = 1

    def __init__(
        self, folder: Path, kind: str, model: Path | None, image: NDArray[np.uint8] | None = None, **place: Any
    ) -> None:
        image = benches.texture(SHAPE) if image is None else image
        super().__init__(folder, model, image, **{"voxel_size": VOXEL_SIZE[kind], **place})
        self.kind = kind  # type: ignore[misc]
        self.usual = self.usual | ({"factor": 2} if kind == "superresolution" else {})  # type: ignore[misc]

    def image_of(self, **settings: Any) -> NDArray[np.uint8]:
        """Return what a run of its own writes, at full resolution."""
        name = "-".join(f"{key}-{value}" for key, value in settings.items()) or "run"
        return self.results(name, **settings)[f"{self.kind}/0"]


def normalization_of(image: NDArray[np.uint8]) -> Normalization:
    """Return mean and deviation of an image."""
    return Normalization.of_histogram(np.bincount(image.ravel(), minlength=256), "image")


def whole(bundle: Bundle, image: NDArray[np.uint8], views: Any) -> NDArray[np.float64]:
    """Return grey values of a whole volume by the network in float64, without windows, averaged over views of it.

    A view is the axes that are flipped, and whether y and x change places.
    """
    network, factor = bundle.network().double(), bundle.card.factor
    normalization = normalization_of(image)
    normal = (image.astype(float) - normalization.mean) / normalization.deviation
    sections = factor * (len(image) - 1) + 1
    total = np.zeros((sections, *image.shape[1:]))
    for flips, turned in views:
        view = np.flip(normal.transpose(0, 2, 1) if turned else normal, flips)
        with torch.no_grad():
            found = network(torch.from_numpy(view.copy())[None, None])[0, 0, :sections].numpy()
        found = np.flip(found, flips)
        total += found.transpose(0, 2, 1) if turned else found
    target = bundle.card.target or normalization
    return total / len(views) * target.deviation + target.mean
