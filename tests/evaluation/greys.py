"""Models whose prediction is known, for an image of noise: the grey value itself."""

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from neurokube.networks.bundle import write_files
from neurokube.volumes import VolumeSpec, create

SIZE = (10.0, 10.0, 10.0)
SHAPE = (12, 40, 40)
TEST, VALIDATION = "6:12,0:40,0:40", "0:6,0:40,0:40"


class Grey(torch.nn.Module):
    """Predicts the gray value itself for the first label, its opposite for the second, noise for a third."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grey = (x * 64 + 128) / 255
        return torch.cat([grey, 1 - grey, torch.frac(grey * 997)], 1)[:, : self.labels]


@cache
def torchscript(labels: int) -> bytes:
    file = BytesIO()
    torch.jit.save(torch.jit.trace(Grey(labels), torch.zeros(1, 1, 8, 24, 24)), file)
    return file.getvalue()


def grey_model(folder: Path, labels: tuple[str, ...] = ("bright", "dark"), **fields: Any) -> str:
    card = {
        "name": folder.name,
        "architecture": {"kind": "torchscript"},
        "labels": labels,
        "output": "probabilities",
        "voxel_size": SIZE,
        "normalization": {"mean": 128.0, "deviation": 64.0},
        "window": (8, 24, 24),
        "halo": (1, 2, 2),
    }
    write_files(folder, {**card, **fields}, "model.pt", torchscript(len(labels)))
    return str(folder)


class Annotations:
    """A folder with an image, truths of it and files that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)
        self.write("image", self.image, kind="image")
        self.write("bright", self.image >= 150)
        self.write("dark", self.image < 60)

    def write(self, name: str, array: NDArray[Any], **fields: Any) -> str:
        array = array.astype(np.uint8)
        spec = VolumeSpec(**{"shape": array.shape, "dtype": "uint8", "voxel_size": SIZE, "kind": "labels", **fields})
        volume = create(str(self.folder / f"{name}.zarr"), spec, shard=(16, 64, 64), attributes={"fingerprint": name})
        volume.write(spec.box, array)
        return volume.url

    def truth(self, **document: Any) -> str:
        file = self.folder / "truth.yaml"
        file.write_text(yaml.safe_dump(document) if document else "# nothing yet")
        return str(file)


def entry(region: str | None = None, **truth: Any) -> dict[str, Any]:
    truth = truth or {"bright": "bright.zarr", "dark": "dark.zarr"}
    return {"image": "image.zarr", "truth": truth, **({} if region is None else {"region": region})}
