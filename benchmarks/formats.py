"""Copies of a volume to the formats of other tools, beside tensorstore alone and the formats' own libraries.

    python -m benchmarks.formats [--size 1.0] [--rounds 3] [--formats n5,precomputed] [--folder FOLDER] [--data FOLDER]

The volume, `--size` GB of 8-bit voxels, is a FIB-SEM volume laid out by mirroring (noise where it is absent).  One
resolution is copied, by one program after another in each round.  tensorstore alone is `target.write(source)` to the
same shards and codecs, with its own defaults for threads.  NEUROKUBE_PEERS names the interpreter of an environment with
cloud-volume, zarr and ome-zarr, where they are not in this one.  Then each codec writes
and reads a cube of 256 voxels of the image, and of labels.
"""

import argparse
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from neurokube.blocks import Box
from neurokube.volumes import Volume, VolumeSpec, create, open_volume
from neurokube.volumes.chunked import MAKERS
from neurokube.volumes.chunked.target import Options

from .importing import texture
from .measure import machine, ratio

FORMATS = ("ome-zarr", "n5", "precomputed")

DONE = """
    print(time.monotonic() - begin, [s for s in open("/proc/self/status") if s.startswith("VmHWM")][0].split()[1])
"""
"""Prints what each program took: seconds, and the most memory it held in KiB (Linux)."""

EXPORT = """
    import sys, time
    from neurokube.volumes.exporting import export_volume
    begin = time.monotonic()
    export_volume(sys.argv[1], sys.argv[2], format=sys.argv[3], levels=1, overwrite=True, quiet=True,
                  workers=int(sys.argv[4]))
"""

TENSORSTORE = """
    import shutil, sys, time
    import tensorstore as ts
    from neurokube.volumes import VolumeSpec
    from neurokube.volumes.chunked import MAKERS
    from neurokube.volumes.chunked.target import Options
    import neurokube.volumes.volume as volumes
    volumes.context = lambda: ts.Context()
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    begin = time.monotonic()
    source = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": sys.argv[1] + "/0/"}}).result()
    spec = VolumeSpec(tuple(source.shape), "uint8", (8.0, 8.0, 8.0))
    target = MAKERS[sys.argv[3]](sys.argv[2], spec, [(1, 1, 1)], Options("alone"))
    target.arrays[0].write(source).result()
"""

PEERS = {
    "ome-zarr": {
        "zarr": """
    import itertools, sys, time
    import zarr
    begin = time.monotonic()
    a = zarr.open_array(sys.argv[1] + "/0", mode="r")
    b = zarr.create_array(sys.argv[2], shape=a.shape, dtype=a.dtype, shards=a.shards, chunks=a.chunks, overwrite=True,
                          compressors=zarr.codecs.ZstdCodec(level=1))
    for start in itertools.product(*(range(0, n, s) for n, s in zip(a.shape, a.shards))):
        box = tuple(slice(k, min(k + s, n)) for k, s, n in zip(start, a.shards, a.shape))
        b[box] = a[box]
    """,
        "ome-zarr": """
    import sys, time
    import dask.array
    import zarr
    from ome_zarr.writer import write_image
    begin = time.monotonic()
    a = zarr.open_array(sys.argv[1] + "/0", mode="r")
    options = {"shards": a.shards, "chunks": a.chunks, "compressors": zarr.codecs.ZstdCodec(level=1)}
    write_image(dask.array.from_zarr(a, chunks=a.shards), sys.argv[2], scale_factors=[], axes="zyx",
                storage_options=options)
    """,
    },
    "precomputed": {
        "cloud-volume": """
    import itertools, sys, time
    import zarr
    from cloudvolume import CloudVolume
    begin = time.monotonic()
    a = zarr.open_array(sys.argv[1] + "/0", mode="r")
    info = CloudVolume.create_new_info(1, "image", "uint8", "raw", [8, 8, 8], [0, 0, 0], a.shape[::-1],
                                       chunk_size=[64, 64, 64])
    v = CloudVolume("file://" + sys.argv[2], info=info, compress="gzip", progress=False, non_aligned_writes=True)
    v.commit_info()
    for start in itertools.product(*(range(0, n, 256) for n in a.shape)):
        box = tuple(slice(k, min(k + 256, n)) for k, n in zip(start, a.shape))
        v[box[::-1]] = a[box].T
    """,
    },
}


def measured(program: str, code: str, *arguments: str) -> tuple[float, float] | None:
    """Return the seconds and the peak memory in MB that a program prints; None where it cannot be run."""
    done = subprocess.run([program, "-c", textwrap.dedent(code + DONE), *arguments], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1])
        return None
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory) * 1024 / 1e6


