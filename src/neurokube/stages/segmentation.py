"""Segmentation: fragments take the label of their segment, block by block.

segmentation      uint64 labels of the cells, consecutive from 1 until they are edited, with a pyramid
fragment-segment  (n, 2) uint64 a tile: fragment id, segment id

What people corrected lies beside them, written by `workflow.corrections`; a tile without corrections has no object:

corrections       (n, 2) uint64 a tile: fragment id, the segment that it is in instead of the one it was solved to be in
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from ..blocks import Box
from ..errors import ConfigurationError
from .base import Data, Source, Stage, Step, TableOutput, Target, VolumeOutput, over_cells, pyramid_steps
from .fragments import first_id
from .graph import fragment_ids


class Segmentation(Stage):
    """Labels of the cells: uint64 with a pyramid, and the table of fragment to segment."""

    kind: ClassVar[str] = "segmentation"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("fragments", "multicut")
    editable: ClassVar[bool] = True

    fragments: str = Field("fragments", description="the fragments stage")
    multicut: str = Field("multicut", description="the stage that joined the fragments")

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan a pass over tiles, the pyramid, and the table."""
        fragments = sources["fragments"].volume
        if sources["multicut"].table("segments").cells != fragments.grid():
            raise ConfigurationError(
                f"multicut: '{sources['multicut'].name}' did not join the fragments of '{sources['fragments'].name}'"
            )
        output = replace(VolumeOutput.like("segmentation", fragments.spec, pyramid=True), cell=fragments.cell)
        grid = output.grid()
        table = TableOutput("fragment-segment", grid)

        def compute(cell: int, box: Box, data: Data) -> None:
            segments = data.table("multicut.segments", cell)
            if (edited := data.find("edits.corrections", cell)) is not None:
                segments[edited[:, 0] - np.uint64(first_id(grid, cell) + 1)] = edited[:, 1]
            numbers = data.volume("fragments").read(box)
            numbers -= np.where(numbers, np.uint64(first_id(grid, cell)), np.uint64(0))
            data.write("segmentation", box, np.concatenate([np.zeros(1, np.uint64), segments])[numbers])
            data.put(
                "fragment-segment",
                cell,
                np.stack([fragment_ids(grid, cell, len(segments)), segments], axis=1),
            )

        step = Step("segmentation", grid, (Target(output), Target(table)), over_cells(grid, compute))
        return [step, *pyramid_steps(output)]

    def beside(self, own: Source) -> dict[str, Source]:
        """Return the corrections, which lie in the stage's own folder."""
        table = TableOutput("corrections", own.table("fragment-segment").cells)
        url = f"{own.urls['fragment-segment'].rpartition('/')[0]}/{table.name}"
        return {"edits": Source(own.name, "edits", {table.name: table}, {table.name: url})}
