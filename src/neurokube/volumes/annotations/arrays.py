"""Chunked arrays (Zarr, N5) of labels, of which only the chunks that exist are looked at."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import tensorstore as ts
from numpy.typing import NDArray

from ...blocks import Box, Grid, Vector
from ...errors import DataError, surroundings
from ..store import context, kvstore_spec
from ..volume import _brief
from .painted import PIECE


class LabelArray:
    """An array on disk with axes (z, y, x).

    `axes` tells which of the stored axes these are, or y and x where there are two; any others have length 1.
    Messages name it `path`.

    Raises:
        DataError: where it is damaged, or cannot hold labels.
    """

    def __init__(self, folder: Path, axes: Sequence[int] | None = None, path: str | None = None) -> None:
        self.path = path or str(folder)
        array = _open(folder, self.path)
        kind = array.dtype.numpy_dtype.kind
        if kind not in "biuf":
            raise DataError(f"{self.path}: holds {array.dtype.numpy_dtype} values; labels must be integers")
        axes = tuple(range(max(0, array.rank - 3), array.rank)) if axes is None else tuple(axes)
        others = [axis for axis in range(array.rank) if axis not in axes]
        if long := [axis for axis in others if array.shape[axis] != 1]:
            raise DataError(
                f"{self.path}: has {array.shape[long[0]]} entries along axis {long[0]}, beside z, y and x; "
                "save one time and one channel"
            )
        kept = array[tuple(0 if axis in others else slice(None) for axis in range(array.rank))]
        order = [sorted(axes).index(axis) for axis in axes]
        self._array = kept.transpose(order)
        if len(axes) == 2:
            self._array = self._array[ts.newaxis]
        z, y, x = self._array.shape
        self.shape: Vector = (int(z), int(y), int(x))
        if min(self.shape) == 0:
            raise DataError(f"{self.path}: has no voxels, its shape is {self.shape}; export it again")
        chunk = array.chunk_layout.write_chunk.shape or (1,) * array.rank
        sides = {axis: int(chunk[axis] or 1) for axis in axes}
        self._chunk: Vector = (1, *sides.values()) if len(axes) == 2 else tuple(sides.values())  # type: ignore[assignment]
        self._folder, self._rank, self._axes = folder, int(array.rank), axes
        self._sparse = array.fill_value is None or not array.fill_value.any()

    @property
    def box(self) -> Box:
        """The box of all voxels."""
        return Box.of(self.shape)

    def read(self, box: Box) -> NDArray[Any]:
        """Return a box, shape (z, y, x).

        Raises:
            DataError: where stored data is damaged.
        """
        try:
            data: NDArray[Any] = self._array[box.slices].read().result()
        except ValueError as error:
            raise _unreadable(self.path, error) from None
        return data

    def occupied(self, box: Box) -> Iterator[Box]:
        """Yield boxes inside `box`, of whole chunks where these are small, that hold all that is stored."""
        piece = _piece(self._chunk, self.shape)
        grid = Grid(self.shape, piece)
        cells = {grid.coordinate(k) for k in range(len(grid))} if not self._sparse else self._stored(piece)
        for cell in sorted(cells):
            part = grid.span(cell, (1, 1, 1)).clip(box)
            if part.size:
                yield part

    def _stored(self, piece: Vector) -> set[Vector]:
        """Return the cells of a grid in which chunks are stored, by the names of their files."""
        cells: set[Vector] = set()
        for folder, _, files in os.walk(self._folder):
            inside = Path(folder).relative_to(self._folder).as_posix()
            for name in files:
                numbers = re.findall(r"\d+", f"{inside}/{name}")
                if name.isascii() and _CHUNK.fullmatch(f"{inside}/{name}") and len(numbers) == self._rank:
                    position = [0] * (3 - len(self._axes)) + [int(numbers[axis]) for axis in self._axes]
                    spans = (
                        range(at * c // p, -(-(at + 1) * c // p))
                        for at, c, p in zip(position, self._chunk, piece, strict=True)
                    )
                    cells.update(product(*spans))  # type: ignore[arg-type]
        return cells


_CHUNK = re.compile(r"\./(c[./])?\d+([./]\d+)*|(c/)?\d+([./]\d+)*")
"""The name of a chunk's file, in Zarr v2 and v3 and in N5."""


def _piece(chunk: Vector, shape: Vector) -> Vector:
    """Return the shape of some whole chunks, or of a part of a large one, of at most `PIECE` voxels."""
    sides = list(chunk)
    while prod(sides) > PIECE:
        largest = sides.index(max(sides))
        sides[largest] = -(-sides[largest] // 2)
    while prod(sides) * 2 <= PIECE and (short := [k for k in range(3) if sides[k] < shape[k]]):
        sides[min(short, key=lambda k: sides[k])] *= 2
    z, y, x = sides
    return z, y, x


def driver_of(folder: Path) -> str | None:
    """Return tensorstore's name of the kind of array in a folder, None where there is none."""
    if (folder / ".zarray").is_file():
        return "zarr"
    if (folder / "zarr.json").is_file() and '"array"' in (folder / "zarr.json").read_text(errors="replace"):
        return "zarr3"
    if (folder / "attributes.json").is_file() and '"dimensions"' in (folder / "attributes.json").read_text(
        errors="replace"
    ):
        return "n5"
    return None


def arrays_below(folder: Path) -> Iterator[Path]:
    """Yield the arrays in a container in the order of their names, without looking into them."""
    if driver_of(folder):
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield from arrays_below(child)


def listing(folder: Path, found: Sequence[Path]) -> str:
    """Name what a container holds, for the choice of one."""
    names = [path.relative_to(folder).as_posix() for path in found]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "no arrays"


def _open(folder: Path, path: str) -> Any:
    driver = driver_of(folder)
    if driver is None:
        raise DataError(f"{path}: no Zarr or N5 array there; check the path, or export the annotation again")
    spec = {"driver": driver, "kvstore": kvstore_spec(str(folder))}
    try:
        return ts.open(spec, context=context(), open=True, read=True).result()
    except ValueError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: ValueError) -> Exception:
    return surroundings(error, path) or DataError(
        f"{path}: cannot be read ({_brief(error)}); export the annotation again"
    )