def source_of(folder: Path, size: float, data: Path) -> Volume:
    """Write the volume."""
    tile = texture(data)[:256, :1024, :1024]
    depth = max(1, round(size * 1e9 / tile.size)) * tile.shape[0]
    spec = VolumeSpec((depth, 1024, 1024), "uint8", (8.0, 8.0, 8.0))
    volume = create(str(folder / "source.zarr"), spec)
    for z in range(0, depth, tile.shape[0]):
        volume.arrays[0][z : z + tile.shape[0]].write(tile if z // tile.shape[0] % 2 == 0 else tile[::-1]).result()
    return volume


def stored(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def copies(folder: Path, volume: Volume, rounds: int, formats: list[str], workers: int) -> None:
    size = float(np.prod(volume.spec.shape)) / 1e6
    peers = os.environ.get("NEUROKUBE_PEERS", sys.executable)
    print(f"\n{size / 1e3:.2f} GB, {rounds} rounds, {machine()}\n")
    print("| format | by | rate | of tensorstore's | peak memory | stored | files |")
    print("|---|---|---|---|---|---|---|")
    for format in formats:
        programs = {
            "tensorstore alone": (sys.executable, TENSORSTORE),
            "neurokube export": (sys.executable, EXPORT),
            **{f"`{name}`": (peers, code) for name, code in PEERS.get(format, {}).items()},
        }
        rates: dict[str, list[float]] = {name: [] for name in programs}
        memory, bytes_, files = dict.fromkeys(programs, 0.0), {}, {}
        for _ in range(rounds):
            for name, (program, code) in programs.items():
                copy = folder / "copy"
                if (found := measured(program, code, volume.url, str(copy), format, str(workers))) is None:
                    continue
                rates[name].append(size / found[0])
                memory[name] = max(memory[name], found[1])
                bytes_[name], files[name] = stored(copy), sum(file.is_file() for file in copy.rglob("*"))
                shutil.rmtree(copy)
        for name, found_rates in rates.items():
            if found_rates:
                print(
                    f"| {format} | {name} | {median(found_rates):.0f} MB/s "
                    f"| {ratio(found_rates, rates['tensorstore alone']):.2f} | {memory[name]:.0f} MB "
                    f"| {bytes_[name] / 1e6:.0f} MB | {files[name]:,} |",
                    flush=True,
                )


def codecs(folder: Path, image: Any) -> None:
    blocks = np.random.default_rng(0).integers(1, 2**40, (17, 17, 17), dtype=np.uint64)
    points = np.indices((256, 256, 256)).astype(np.float32)
    wave = [(p + 9 * np.sin(q / 13)) // 16 for p, q in zip(points, points[[1, 2, 0]], strict=True)]
    z, y, x = (np.clip(w, 0, 16).astype(int) for w in wave)
    labels = blocks[z, y, x]
    cases = {
        "ome-zarr": ("zstd:1", "zstd:3", "zstd:9", "blosc:5", "gzip:5"),
        "n5": ("gzip:1", "gzip:6", "zstd:1", "blosc:5"),
        "precomputed": ("gzip", "raw", "compressed_segmentation"),
    }
    print("\n| values | format | codec | stored / raw | write | read |\n|---|---|---|---|---|---|")
    for kind, data in (("image", image), ("labels", labels)):
        spec = VolumeSpec(data.shape, data.dtype.name, (8.0, 8.0, 8.0), kind=kind)
        for format, names in cases.items():
            for name in names:
                if name == "compressed_segmentation" and kind == "image":
                    continue
                shutil.rmtree(folder / "codec", ignore_errors=True)
                options = Options("codec", compression=name)
                target = MAKERS[format](str(folder / "codec"), spec, [(1, 1, 1)], options)
                wrote = timed(lambda target=target, data=data: target.write(0, Box.of(data.shape), data))
                target.finish()
                read = timed(lambda data=data: open_volume(str(folder / "codec")).read(Box.of(data.shape)))
                size, raw = stored(folder / "codec"), data.nbytes
                print(
                    f"| {kind} | {format} | {name} | {size / raw:.4f} | {raw / wrote / 1e6:.0f} MB/s "
                    f"| {raw / read / 1e6:.0f} MB/s |",
                    flush=True,
                )


def timed(action: Callable[[], Any]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=float, default=1.0, help="GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", default=",".join(FORMATS), help="none: only codecs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/fib25"))
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        volume = source_of(folder, options.size, options.data)
        copies(folder, volume, options.rounds, [f for f in options.formats.split(",") if f], options.workers)
        image = volume.arrays[0][:256, :256, :256].read().result()
        codecs(folder, image)


if __name__ == "__main__":
    main()
