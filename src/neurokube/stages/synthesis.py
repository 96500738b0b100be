"""Synthesis as a stage: an image of synthetic neuropil and its truth, block by block."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from ..blocks import Box
from ..synthesis import Neuropil, synthesize
from ..volumes import VolumeSpec
from .base import Data, Extent, Length, Source, Step, Target, TiledStage, over_cells, pyramid_steps


class Synthesis(TiledStage):
    """Synthetic neuropil: outputs `image`, `labels` (cells), `membranes`, `mitochondria`, `vesicles`."""

    kind: ClassVar[str] = "synthesis"
    version: ClassVar[int] = 1

    shape: Extent = Field(description="voxels (z, y, x)")
    voxel_size: tuple[Length, Length, Length] = Field((40.0, 8.0, 8.0), description="nm (z, y, x)")
    tissue: Neuropil = Field(default_factory=Neuropil, description="what the tissue is like")

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan one pass over tiles, and the pyramids of image and labels."""
        image = VolumeSpec(self.shape, "uint8", self.voxel_size)
        labels = VolumeSpec(self.shape, "uint64", self.voxel_size, kind="labels")
        mask = VolumeSpec(self.shape, "uint8", self.voxel_size, kind="labels")
        outputs = [
            self.output("image", image, pyramid=True),
            self.output("labels", labels, pyramid=True),
            *(self.output(name, mask) for name in ("membranes", "mitochondria", "vesicles")),
        ]
        grid = outputs[0].grid()

        def compute(cell: int, box: Box, data: Data) -> None:
            tissue = synthesize(self.tissue, self.voxel_size, box)
            for output in outputs:
                data.write(output.name, box, tissue[output.name])

        step = Step("synthesis", grid, tuple(Target(o) for o in outputs), over_cells(grid, compute))
        pyramids = [(o.name, s) for o in outputs[:2] for s in pyramid_steps(o)]
        return [step, *(Step(f"{name}-{s.name}", s.grid, s.targets, s.compute) for name, s in pyramids)]
