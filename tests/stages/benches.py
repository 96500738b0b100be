"""A folder with an image and a model, in which runs of a stage that applies a network are made."""

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from neurokube.blocks import Blend, Box, WindowGrid
from neurokube.engines import InProcess
from neurokube.networks import predictor
from neurokube.stages import VolumeOutput
from neurokube.volumes import VolumeSpec, create
from neurokube.workflow import Run, execute, parse_workflow

SHAPE = (12, 36, 40)
Settings = dict[str, Any]
Arrays = dict[str, NDArray[np.uint8]]


def texture(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Return an image of blobs and noise without a 0 in it."""
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    waves = np.sin(z / 2.1) + np.sin(y / 3.3 + z / 5) + np.sin(x / 2.7 - y / 7)
    noise = np.random.default_rng(0).normal(0, 12, shape)
    return np.clip(127 + 25 * waves + noise, 1, 255).astype(np.uint8)


def write_volume(
    path: Path,
    voxels: NDArray[np.uint8],
    voxel_size: tuple[float, float, float],
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write a volume that is named after its folder."""
    spec = VolumeSpec(voxels.shape, "uint8", voxel_size, offset)  # type: ignore[arg-type]
    create(str(path), spec, attributes={"fingerprint": path.name}).write(Box.of(voxels.shape), voxels)


class Bench:
    """A folder with an image and perhaps a mask, in which runs are made."""

    kind: ClassVar[str]
    usual: ClassVar[Settings]

    def __init__(
        self,
        folder: Path,
        model: Path | None,
        image: NDArray[np.uint8],
        voxel_size: tuple[float, float, float],
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ):
        self.folder, self.model, self.image, self.voxel_size = folder, model, image, voxel_size
        self.inputs = {"image": {"path": str(folder / "image.zarr")}}
        write_volume(folder / "image.zarr", image, voxel_size, offset)

    def mask(self, voxels: NDArray[np.uint8]) -> None:
        """Write a mask that runs from now on use."""
        write_volume(self.folder / "mask.zarr", voxels, self.voxel_size)
        self.inputs["mask"] = {"path": str(self.folder / "mask.zarr")}

    def document(self, name: str, settings: Settings) -> dict[str, Any]:
        """Return a workflow of the one stage; None takes a usual setting away."""
        stage = {"model": self.model and str(self.model), "backend": "torch", "network_batch": 2, **self.usual}
        stage |= settings | ({"mask": "mask"} if "mask" in self.inputs else {})
        return {
            "name": re.sub(r"\W+", "-", name).strip("-"),
            "workspace": str(self.folder / "runs"),
            "inputs": self.inputs,
            "stages": {self.kind: {k: v for k, v in stage.items() if v is not None}},
        }

    def plan(self, name: str = "run", **settings: Any) -> Run:
        """Plan a run."""
        return Run.planned(parse_workflow(self.document(name, settings)))

    def results(self, name: str = "run", **settings: Any) -> Arrays:
        """Return what a run writes, an array for each volume and resolution."""
        run = self.plan(name, **settings)
        execute(run, InProcess(), quiet=True)
        return written(run)


def written(run: Run) -> Arrays:
    """Return the volumes of the first stage of a run as `name/resolution`."""
    stage = run.plan.stages[0]
    found = {}
    for name in (name for name, output in stage.own.outputs.items() if isinstance(output, VolumeOutput)):
        volume = stage.data().volume(name)
        for level in range(len(volume.arrays)):
            found[f"{name}/{level}"] = volume.read(Box.of(volume.level_shape(level)), level)
    return found


def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch's backend compute as on a card, of which the processor's memory takes the place."""
    monkeypatch.setattr(predictor._Torch, "device", torch.device("cpu"))
    monkeypatch.setattr(Blend, "__init__", _watched(Blend.__init__))


def _watched(init: Any) -> Any:
    def checked(self: Blend, grid: WindowGrid, box: Box, channels: int, device: Any = None) -> None:
        assert device == torch.device("cpu")
        init(self, grid, box, channels, device)

    return checked


def same(ones: Arrays, others: Arrays) -> bool:
    """Whether two runs wrote the same."""
    return ones.keys() == others.keys() and all(np.array_equal(ones[name], others[name]) for name in ones)
