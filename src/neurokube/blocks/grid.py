"""Canonical grids (what an algorithm sees) and blocks (what a worker takes at a time)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from ..errors import UsageError
from .box import Box, Vector


@dataclass(frozen=True)
class Grid:
    """A canonical grid: an array of `shape` voxels cut into cells of `cell` voxels.

    A cell is a tile of the algorithm and a shard of the store at once.  It is part of a stage's
    configuration: what an algorithm sees is a cell and its halo, wherever the blocks are cut.

        ┌─────────┬─────────┬────┐
        │ cell 0  │ cell 1  │ 2  │   cells at the far faces are clipped by the volume
        │   ┌ ─ ─ ┼ ─ ─ ─ ┐ │    │
        ├───┼─────┼───────┼─┼────┤
        │ 3 │     │ cell 4  │ 5  │   ┌ ─ ┐  cell 4 with its halo
        └───┴─────┴───────┴─┴────┘
    """

    shape: Vector
    cell: Vector

    @cached_property
    def counts(self) -> Vector:
        """Number of cells along (z, y, x)."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.cell, strict=True))
        return z, y, x

    def __len__(self) -> int:
        return prod(self.counts)

    def coordinate(self, index: int) -> Vector:
        """Return the (z, y, x) position of a cell in the grid; cells count along x first."""
        _, ny, nx = self.counts
        return index // (ny * nx), index // nx % ny, index % nx

    def index(self, coordinate: Vector) -> int:
        """Return the number of the cell at a position; the inverse of `coordinate`."""
        _, ny, nx = self.counts
        z, y, x = coordinate
        return (z * ny + y) * nx + x

    def box(self, index: int) -> Box:
        """Return the voxels of a cell, clipped to the volume."""
        return self.span(self.coordinate(index), (1, 1, 1))

    def within(self, cells: Box) -> list[int]:
        """Return the numbers of the cells in a box of cells, ascending; the part of it beyond the grid has none."""
        part = cells.clip(Box.of(self.counts))
        ranges = (range(a, b) for a, b in zip(part.start, part.stop, strict=True))
        return [self.index(c) for c in product(*ranges)]  # type: ignore[arg-type]

    def span(self, coordinate: Vector, cells: Vector) -> Box:
        """Return the voxels of `cells` cells from a position on, clipped to the volume."""
        start = tuple(k * c for k, c in zip(coordinate, self.cell, strict=True))
        stop = tuple((k + n) * c for k, n, c in zip(coordinate, cells, self.cell, strict=True))
        return Box(start, stop).clip(Box.of(self.shape))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Blocks:
    """The grid's cells taken `cells` at a time: a block is a union of whole cells.

    ┌────┬────╥────┬────┐
    │ 0  │ 1  ║ 2  │ 3  │      cells = (1, 2, 2): block 0 holds cells 0 1 4 5,
    ├────┼────╫────┼────┤      block 1 holds cells 2 3 6 7
    │ 4  │ 5  ║ 6  │ 7  │
    └────┴────╨────┴────┘
    """

    grid: Grid
    cells: Vector = (1, 1, 1)

    @classmethod
    def near(cls, grid: Grid, voxels: Vector | None) -> "Blocks":
        """Return blocks of about `voxels` voxels, rounded up to whole cells; one cell where None."""
        if voxels is None:
            return cls(grid)
        z, y, x = (max(1, -(-v // c)) for v, c in zip(voxels, grid.cell, strict=True))
        return cls(grid, (z, y, x))

    @cached_property
    def _layout(self) -> Grid:
        return Grid(self.grid.counts, self.cells)

    def __len__(self) -> int:
        return len(self._layout)

    def box(self, block: int) -> Box:
        """Return the voxels of a block."""
        coordinate = self.cell_box(block).start
        return self.grid.span(coordinate, self.cells)

    def cell_box(self, block: int) -> Box:
        """Return the block in units of cells."""
        return self._layout.box(block)

    def members(self, block: int) -> list[int]:
        """Return the numbers of a block's cells in ascending order."""
        return self.grid.within(self.cell_box(block))

    def of(self, cell: int) -> int:
        """Return the number of the block that a cell belongs to."""
        z, y, x = (k // n for k, n in zip(self.grid.coordinate(cell), self.cells, strict=True))
        return self._layout.index((z, y, x))

    def __str__(self) -> str:
        return "x".join(str(n) for n in self.cells)


@dataclass(frozen=True)
class WindowGrid:
    """The one grid of overlapping network windows over a volume.

    A window's outer `halo` voxels serve as context only, but at the faces of the volume.  Of the rest, its
    core, window k owns what starts at k * stride; where cores overlap they are blended.  Windows that would
    reach beyond the volume are moved back inside; where the volume is smaller than the window there is one,
    and it reaches beyond.

        0        stride    2 stride      shape
        ├─────────┼─────────┼──────────────┤
        [   core 0  :halo]  │              │
        │   [halo:  core 1  :halo]         │
        │         │   [halo:    core 2     ]   moved back to fit, and without a halo at the face
    """

    shape: Vector
    window: Vector
    stride: Vector
    halo: Vector = (0, 0, 0)

    def __post_init__(self) -> None:
        if any(w - 2 * h < s or s < 1 for w, h, s in zip(self.window, self.halo, self.stride, strict=True)):
            raise UsageError(
                f"windows of {self.window} with a halo of {self.halo} leave gaps at a stride of {self.stride}: "
                "a window must be at least its stride and two halos wide"
            )

    def with_sections(self, factor: int) -> "WindowGrid":
        """Return the grid of the same windows where each section has become `factor` sections."""
        if factor == 1:
            return self
        sides = (self.shape, self.window, self.stride, self.halo)
        return WindowGrid(*((factor * z, y, x) for z, y, x in sides))

    @property
    def overlap(self) -> Vector:
        """How many voxels of its core a window shares with the next."""
        z, y, x = (w - 2 * h - s for w, h, s in zip(self.window, self.halo, self.stride, strict=True))
        return z, y, x

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Window starts along z, y and x."""
        return tuple(
            tuple(
                max(0, min(k * s - h, n - w))
                # as many as it takes for the last one to end with the volume
                for k in range(1 if n <= w else 1 - (w - n - h) // s)
            )
            for n, w, s, h in zip(self.shape, self.window, self.stride, self.halo, strict=True)
        )

    def __len__(self) -> int:
        return prod(len(s) for s in self.starts)

    def coordinate(self, index: int) -> Vector:
        """Return the (z, y, x) position of a window in the grid; windows count along x first."""
        _, ny, nx = (len(s) for s in self.starts)
        return index // (ny * nx), index // nx % ny, index % nx

    def box(self, index: int) -> Box:
        """Return the voxels of a window; it may reach beyond a volume smaller than itself."""
        z, y, x = (starts[k] for starts, k in zip(self.starts, self.coordinate(index), strict=True))
        return Box.of(self.window).shift((z, y, x))

    def core(self, index: int) -> Box:
        """Return the voxels to whose value a window contributes, all inside the volume."""
        spans = [self.span(axis, k) for axis, k in enumerate(self.coordinate(index))]
        (z0, z1), (y0, y1), (x0, x1) = spans
        return Box((z0, y0, x0), (z1, y1, x1))

    def span(self, axis: int, k: int) -> tuple[int, int]:
        """Return start and stop of the core of the k-th window along an axis."""
        start, n = k * self.stride[axis], self.shape[axis]
        last = k == len(self.starts[axis]) - 1
        return start, n if last else min(n, start + self.stride[axis] + self.overlap[axis])

    def along(self, axis: int, start: int, stop: int) -> range:
        """Return which windows along an axis contribute to the voxels from start to stop."""
        s, o, count = self.stride[axis], self.overlap[axis], len(self.starts[axis])
        if start >= stop:
            return range(0)
        first = max(0, (start - s - o) // s + 1)
        return range(min(first, count - 1), min(count, -(-stop // s)))

    def touching(self, box: Box) -> Iterator[int]:
        """Yield, in ascending order, the numbers of the windows that contribute to a voxel of `box`."""
        _, ny, nx = (len(s) for s in self.starts)
        hits = (self.along(axis, a, b) for axis, (a, b) in enumerate(zip(box.start, box.stop, strict=True)))
        for z, y, x in product(*hits):
            yield (z * ny + y) * nx + x
