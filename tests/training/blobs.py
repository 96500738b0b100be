"""Small tissue to train on: bright blobs, which a tiny network learns in a few steps."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from neurokube.blocks import Box
from neurokube.volumes import VolumeSpec, create

VOXEL_SIZE = (10.0, 10.0, 10.0)
QUIET = {
    "scale": 0,
    "rotation": 0,
    "elastic": 0,
    "shift": 0,
    "missing": 0,
    "dark": 0,
    "contrast": 0,
    "gamma": 0,
    "section_contrast": 0,
    "noise": 0,
    "blur": 0,
    "permutations": False,
}
"""No augmentation at all."""
TINY = {
    "size": [4, 6],
    "window": [4, 16, 16],
    "batch": 2,
    "interval": 4,
    "precision": "float32",
    "threads": 1,
    "loggers": [],
    "learning_rate": 0.02,
    "average": 0.9,
    "augmentation": QUIET,
}
"""Settings that take a second."""


def write(path: Path, data: NDArray[Any], kind: str = "labels", **fields: Any) -> str:
    """Write a volume and return its path; fields of its spec, and `attributes`, as keywords."""
    attributes = fields.pop("attributes", None)
    spec = VolumeSpec(data.shape, data.dtype.name, **{"voxel_size": VOXEL_SIZE, "kind": kind, **fields})
    create(str(path), spec, attributes=attributes).write(Box.of(data.shape), data)
    return str(path)


def blobs(seed: int, shape: tuple[int, int, int] = (8, 48, 48)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image of bright blobs, and where they are."""
    random = np.random.default_rng(seed)
    field = gaussian_filter(random.standard_normal(shape), (1.5, 3, 3))
    mask = field > np.quantile(field, 0.8)
    image = 100 + 60 * mask + random.normal(0, 8, shape)
    return np.clip(image, 1, 255).astype(np.uint8), mask.astype(np.uint8)


def write_tissue(folder: Path) -> dict[str, str]:
    """Write an image, the truth of its blobs, and another pair for validation; return their paths."""
    paths = {}
    for seed, name in enumerate(("", "validation_")):
        image, mask = blobs(seed)
        paths[f"{name}image"] = write(folder / f"{name}image.zarr", image, "image")
        paths[f"{name}blob"] = write(folder / f"{name}blob.zarr", mask)
    return paths


def document(tissue: dict[str, str], folder: Path, *, validated: bool = False, **fields: Any) -> dict[str, Any]:
    """Return a training file's content."""
    content = {
        "name": "blobs",
        "workspace": str(folder / "models"),
        "volumes": [{"image": tissue["image"], "truth": {"blob": tissue["blob"]}}],
        **TINY,
        "steps": 12,
    }
    if validated:
        truth = {"blob": tissue["validation_blob"]}
        content["validation"] = [{"image": tissue["validation_image"], "truth": truth}]
    return {**content, **fields}


def write_file(path: Path, content: dict[str, Any]) -> Path:
    """Write a training file."""
    path.write_text(yaml.safe_dump(content))
    return path
