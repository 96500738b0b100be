"""What a stage is: configuration that plans steps, each a pure function of a block.

    stage    a node of the workflow, as `fragments`; its configuration is a pydantic model
    step     one pass of a stage over a grid of blocks, as `segmentation/pyramid-1`
    output   what a step writes: a volume (a shard a cell), a table (an object a cell) or a file

A step never knows where it runs.  It reads and writes through `Data`, which keeps a checksum of each
object it wrote, or the note that the object was empty and is therefore not stored.
"""

import io
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from ..blocks import Box, Grid, Vector
from ..errors import ConfigurationError, DataError, TryAgainError
from ..volumes import Store, Volume, VolumeSpec, join, layout, open_volume, pyramid_factors
from ..volumes.scratch import Scratch

if TYPE_CHECKING:
    from ..volumes.affine import Row


@dataclass(frozen=True)
class VolumeOutput:
    """A volume that a stage writes: one shard of every resolution is one cell of that level's grid."""

    name: str
    spec: VolumeSpec
    cell: Vector
    factors: tuple[Vector, ...] = ((1, 1, 1),)

    @classmethod
    def like(cls, name: str, spec: VolumeSpec, *, pyramid: bool = False) -> Self:
        """Return an output with the usual shards for its voxel size."""
        factors = tuple(pyramid_factors(spec)) if pyramid else ((1, 1, 1),)
        return cls(name, spec, layout(spec)[0], factors)

    def grid(self, level: int = 0) -> Grid:
        """Return the grid of shards of one resolution."""
        z, y, x = (-(-n // f) for n, f in zip(self.spec.shape, self.factors[level], strict=True))
        return Grid((z, y, x), self.cell)


@dataclass(frozen=True)
class TableOutput:
    """Arrays that a stage writes, one object (.npy) for each cell of a grid."""

    name: str
    cells: Grid

    def grid(self, level: int = 0) -> Grid:
        """Return the grid of objects."""
        return self.cells


@dataclass(frozen=True)
class FileOutput:
    """A file that a stage writes whole, for other programs; its name has a suffix, as `table.csv`."""

    name: str

    def grid(self, level: int = 0) -> Grid:
        """Return the grid of one cell."""
        return SINGLE


Output = VolumeOutput | TableOutput | FileOutput

Extent = tuple[PositiveInt, PositiveInt, PositiveInt]
"""A setting in voxels (z, y, x), each at least 1."""

Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A setting in nanometres."""


@dataclass(frozen=True)
class Target:
    """What a step fills: one resolution of a volume, a table, or a file."""

    output: Output
    level: int = 0

    @property
    def grid(self) -> Grid:
        """The grid whose cells are the stored objects."""
        return self.output.grid(self.level)

    def key(self, cell: int) -> str:
        """Return the storage key of a cell's object, below the folder of the stage."""
        z, y, x = self.grid.coordinate(cell)
        if isinstance(self.output, VolumeOutput):
            lead = "0/" if self.output.spec.channels is not None else ""
            return f"{self.prefix}{lead}{z}/{y}/{x}"
        return self.prefix if isinstance(self.output, FileOutput) else f"{self.prefix}{z}.{y}.{x}.npy"

    @property
    def prefix(self) -> str:
        """What the storage keys of all its objects, and of nothing else that is written, start with."""
        if isinstance(self.output, VolumeOutput):
            return f"{self.output.name}/{self.level}/c/"
        return self.output.name if isinstance(self.output, FileOutput) else f"{self.output.name}/"


@dataclass(frozen=True)
class Block:
    """The block at hand: its voxels and the canonical cells that make it up."""

    box: Box
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One pass over a grid.  `compute(block, data)` fills every target within the block, and only there.

    A step over a grid of one cell may fill targets of other grids, all of them.
    """

    name: str
    grid: Grid
    targets: tuple[Target, ...]
    compute: Callable[[Block, "Data"], None]
    block: Vector | None = None
    """Voxels that a worker had better take at a time, where nobody says otherwise."""
    effort: "Effort | None" = None
    """What a block costs beside other blocks of the step; its voxels where None."""
    unit: str = "voxels"
    """What effort counts."""

    def objects(self, cells: Sequence[int]) -> list[tuple[Target, int]]:
        """Return what a block of these cells stores, as (target, cell of its grid), in a fixed order."""
        return [
            (target, cell)
            for target in self.targets
            for cell in (cells if target.grid == self.grid else range(len(target.grid)))
        ]


Effort = Callable[[int, int, int], float]
"""What a block comes to along an axis (0, 1, 2), from its start to its stop; the product of all three is its effort."""


def looked_at(grid: Grid, halo: Vector) -> Effort:
    """Return the effort of a step that looks at each cell and at `halo` voxels (z, y, x) around it, in voxels."""

    def effort(axis: int, start: int, stop: int) -> float:
        n, c, h = grid.shape[axis], grid.cell[axis], halo[axis]
        return sum(min(n, min(a + c, n) + h) - max(0, a - h) for a in range(start, stop, c))

    return effort


def over_cells(grid: Grid, compute: Callable[[int, Box, "Data"], None]) -> Callable[[Block, "Data"], None]:
    """Turn a function of one canonical cell (number, voxels, data) into one of a block."""

    def compute_block(block: Block, data: "Data") -> None:
        for cell in block.cells:
            compute(cell, grid.box(cell), data)

    return compute_block


SINGLE = Grid((1, 1, 1), (1, 1, 1))
"""The grid of a step that is one block."""


def pyramid_steps(*outputs: VolumeOutput) -> list[Step]:
    """Return a step a coarser resolution of volumes of one grid; each reads the resolution before it."""
    return [_pyramid_step(outputs, level) for level in range(1, len(outputs[0].factors))]


def _pyramid_step(outputs: tuple[VolumeOutput, ...], level: int) -> Step:
    output = outputs[0]
    grid = output.grid(level)
    step = [b // a for a, b in zip(output.factors[level - 1], output.factors[level], strict=True)]
    finer = Box.of(output.grid(level - 1).shape)

    def compute(cell: int, box: Box, data: "Data") -> None:
        from ..volumes.pyramids import downsample

        z, y, x = ((a * f, b * f) for a, b, f in zip(box.start, box.stop, step, strict=True))
        source = Box((z[0], y[0], x[0]), (z[1], y[1], x[1])).clip(finer)
        for each in outputs:
            voxels = data.volume(each.name).read(source, level - 1)
            data.write(each.name, box, downsample(voxels, (step[0], step[1], step[2]), each.spec.kind), level)

    return Step(f"pyramid-{level}", grid, tuple(Target(each, level) for each in outputs), over_cells(grid, compute))


@dataclass(frozen=True)
class Source:
    """What a stage can read under one role: the outputs of another stage, or an input volume.

    `kind` is the stage's kind, or "volume"; the first output is the main one; `urls` says where each
    output lies; `region` is the part of an input volume that the run is about, `affine` the matrix (3, 4) from the
    nanometres (z, y, x) of an input volume to those of the others, where they differ.
    """

    name: str
    kind: str
    outputs: Mapping[str, Output]
    urls: Mapping[str, str]
    region: Box | None = None
    affine: "tuple[Row, ...] | None" = None

    @property
    def spec(self) -> VolumeSpec:
        """The description of the main volume."""
        return self.volume.spec

    @property
    def volume(self) -> VolumeOutput:
        """The main volume.

        Raises:
            ConfigurationError: where the main output is no volume.
        """
        main = next(iter(self.outputs.values()))
        if not isinstance(main, VolumeOutput):
            raise ConfigurationError(f"'{self.name}' is a {self.kind} stage, whose result is no volume")
        return main

    def table(self, name: str) -> TableOutput:
        """Return one of the tables.

        Raises:
            ConfigurationError: where there is none of that name.
        """
        output = self.outputs.get(name)
        if not isinstance(output, TableOutput):
            there = ", ".join(k for k, o in self.outputs.items() if isinstance(o, TableOutput)) or "none"
            raise ConfigurationError(f"'{self.name}' ({self.kind}) has no table '{name}'; it has: {there}")
        return output


class Stage(BaseModel):
    """The configuration of a stage.

    A subclass names its `kind` and `version` (raised whenever its output changes), declares a field a
    setting, gives the fields that name what it reads in `roles`, and plans its steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[str]
    version: ClassVar[int]
    roles: ClassVar[tuple[str, ...]] = ()
    unkeyed: ClassVar[tuple[str, ...]] = ("block", "store")
    """Fields that do not change what comes out."""
    found: ClassVar[tuple[str, ...]] = ()
    """Fields that planning fills, and nobody sets."""
    editable: ClassVar[bool] = False
    """Whether people's corrections change what comes out, see `workflow.edits`."""
    transformed: ClassVar[tuple[str, ...]] = ()
    """Roles whose affine is heeded; in others a volume that has one is refused."""

    block: Extent | None = Field(
        None, description="voxels (z, y, x) that one worker takes at a time, rounded up to whole tiles"
    )
    store: str | None = Field(None, description="one of the workflow's stores, for what the stage writes")

    def references(self) -> dict[str, str]:
        """Return what the stage reads: role -> `input`, `stage` or `stage.output`."""
        return {role: name for role in self.roles if (name := getattr(self, role)) is not None}

    def reading(self, references: Mapping[str, str]) -> Self:
        """Return the stage reading other things: role -> reference, for all roles of `references`."""
        changed: dict[str, Any] = {}
        for role, reference in references.items():
            field, _, entry = role.partition(".")
            if entry:
                changed.setdefault(field, dict(getattr(self, field)))[entry] = reference
            else:
                changed[field] = reference
        return self.model_copy(update=changed)

    def placed(self, folder: Path) -> Self:
        """Return the stage with what it names beside the workflow file, in `folder`, named from anywhere."""
        return self

    def following(self, readers: "Sequence[Stage]") -> Self:
        """Return the stage with what it takes over from those that read it, where nobody set it.

        Raises:
            ConfigurationError: where they do not agree.
        """
        return self

    @property
    def probes(self) -> bool:
        """Whether settling tries out the machine: it has to be done on one as those that will work."""
        return False

    def kept(self, sources: Mapping[str, Source], before: "Stage | None") -> Self | None:
        """Return the stage as it was settled before, on whatever machine; None where it has to be settled anew."""
        return None

    def settle(self, sources: Mapping[str, Source], before: "Stage | None") -> Self:
        """Return the stage with all that is to be found out when a run is planned; `before` is from the last time."""
        return self

    def check_worker(self) -> None:
        """Check that this process computes what was planned.

        Raises:
            ConfigurationError: where it would not.
        """

    def sample(self, shape: Vector, number: int) -> Self:
        """Return the stage as it works on a sample of `shape` voxels, the `number`-th: with the same work a voxel."""
        return self

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Return what a user should know before the stage runs."""
        return []

    def chosen(self) -> str:
        """Return what planning chose for this machine, in words; "" where there was nothing to choose."""
        return ""

    def findings(self, sources: Mapping[str, Source], data: "Data") -> list[str]:
        """Return what a user should know of what came out, once the stage has run."""
        return []

    def beside(self, own: Source) -> dict[str, Source]:
        """Return what the steps read that no step writes, by role: tables of which any cell may be missing."""
        return {}

    @abstractmethod
    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan the passes, in order, from the descriptions of what the stage reads.

        Raises:
            ConfigurationError: where the sources do not fit.
        """

    def outputs(self, sources: Mapping[str, Source]) -> dict[str, Output]:
        """Return what all the steps write, by name, in order."""
        return outputs_of(self.steps(sources))


def outputs_of(steps: Sequence[Step]) -> dict[str, Output]:
    """Return what steps write, by name: volumes first, in order; the first is what a stage is read for."""
    found = {t.output.name: t.output for step in steps for t in step.targets}
    return {name: found[name] for name in sorted(found, key=lambda name: not isinstance(found[name], VolumeOutput))}


class TiledStage(Stage):
    """A stage that computes on canonical tiles of its own choice, each a shard of what it writes."""

    tile: Extent | None = Field(None, description="voxels (z, y, x) of a canonical tile; the result depends on it")

    def output(self, name: str, spec: VolumeSpec, *, pyramid: bool = False) -> VolumeOutput:
        """Return an output whose shards are the stage's tiles."""
        output = VolumeOutput.like(name, spec, pyramid=pyramid)
        return output if self.tile is None else replace(output, cell=self.tile)


def same_grid(role: str, spec: VolumeSpec, other_role: str, other: VolumeSpec) -> None:
    """Check that two volumes cover the same voxels.

    Raises:
        ConfigurationError: where shape, voxel size or place differ.
    """
    if spec.shape != other.shape or not np.allclose(spec.voxel_size, other.voxel_size):
        raise ConfigurationError(
            f"{role} ({spec.shape} voxels of {spec.voxel_size} nm) and {other_role} ({other.shape} voxels of "
            f"{other.voxel_size} nm) must cover the same voxels: import them with one shape and voxel size"
        )
    # what half a voxel is apart shares no voxel's middle
    if (2 * np.abs(np.subtract(spec.offset, other.offset)) >= spec.voxel_size).any():
        raise ConfigurationError(
            f"{role} (which begins at {spec.offset} nm) and {other_role} (at {other.offset} nm) must cover the same "
            "voxels: import them with one --offset"
        )


_UNREADABLE = "cannot be read ({}); delete it and run again to compute it anew"


def packed(array: NDArray[Any]) -> bytes:
    """Return an array as it is stored (.npy)."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def unpacked(content: bytes) -> NDArray[Any]:
    """Return the array that `packed` stored.

    Raises:
        ValueError: where it is damaged.
    """
    return cast(NDArray[Any], np.load(io.BytesIO(content), allow_pickle=False))


def probabilities(role: str, source: Source) -> VolumeSpec:
    """Return the description of a map of values from 0 to 255.

    Raises:
        ConfigurationError: where the volume is none.
    """
    spec = source.spec
    if not spec.is_grey:
        raise ConfigurationError(
            f"{role}: '{source.name}' holds {spec.dtype} {spec.kind}; values from 0 to 255 are needed: "
            "name an output of a semantics or boundaries stage, or import it as an 8-bit image"
        )
    return spec


_AHEAD = 32
"""Cells whose tables are read ahead."""


class Data:
    """What a step sees of the store: what it reads, by role or `role.output`, and what it writes, by name.

    Where it `settles`, what was read counts only once `settle` has returned; with `scratch` what was written is
    durable only then.
    """

    scratch: Scratch | None = None
    settles = False

    def __init__(self, sources: Mapping[str, Source], own: Source) -> None:
        self._found: dict[str, tuple[Output, str, Box | None]] = {}
        for role, source in sources.items():
            for name, output in source.outputs.items():
                found = (output, source.urls[name], source.region)
                self._found.setdefault(role, found)
                self._found[f"{role}.{name}"] = found
        self._found |= {name: (output, own.urls[name], None) for name, output in own.outputs.items()}
        self._own = own.outputs.keys()
        self._volumes: dict[str, Volume] = {}
        self._tables: dict[str, Store] = {}
        self._begun: dict[tuple[str, int], Callable[[], bytes | None]] = {}
        self._written: dict[tuple[str, int, int], int | None] = {}
        self.bytes_written = 0

    def has(self, role: str) -> bool:
        """Whether an optional role is filled."""
        return role in self._found

    def volume(self, name: str) -> Volume:
        """Return an open volume."""
        if name not in self._volumes:
            _, url, region = self._found[name]
            # what a stage reads was finished before it began
            volume = open_volume(url, still=name not in self._own)
            if self.settles:
                volume = replace(volume, doubts=set())
            self._volumes[name] = volume if region is None else volume.crop(region)
        return self._volumes[name] if self.scratch is None else self.scratch.volume(self._volumes[name])

    def settle(self) -> None:
        """Return when all that was written is durable, and what was read as zeros is known to be there.

        Raises:
            TryAgainError: where it is not; nothing that was computed since the last time counts.
        """
        if self.scratch is not None:
            self.scratch.wait()
        try:
            for volume in self._volumes.values():
                volume.confirm()
        except TryAgainError:
            # what was taken for absent is asked for anew
            self._volumes.clear()
            raise

    def table(self, name: str, cell: int) -> NDArray[Any]:
        """Return the array of one cell of a table.

        Raises:
            DataError: where it is missing or damaged.
        """
        found = self.find(name, cell)
        if found is None:
            store, key = self._object(name, cell)
            raise DataError(f"{join(store.url, key)}: {_UNREADABLE.format('it is missing')}")
        return found

    def find(self, name: str, cell: int) -> NDArray[Any] | None:
        """Return the array of one cell of a table, None where there is none.

        Raises:
            DataError: where it is damaged.
        """
        if name not in self._found:
            return None
        store, key = self._object(name, cell)
        data = self._begun.pop((name, cell), partial(store.read, key))()
        try:
            return None if data is None else unpacked(data)
        except ValueError as error:
            raise DataError(f"{join(store.url, key)}: {_UNREADABLE.format(error)}") from None

    def tables(self, name: str, cells: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the arrays of cells of a table, see `table`, while the next are being read."""
        return (self.table(name, cell) for cell in self.ahead(cells, name))

    def ahead(self, cells: Sequence[int], *names: str) -> Iterator[int]:
        """Yield cells, while those of their tables that are asked for next are being read; what a store takes long for.

        A name that is no table here, as that of an optional role, is passed over.
        """
        known = [name for name in names if name in self._found]

        def begin(part: Sequence[int]) -> None:
            for name, cell in product(known, part):
                store, key = self._object(name, cell)
                self._begun[name, cell] = store.begin(key)

        begin(cells[:_AHEAD])
        for k, cell in enumerate(cells):
            begin(cells[k + _AHEAD : k + _AHEAD + 1])
            yield cell
            for name in known:
                self._begun.pop((name, cell), None)

    def _object(self, name: str, cell: int) -> tuple[Store, str]:
        output, url, _ = self._found[name]
        if name not in self._tables:
            self._tables[name] = Store(url)
        return self._tables[name], Target(output).key(cell).partition("/")[2]

    def write(self, name: str, box: Box, array: NDArray[Any], level: int = 0) -> None:
        """Write voxels, whole cells of the output's grid; durable when this returns, see `settle`."""
        grid = self._found[name][0].grid(level)
        self.volume(name).write(box, array, level)
        self.bytes_written += array.nbytes
        counts = tuple(-(-n // c) for n, c in zip(box.shape, grid.cell, strict=True))
        z, y, x = (a // c for a, c in zip(box.start, grid.cell, strict=True))
        for dz, dy, dx in np.ndindex(*counts):
            cell = grid.index((z + dz, y + dy, x + dx))
            part = array[(..., *grid.box(cell).relative_to(box.start).slices)]
            self._written[name, level, cell] = zlib.crc32(np.ascontiguousarray(part).data) if part.any() else None

    def put(self, name: str, cell: int, array: NDArray[Any]) -> None:
        """Write the array of one cell of a table; durable when this returns, see `settle`."""
        store, key = self._object(name, cell)
        self._put(store, key, packed(array), name, cell)

    def file(self, name: str) -> bytes:
        """Return a file of the stage's own.

        Raises:
            DataError: where it is missing.
        """
        url = self._found[name][1]
        folder, _, key = url.rpartition("/")
        content = Store(folder).read(key)
        if content is None:
            raise DataError(f"{url}: {_UNREADABLE.format('it is missing')}")
        return content

    def put_file(self, name: str, content: bytes) -> None:
        """Write a file whole; durable when this returns, see `settle`."""
        folder, _, key = self._found[name][1].rpartition("/")
        self._put(Store(folder), key, content, name, 0)

    def _put(self, store: Store, key: str, content: bytes, name: str, cell: int) -> None:
        if self.scratch is None:
            store.write(key, content)
        else:
            self.scratch.write(len(content), partial(store.begin_write, key, content))
        self.bytes_written += len(content)
        self._written[name, 0, cell] = zlib.crc32(content)

    def checksums(self, objects: Sequence[tuple[Target, int]]) -> list[int | None]:
        """Return the CRC-32 of each object's content as written, None for an empty one, and forget them.

        Raises:
            KeyError: where a step has not written all that it must.
        """
        written, self._written = self._written, {}
        return [written[target.output.name, target.level, cell] for target, cell in objects]
