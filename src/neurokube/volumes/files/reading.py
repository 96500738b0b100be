"""What reads a file of another tool: a stack of sections, and what its header says of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...blocks import Vector
from ...errors import DataError, NeuroKubeError
from ..volume import Nanometres

GRAY = "convert it to one gray channel first, in Fiji by Image > Type > 8-bit"

UNITS = {
    "pm": 1e-3,
    "Å": 0.1,
    "A": 0.1,
    "angstrom": 0.1,
    "angstroms": 0.1,
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometers": 1.0,
    "µm": 1e3,
    "um": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "micrometers": 1e3,
    "mm": 1e6,
    "millimeter": 1e6,
    "cm": 1e7,
    "m": 1e9,
}
"""Nanometres of the units of length that files name."""


def nanometres_of(unit: str) -> float:
    """Return how many nanometres a unit is, 0 where it is not known."""
    return UNITS.get(unit.strip().replace("\\u00B5", "µ").replace("μ", "µ"), 0.0)


@dataclass(frozen=True)
class Source:
    """An open stack of sections; close it, or use it as a context manager.

    `shape` is (z, y, x) in voxels; `voxel_size` and `offset`, that of the first voxel, are (z, y, x) in nanometres
    where the file itself says them; `batch` is the number of sections that are best read together; `remarks` says
    what was passed over.
    """

    path: str
    description: str
    shape: Vector
    dtype: np.dtype[Any]
    sections: Callable[[int, int], NDArray[Any]]
    voxel_size: Nanometres | None = None
    offset: Nanometres | None = None
    batch: int = 1
    lossy: bool = False
    remarks: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.dtype.kind not in "biuf":
            raise DataError(f"{self.path}: holds {self.dtype} values; only real numbers can be imported")
        if min(self.shape) <= 0:
            raise DataError(f"{self.path}: has no voxels, its shape (z, y, x) is {by(self.shape)}; export it again")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the sections from `start` to `stop`, `stop` excluded, shape (z, y, x); safe in threads.

        Raises:
            DataError: where they are damaged; it names the slice.
        """
        with blaming(f"{self.path}: sections {start} to {stop - 1}"):
            return np.ascontiguousarray(self.sections(start, stop), self.dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def blaming(what: object) -> Iterator[None]:
    """Turn what a decoder says of a damaged file into one line that names it."""
    try:
        yield
    except (NeuroKubeError, MemoryError):
        raise
    except Exception as error:
        # decoders let out struct.error, zlib.error, SyntaxError, KeyError and more for damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{what}: cannot be read, it may be truncated ({reason}); restore it from the original"
        ) from None


def by(shape: tuple[int, ...]) -> str:
    """Return a shape in words, as `5 x 12 x 17`."""
    return " x ".join(str(n) for n in shape)


def three_axes(path: object, shape: tuple[int, ...]) -> Vector:
    """Return a shape as (z, y, x); refuse one of other axes."""
    if len(shape) != 3:
        raise DataError(f"{path}: has {len(shape)} axes ({by(shape)}); save one gray stack with axes z, y, x")
    z, y, x = shape
    return int(z), int(y), int(x)


def plausible(sizes: list[float], digits: int = 6) -> Nanometres | None:
    """Return a voxel size rounded to what its writer meant; None where it cannot be one."""
    if len(sizes) != 3 or not all(isfinite(s) and s > 0 for s in sizes):
        return None
    z, y, x = (float(f"{s:.{digits}g}") for s in sizes)
    return z, y, x


def placed(position: list[float], digits: int = 7) -> Nanometres | None:
    """Return an offset rounded to what its writer meant; None where it cannot be one."""
    if len(position) != 3 or not all(isfinite(p) for p in position):
        return None
    # adding 0 makes -0 a 0
    z, y, x = (float(f"{p:.{digits}g}") + 0.0 for p in position)
    return z, y, x


def mapped(file: Path, dtype: np.dtype[Any], start: int, shape: Vector) -> NDArray[Any]:
    """Return the uncompressed voxels of a file, x fastest, from a byte on; mapped, not read.

    Raises:
        DataError: where the file ends before them.
    """
    end, size = start + prod(shape) * dtype.itemsize, file.stat().st_size
    if start < 0 or end > size:
        raise DataError(
            f"{file}: is truncated, {by(shape)} {dtype.name} voxels would end at byte {end} and it has {size}; "
            "restore it from the original"
        )
    return np.memmap(file, dtype, "r", start, shape)


DEFLATE = 1032.0
"""Most bytes that a byte of gzip or zlib data can become."""


def expandable(file: Path, count: int, ratio: float) -> None:
    """Refuse a header that says more than compressed data can hold, `ratio` bytes a byte of the file."""
    if count > ratio * file.stat().st_size:
        raise DataError(
            f"{file}: is truncated, its {file.stat().st_size} bytes cannot hold the {count} that its header says; "
            "restore it from the original"
        )
