"""Synthesis as a stage: an image of synthetic neuropil and its truth, block by block."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field

from ..blocks import Box, Vector
from ..synthesis import ARRAYS, BASIC, Array, Neuropil, dtype_of, synthesize
from ..synthesis.neuropil import tile_shape
from ..volumes import VolumeSpec
from .base import (
    Data,
    Extent,
    Length,
    Source,
    Step,
    Target,
    TiledStage,
    VolumeOutput,
    over_cells,
    pyramid_steps,
)


def _in_order(names: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return names in the order of all, each once; so that how they are written makes no difference."""
    return tuple(name for name in ARRAYS if name in names)


_IMAGES = ("image", "boundaries")


class Synthesis(TiledStage):
    """Synthetic neuropil: outputs `image`, `labels` (cells), `membranes`, `mitochondria`, `vesicles`, and others."""

    kind: ClassVar[str] = "synthesis"
    version: ClassVar[int] = 3

    shape: Extent = Field(description="voxels (z, y, x)")
    voxel_size: tuple[Length, Length, Length] = Field((40.0, 8.0, 8.0), description="nm (z, y, x)")
    tissue: Neuropil = Field(default_factory=Neuropil, description="what the tissue is like")
    write: Annotated[tuple[Array, ...], Field(min_length=1), AfterValidator(_in_order)] = Field(
        BASIC, description=f"the outputs, of {', '.join(ARRAYS)}"
    )

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan one pass over tiles, and the pyramids of image and instance labels."""
        outputs = [self._output(name) for name in self.write]
        grid = outputs[0].grid()

        def compute(cell: int, box: Box, data: Data) -> None:
            tissue = synthesize(self.tissue, self.voxel_size, box, self.write)
            for output in outputs:
                data.write(output.name, box, tissue[output.name])

        made = tile_shape(self.voxel_size)

        def effort(axis: int, start: int, stop: int) -> float:
            """Count the pieces in which tissue is generated: of one that is cut, all of it is."""
            cell, side = grid.cell[axis], made[axis]
            return sum(-(-min(a + cell, stop) // side) - a // side for a in range(start, stop, cell))

        step = Step(
            "synthesis",
            grid,
            tuple(Target(o) for o in outputs),
            over_cells(grid, compute),
            effort=effort,
            unit="pieces of tissue",
        )
        pyramids = [(o.name, s) for o in outputs for s in pyramid_steps(o)]
        return [step, *(Step(f"{name}-{s.name}", s.grid, s.targets, s.compute) for name, s in pyramids)]

    def sample(self, shape: Vector, number: int) -> Self:
        """Return the stage as it makes a sample of other tissue of the same kind."""
        tissue = self.tissue.model_copy(update={"seed": (self.tissue.seed + number) % 2**31})
        return self.model_copy(update={"shape": shape, "tissue": tissue})

    def _output(self, name: Array) -> VolumeOutput:
        dtype = dtype_of(name)
        spec = VolumeSpec(self.shape, dtype, self.voxel_size, kind="image" if name in _IMAGES else "labels")
        return self.output(name, spec, pyramid=name in _IMAGES or dtype == "uint64")
