"""NumPy's .npy files: read."""

from pathlib import Path

import numpy as np

from .reading import Source, three_axes


def open_npy(file: Path) -> Source:
    """Open an array of three axes z, y, x."""
    data = np.load(file, mmap_mode="r", allow_pickle=False)
    return Source(
        path=str(file),
        description="NumPy array",
        shape=three_axes(file, data.shape),
        dtype=data.dtype.newbyteorder("="),
        sections=lambda a, b: data[a:b],
        batch=16,
    )
