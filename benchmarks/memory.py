"""Peak memory of a worker for a volume and for one eight times as large; the aim is a ratio of at most 1.1.

    python -m benchmarks.memory

Each step of a workflow is worked through by one fresh process, `neurokube work`, as a pod does it; its peak is what
the last of its records says.  `multicut` holds the whole graph and grows with it by design.  Where the small volume
has only a few blocks, as in the coarse resolutions, the ratio says little: the blocks are smaller than a whole tile,
and what the allocator keeps after dozens of blocks, some 20 MiB, was not there yet.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from neurokube.blocks import Box, Vector
from neurokube.synthesis import Neuropil, synthesize
from neurokube.volumes import VolumeSpec, create
from neurokube.volumes.volume import Nanometres
from neurokube.workflow import Run, parse_workflow

from .measure import machine

VOXEL_SIZE: Nanometres = (40.0, 8.0, 8.0)
TILE = [16, 128, 128]
STAGES = {
    "boundaries": {"tile": TILE},
    "fragments": {"tile": TILE},
    "graph": {},
    "multicut": {},
    "segmentation": {},
}
GROWS = "multicut/last"


def texture(shape: Vector) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """Yield the parts of an image: one piece of synthetic tissue, again and again."""
    piece = synthesize(Neuropil(), VOXEL_SIZE, Box.of((16, 512, 512)))["image"]
    for start in np.ndindex(*(n // m for n, m in zip(shape, piece.shape, strict=True))):
        z, y, x = (k * m for k, m in zip(start, piece.shape, strict=True))
        yield Box.of(piece.shape).shift((z, y, x)), piece


def peaks(folder: Path, shape: Vector) -> dict[str, tuple[int, int]]:
    """Return for each step the number of blocks and the peak of the process that did them, in bytes."""
    image = create(str(folder / "image.zarr"), VolumeSpec(shape, "uint8", VOXEL_SIZE), attributes={"fingerprint": "x"})
    for box, voxels in texture(shape):
        image.write(box, voxels)
    run = Run.planned(
        parse_workflow(
            {
                "name": "run",
                "workspace": str(folder),
                "inputs": {"image": {"path": str(folder / "image.zarr")}},
                "stages": STAGES,
            }
        )
    )
    run.prepare()
    found = {}
    for name, step in run.plan.steps.items():
        subprocess.run(
            [sys.executable, "-m", "neurokube", "work", run.url, name],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found[name] = (len(step.blocks), max(r.peak_memory for _, r in run.ledger(step).records()))
    return found


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    shapes: list[Vector] = [(32, 512, 512), (64, 1024, 1024)]
    found = []
    for shape in shapes:
        with TemporaryDirectory(prefix="memory-") as folder:
            found.append(peaks(Path(folder), shape))
    small, large = found
    print(machine())
    print(f"MiB of a worker, for {shapes[0]} and for {shapes[1]} voxels")
    for name, (blocks, peak) in large.items():
        if name in small:  # the large volume has a coarse resolution more
            blocks_before, before = small[name]
            print(
                f"{name:26} {before / 2**20:4.0f} ({blocks_before:3} blocks), {peak / 2**20:4.0f} ({blocks:4} blocks): "
                f"ratio {peak / before:.2f}{' (grows by design)' if name == GROWS else ''}"
            )


if __name__ == "__main__":
    main()
