"""Stages that do next to nothing, so that what remains is the engine's own time.

Worker processes import this module by its name: whoever starts them puts the repository's root on PYTHONPATH.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np

from neurokube.blocks import Box, Grid, Vector
from neurokube.engines import Batch, Outcome, Report
from neurokube.engines.base import Work
from neurokube.engines.local import Local
from neurokube.stages import STAGES, Data, Source, Stage, Step, Target, VolumeOutput
from neurokube.stages.base import over_cells
from neurokube.volumes import Store, Volume, open_volume
from neurokube.workflow import work as neurokube_work

from .empty import Note

CELL: Vector = (16, 16, 16)
"""Voxels of a block."""

__all__ = ["CELL", "Invert", "LocalWithStages", "Note", "invert", "note", "nothing", "work"]


class Invert(Stage):
    """Reads a small block of a volume and writes one."""

    kind: ClassVar[str] = "invert"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ("image",)

    image: str = "image"

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        output = replace(VolumeOutput.like("inverted", sources["image"].spec), cell=CELL)
        grid = output.grid()

        def compute(cell: int, box: Box, data: Data) -> None:
            data.write("inverted", box, 255 - data.volume("image").read(box))

        return [Step("invert", grid, (Target(output),), over_cells(grid, compute))]


STAGES[Invert.kind] = Invert


def note(folder: str, block: int) -> None:
    """Do what `Note` does to a block, without NeuroKube's stages, records and checksums."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([block], np.uint64), allow_pickle=False)
    _store(folder).write(f"0.0.{block}.npy", buffer.getvalue())


def invert(source: str, target: str, block: int) -> None:
    """Do what `Invert` does to a block, without NeuroKube's stages, records and checksums."""
    image = _volume(source)
    box = Grid(image.spec.shape, CELL).box(block)
    _volume(target).write(box, 255 - image.read(box))


@cache
def _store(url: str) -> Store:
    return Store(url)


@cache
def _volume(url: str) -> Volume:
    return open_volume(url)


def work(run_url: str, step_name: str, batch: Batch, stop: Callable[[], bool] | str | None = None) -> Report:
    """Do as `neurokube.workflow.work`, in a process that knows the stages above by importing this module."""
    return neurokube_work(run_url, step_name, batch, stop)


def nothing(run_url: str, step_name: str, batch: Batch, stop: Callable[[], bool] | str | None = None) -> Report:
    """Stand in for the worker function."""
    return Report(batch.last - batch.first)


class LocalWithStages(Local):
    """The local engine, whose workers know the stages above."""

    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        return super().execute(_work, run_url, step_name, batches, attempts)


_work = work
