"""Import of an image stack beside tensorstore alone, writing the same shards and resolutions.

    python -m benchmarks.importing [--rounds 3] [--data ../shared/data/fib25]

The stack, 256 x 1024 x 1024 voxels of 8 nm, is a FIB-SEM volume laid out by mirroring (noise where it is absent),
once as .npy and once as PNG slices.  tensorstore alone writes the array slab by slab and computes the coarser
resolutions with its own `downsample`; slices are decoded in two threads by Pillow.  Import does that, and takes a
digest, compares sections with the source, and looks at the data to say what it sees: that last part, whose cost is
bounded however large the stack, is shown apart.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray
from PIL import Image

from neurokube.volumes import VolumeSpec, create, open_volume, pyramid_factors
from neurokube.volumes.importing import import_volume
from neurokube.volumes.inspection import inspect_volume

from .measure import machine, ratio

SHAPE, VOXEL_SIZE = (256, 1024, 1024), (8.0, 8.0, 8.0)
SLAB = 128


def texture(data: Path) -> NDArray[np.uint8]:
    """Return the stack (z, y, x)."""
    files = sorted((data / "raw").iterdir()) if (data / "raw").exists() else []
    if not files:
        return np.random.default_rng(0).normal(128, 30, SHAPE).clip(0, 255).astype(np.uint8)
    image = np.stack([np.asarray(Image.open(file)) for file in files])
    extent = [(0, n - m) for n, m in zip(SHAPE, image.shape, strict=True)]
    return np.pad(image, extent, mode="symmetric")


def tensorstore_alone(source: Path, destination: Path) -> None:
    """Write a stack and its pyramid."""
    spec = VolumeSpec(SHAPE, "uint8", VOXEL_SIZE)
    factors = pyramid_factors(spec)
    arrays = create(str(destination), spec, factors=factors).arrays
    files = sorted(source.iterdir()) if source.is_dir() else []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, SHAPE[0], SLAB):
            if files:
                slab = np.stack(list(pool.map(_decoded, files[start : start + SLAB])))
            else:
                slab = np.load(source, mmap_mode="r")[start : start + SLAB]
            arrays[0][start : start + SLAB].write(slab).result()
    for level in range(1, len(arrays)):
        step = [b // a for a, b in zip(factors[level - 1], factors[level], strict=True)]
        arrays[level].write(ts.downsample(arrays[level - 1], step, "mean")).result()


def _decoded(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image)


def imported(source: Path, destination: Path) -> None:
    import_volume(str(source), str(destination), voxel_size=VOXEL_SIZE, quiet=True, workers=2)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/fib25"))
    options = parser.parse_args()
    print(machine())
    with TemporaryDirectory(prefix="importing-") as folder:
        stack = texture(options.data)
        np.save(array := Path(folder, "stack.npy"), stack)
        (slices := Path(folder, "slices")).mkdir()
        for z, section in enumerate(stack):
            Image.fromarray(section).save(slices / f"{z:04}.png")
        ours, theirs = Path(folder, "ours.zarr"), Path(folder, "theirs.zarr")
        for name, source in (("npy", array), ("png", slices)):
            taken: dict[str, list[float]] = {"import": [], "of it looking": [], "tensorstore": []}
            for _ in range(options.rounds):
                for volume in (ours, theirs):
                    shutil.rmtree(volume, ignore_errors=True)
                taken["import"].append(seconds(lambda source=source: imported(source, ours)))  # type: ignore[misc]
                taken["of it looking"].append(seconds(lambda: inspect_volume(open_volume(str(ours)))))
                taken["tensorstore"].append(seconds(lambda source=source: tensorstore_alone(source, theirs)))  # type: ignore[misc]
            without = [a - b for a, b in zip(taken["import"], taken["of it looking"], strict=True)]
            for who, times in taken.items():
                print(f"{name}: {who:14} {median(times):5.2f} s, {stack.size / median(times) / 1e6:6.1f} Mvoxel/s")
            print(
                f"{name}: tensorstore / import: {ratio(taken['tensorstore'], taken['import']):.2f} in speed, "
                f"{ratio(taken['tensorstore'], without):.2f} without looking",
                flush=True,
            )


if __name__ == "__main__":
    main()
