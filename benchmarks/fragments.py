"""The watershed of the stage `fragments` beside python-elf's, on one boundary map and two cores.

    python -m benchmarks.fragments [--rounds 3] [--data ../shared/data/fib25]

The boundary map is that of our ridge filter on a FIB-SEM volume, mirrored to 250^3 voxels; synthetic tissue where
the volume is absent.  NeuroKube works through canonical tiles, each with its halo, in two processes, as the stage
does; elf's 3D watershed is one call, its watershed by sections runs in two threads.  Both threshold at the same
value, smooth seeds alike, weigh distance alike, and leave small fragments as they are; `elf, filtered` also removes
fragments under 100 voxels, elf's default.  VOI is against the bodies of at least 1,000 voxels, split + merge in bits.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from elf.segmentation.watershed import distance_transform_watershed, stacked_watershed
from numpy.typing import NDArray
from PIL import Image

from neurokube.blocks import Box, Grid, Vector
from neurokube.evaluation import Contingency, variation_of_information
from neurokube.stages.boundaries import ridge_filter
from neurokube.stages.fragments import Fragments, first_id
from neurokube.synthesis import Neuropil, synthesize
from neurokube.volumes.volume import Nanometres

from .measure import machine, ratio

THRESHOLD, SMOOTHING, DISTANCE_WEIGHT = 80, 16.0, 0.2
VOXEL_SIZE: Nanometres = (10.0, 10.0, 10.0)
HALO = 120.0
CORES = 2


def volume(data: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint64], str]:
    """Return an image (z, y, x), its bodies, and where they come from."""
    if not (data / "bodies.h5").exists():
        tissue = synthesize(Neuropil(), VOXEL_SIZE, Box.of((125, 250, 250)))
        return tissue["image"], tissue["labels"], "synthetic tissue"
    image = np.stack([np.asarray(Image.open(file)) for file in sorted((data / "raw").iterdir())])
    with h5py.File(data / "bodies.h5") as file:
        return image, file["bodies"][:].astype(np.uint64), "fib25"


def mirrored(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array, array[::-1]])


class Tiles:
    """Our watershed over the tiles of a boundary map, in two processes."""

    def __init__(self, file: Path, tile: Vector, pool: ProcessPoolExecutor, *, flat: bool) -> None:
        self.file, self.flat, self.pool = file, flat, pool
        self.grid = Grid(np.load(file, mmap_mode="r").shape, tile)

    def __call__(self) -> NDArray[np.uint64]:
        labels = np.empty(self.grid.shape, np.uint64)
        compute = partial(_tile, self.file, self.grid, self.flat)
        for cell, found in enumerate(self.pool.map(compute, range(len(self.grid)))):
            labels[self.grid.box(cell).slices] = found + np.uint64(first_id(self.grid, cell))
        return labels


def _tile(file: Path, grid: Grid, flat: bool, cell: int) -> NDArray[np.uint64]:
    boundaries = np.load(file, mmap_mode="r")
    box = grid.box(cell)
    outer = box.grow(Fragments().halo(VOXEL_SIZE, flat=flat)).clip(Box.of(grid.shape))
    return _ours(np.ascontiguousarray(boundaries[outer.slices]), box.relative_to(outer.start), flat)


def _ours(boundaries: NDArray[np.uint8], inner: Box, flat: bool) -> NDArray[np.uint64]:
    stage = Fragments(sections="one by one" if flat else "together")
    return stage.fragments_of(boundaries, inner, VOXEL_SIZE).astype(np.uint64)


def elf(boundaries: NDArray[np.float32], *, flat: bool, smallest: int = 0, threads: int = CORES) -> NDArray[Any]:
    """Return elf's fragments of a boundary map from 0 to 1."""
    settings = {
        "threshold": THRESHOLD / 255,
        "sigma_seeds": SMOOTHING / VOXEL_SIZE[0],
        "sigma_weights": 0,
        "alpha": 1 - DISTANCE_WEIGHT,
        "min_size": smallest,
    }
    if flat:
        labels, _ = stacked_watershed(boundaries, n_threads=threads, **settings)
    else:
        labels, _ = distance_transform_watershed(boundaries, **settings)
    return np.asarray(labels)


def quality(labels: NDArray[Any], bodies: NDArray[np.uint64]) -> str:
    """Return the number of fragments and VOI, split + merge, where bodies are large enough."""
    names, where, sizes = np.unique(bodies, return_inverse=True, return_counts=True)
    scored = ((sizes >= 1000) & (names != 0))[where].reshape(bodies.shape)
    table = Contingency.of(labels.astype(np.uint64)[scored], bodies[scored])
    split, merge = variation_of_information(table)
    return f"{len(np.unique(labels)):6} fragments, VOI {split:.2f} + {merge:.2f}"


@contextmanager
def contestants(boundaries: NDArray[np.uint8]) -> Iterator[dict[str, dict[str, Callable[[], NDArray[Any]]]]]:
    """Yield, by kind of watershed, who computes it; NeuroKube first."""
    floats = boundaries.astype(np.float32) / np.float32(255)
    whole = Box.of(boundaries.shape)
    with TemporaryDirectory(prefix="fragments-") as folder, ProcessPoolExecutor(CORES) as pool:
        np.save(file := Path(folder, "boundaries.npy"), boundaries)
        yield {
            "in 3D": {
                "neurokube": Tiles(file, (128, 128, 128), pool, flat=False),
                "elf": partial(elf, floats, flat=False),
                "elf, filtered": partial(elf, floats, flat=False, smallest=100),
            },
            "in 3D, one process, one tile": {
                "neurokube": partial(_ours, boundaries, whole, False),
                "elf": partial(elf, floats, flat=False),
            },
            "by section": {
                "neurokube": Tiles(file, (16, 512, 512), pool, flat=True),
                "elf": partial(elf, floats, flat=True),
                "elf, filtered": partial(elf, floats, flat=True, smallest=100),
            },
            "by section, one process": {
                "neurokube": partial(_ours, boundaries, whole, True),
                "elf": partial(elf, floats, flat=True, threads=1),
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/fib25"))
    options = parser.parse_args()
    image, bodies, origin = volume(options.data)
    boundaries = mirrored(ridge_filter(image, Box.of(image.shape), VOXEL_SIZE, scales=(10.0, 16.0), flat=False))
    bodies = mirrored(bodies)
    print(f"{machine()}; {origin}, {boundaries.shape}")
    with contestants(boundaries) as kinds:
        for kind, group in kinds.items():
            seconds: dict[str, list[float]] = {name: [] for name in group}
            labels = {}
            for _ in range(options.rounds):
                for name, compute in group.items():
                    began = time.perf_counter()
                    labels[name] = compute()
                    seconds[name].append(time.perf_counter() - began)
            for name, taken in seconds.items():
                print(
                    f"{kind}: {name:14} {boundaries.size / median(taken) / 1e6:5.2f} Mvoxel/s, neurokube / {name}: "
                    f"{ratio(taken, seconds['neurokube']):.2f} in speed; {quality(labels[name], bodies)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
