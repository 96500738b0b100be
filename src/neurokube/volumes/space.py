"""Free space: looked at before work that writes much, so that a disk is not found full hours later."""

import os
import shutil
from math import prod
from pathlib import Path

import numpy as np

from ..errors import TryAgainError
from .store import folder_of
from .volume import VolumeSpec, pyramid_factors

IMAGE_SHARE, LABELS_SHARE = 0.7, 0.02
"""What compressed micrographs, and labels, keep of their size."""


def expected_bytes(spec: VolumeSpec, *, pyramid: bool = True, compressed: bool = True) -> float:
    """Return about how many bytes a volume takes when it is stored."""
    share = 1.0 if not compressed else IMAGE_SHARE if spec.kind == "image" else LABELS_SHARE
    factors = pyramid_factors(spec) if pyramid else [(1, 1, 1)]
    voxels = sum(prod(-(-n // f) for n, f in zip(spec.shape, factor, strict=True)) for factor in factors)
    return share * voxels * np.dtype(spec.dtype).itemsize * (spec.channels or 1)


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
            f"{url}: about {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
            "free some space or choose another destination"
        )
