"""What the tests of sweeps share: small tissue, and a sweep of a tiny training on it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "training"))
sys.path.append(str(Path(__file__).parents[1] / "engines"))

from blobs import blobs, write


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """Return the paths of an image, the truth of its blobs, and another pair for validation."""
    folder = tmp_path_factory.mktemp("tissue")
    paths = {}
    for seed, name in enumerate(("", "validation_")):
        image, mask = blobs(seed)
        paths[f"{name}image"] = write(folder / f"{name}image.zarr", image, "image")
        paths[f"{name}blob"] = write(folder / f"{name}blob.zarr", mask)
    return paths
