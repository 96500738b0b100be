"""A folder with tissue, its truth and a workflow, in which settings are tuned."""

from pathlib import Path
from typing import Any

import numpy as np

from neurokube.blocks import Box, parse_region
from neurokube.engines import InProcess
from neurokube.synthesis import Neuropil, synthesize
from neurokube.tuning import Request, Tuning, tune
from neurokube.volumes import VolumeSpec, create

SHAPE = (32, 72, 72)
VOXEL_SIZE = (10.0, 10.0, 10.0)
TUNED, HELD_OUT = "0:16,0:72,0:72", "16:32,0:72,0:72"
WORKFLOW = """\
# settings of ours
name: tissue
inputs:
  image: {path: image.zarr}   # beside this file
stages:
  map: {stage: boundaries, tile: [16, 36, 36]}
  fragments: {boundaries: map, tile: [16, 36, 36], reach: 60}
  graph: {boundaries: map}
  multicut:
    bias: 0.9            # too high
    # size_weight: 0.8   # of contacts
  segmentation:
"""


def write(path: Path, voxels: Any, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> str:
    """Write a volume: 8-bit as an image, others as labels."""
    kind: Any = "image" if voxels.dtype == np.uint8 else "labels"
    spec = VolumeSpec(voxels.shape, voxels.dtype.name, VOXEL_SIZE, offset, kind=kind)
    create(str(path), spec).write(spec.box, voxels)
    return str(path)


def write_all(folder: Path) -> None:
    """Write the tissue: its image, a ready-made boundary map, its truth, and truths that do not do."""
    made = synthesize(Neuropil(seed=3), VOXEL_SIZE, Box.of(SHAPE), ("image", "labels", "boundaries"))
    write(folder / "image.zarr", made["image"])
    write(folder / "boundaries.zarr", made["boundaries"])
    write(folder / "truth.zarr", made["labels"])
    write(folder / "upper.zarr", made["labels"][20:, 8:], (200.0, 80.0, 0.0))
    write(folder / "far.zarr", made["labels"], (9000.0, 0.0, 0.0))
    write(folder / "between.zarr", made["labels"], (5.0, 0.0, 0.0))
    write(folder / "empty.zarr", np.zeros(SHAPE, np.uint64))
    (folder / "workflow.yaml").write_text(WORKFLOW)


class Plots:
    """Tunings in a folder, each in a folder of its own unless it is named."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0

    def request(self, *truths: str, **changes: Any) -> Request:
        """Return what is asked for: few trials in small groups."""
        self._count += 1
        given: dict[str, Any] = {
            "workflow": "workflow.yaml",
            "output": f"tuning-{self._count}",
            "regions": [TUNED],
            "trials": 8,
            "multicuts": 4,
        } | changes
        for name in ("regions", "validation"):
            given[name] = tuple(parse_region(text) for text in given.get(name, ()))
        given["workflow"], given["output"] = (str(self.folder / given[name]) for name in ("workflow", "output"))
        return Request(truths=tuple(str(self.folder / t) for t in truths or ("truth.zarr",)), **given)

    def tuned(self, *truths: str, **changes: Any) -> Tuning:
        """Tune in this process."""
        return tune(self.request(*truths, **changes), InProcess(), quiet=True)


def table(tuning: Tuning) -> list[Any]:
    """Return what was tried and what came of it, without the time it took."""
    return [(t.number, t.settings, t.value, t.scores, t.error) for t in tuning.trials]
