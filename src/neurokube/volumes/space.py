"""Free space: looked at before work that writes much, so that a disk is not found full hours later."""

import os
import shutil
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import numpy as np

from ..errors import TryAgainError
from ..words import human_bytes
from .store import folder_of
from .volume import Kind, VolumeSpec, pyramid_factors

SHARE: dict[Kind, float] = {"image": 0.7, "labels": 0.02}
"""What compressed micrographs, and labels, keep of their size."""


def expected_bytes(spec: VolumeSpec, shapes: Iterable[Sequence[int]] | None = None) -> float:
    """Return about how many bytes a volume takes when it is stored, with resolutions of these shapes [default: all]."""
    if shapes is None:
        shapes = [[-(-n // f) for n, f in zip(spec.shape, factor, strict=True)] for factor in pyramid_factors(spec)]
    voxels = sum(prod(shape) for shape in shapes) * (spec.channels or 1)
    return SHARE[spec.kind] * voxels * np.dtype(spec.dtype).itemsize


def check_space(url: str, needed: float) -> None:
    """Check that a folder, there already or not, has room for so many bytes; of other stores nothing is asked.

    Raises:
        TryAgainError: where it has not.
    """
    folder = folder_of(url)
    if folder is None:
        return
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), Path(os.sep))
    free = shutil.disk_usage(there).free
    if needed > free:
        raise TryAgainError(
            f"{url}: about {human_bytes(needed)} are needed and {human_bytes(free)} are free; "
            "free some space or choose another destination"
        )
